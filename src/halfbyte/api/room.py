"""Room on the disk, before a model is loaded: a run that could not save would lose what it learns."""

from halfbyte.api.memory import Memory
from halfbyte.recipe.plan import Plan
from halfbyte.recipe.schema import Train
from halfbyte.runs.disk import check_room
from halfbyte.runs.folder import RunFolder
from halfbyte.train.checkpoint import bytes_of, checkpoints_in

MARGIN_BYTES = 50 * 10**6
"""The adapter's tokenizer, events, evaluation, report."""
LEAST_COPIES = 3


def check_disk(run: RunFolder, memory: Memory, plan: Plan, train: Train) -> None:
    """The checkpoints that are kept, the best, and the one that is being written; at least three. Raises MachineError."""
    trainable = trainable_weights(memory)
    there = len(checkpoints_in(run.checkpoints))
    copies = max(1, LEAST_COPIES - there, train.keep_checkpoints + 2 - there)
    each = bytes_of(trainable, plan.optimizer) if trainable else 0
    what = f"{copies} checkpoints of about {each / 1e6:.1f} MB and the report" if each else "checkpoints and the report"
    check_room(run.path, copies * each + 4 * trainable + MARGIN_BYTES, what)


def trainable_weights(memory: Memory) -> int:
    """Of the adapter, from the base's config alone; 0 where that says too little."""
    if memory.on_cpu is not None:
        return memory.on_cpu[0].adapter_weights
    choice = memory.forecast.choice if memory.forecast is not None else None
    return choice.work.adapter_weights if choice is not None else 0
