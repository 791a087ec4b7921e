"""Every error a user can meet, in one tree.

The message says what was seen and where, the hint what to do. The API raises it, the command prints
both without a traceback and leaves with `exit_code`: 0 done, 1 our bug, 2 your input, 3 machine,
4 interrupted and resumable, 5 integrity, 6 a promise that was not kept (130, the shell's own, after Ctrl-C where
there was nothing to save).
"""


class HalfbyteError(Exception):
    """Base of all errors that halfbyte raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint


class RecipeError(HalfbyteError):
    """The recipe or an override is wrong; the message lists every problem, one a line."""

    exit_code = 2


class DataError(HalfbyteError):
    """A data file or a row of it cannot be used; the message names file and line."""

    exit_code = 2


class ModelError(HalfbyteError):
    """The base or the adapter cannot be loaded, or was not loaded as asked."""

    exit_code = 2


class TrainingError(HalfbyteError):
    """Training cannot go on with these settings, a loss that is not finite for instance."""

    exit_code = 2


class MachineError(HalfbyteError):
    """This machine lacks something: memory, disk, a kernel, the network."""

    exit_code = 3


class OutOfMemory(MachineError):
    """Memory ran out, and nothing is left that could give way without changing the mathematics."""


class Interrupted(HalfbyteError):
    """Stopped on request; what was saved can be gone on from."""

    exit_code = 4


class IntegrityError(HalfbyteError):
    """A file is not what it was when it was written."""

    exit_code = 5


class ProofError(HalfbyteError):
    """What is about to be trained does not compute what it says (docs/checks.md); the message has a line for each proof that failed."""

    exit_code = 5


class PromiseError(HalfbyteError):
    """A run is not as good as its recipe or the caller of `gate` asked for; the message has a line for each promise."""

    exit_code = 6
