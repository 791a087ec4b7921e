"""halfbyte: from a file of text to a fine-tuned language model you can trust.

    import halfbyte
    run = halfbyte.train("recipe.yaml", train={"max_steps": 20})      # or a dictionary in place of the file
    run.generate("Great content, thank you!")

The verbs of the command line are functions here (halfbyte/notebook). Importing halfbyte imports none of them, and no torch.
"""

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Run", "audit", "chat", "classify", "compare", "evaluate", "gate", "generate", "plan", "prepare", "rate", "reproduce", "resume", "show", "train",
    "verify_resume",
]  # fmt: skip

if TYPE_CHECKING:
    from halfbyte.notebook import (
        Run,
        audit,
        chat,
        classify,
        compare,
        evaluate,
        gate,
        generate,
        plan,
        prepare,
        rate,
        reproduce,
        resume,
        show,
        train,
        verify_resume,
    )
else:
    from halfbyte import evaluate, generate, train  # rooms without a line in their __init__.py


class _Verb(ModuleType):
    """A room that has the name of a verb: imported from as ever, and called as the verb. Python keeps one name for both."""

    def _verb(self) -> Callable[..., Any]:
        from halfbyte import notebook

        return getattr(notebook, self.__name__.rpartition(".")[2])

    def __call__(self, *words: Any, **changes: Any) -> Any:
        return self._verb()(*words, **changes)

    @property
    def __signature__(self) -> Any:
        """For the help and the completion of notebooks."""
        import inspect

        return inspect.signature(self._verb())


if not TYPE_CHECKING:
    for _room in (evaluate, generate, train):
        _room.__class__ = _Verb


def __getattr__(name: str) -> Any:
    if name in __all__:
        from halfbyte import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module 'halfbyte' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
