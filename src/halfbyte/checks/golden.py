"""A training of 20 steps whose losses are known: the embedded base, an embedded text, one seed, the functions that every run uses.

Where this machine's numbers are the same, its libraries, its 4-bit kernels and its arithmetic do what they did where the curve was made.
golden_curve.json beside this file holds the losses, and how far they may be off in each precision; benchmarks/golden_curve.py makes it and
measures both: other numbers of threads, other instruction sets of the processor, 16-bit formats, and faults that must be seen.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS = 20
ROWS_A_STEP = 4
ROW_TOKENS = 96
# Steps until the same rows come again, so that a model that does not learn is seen.
STEPS_A_PASS = 5
# Of the text for one row: more than ROW_TOKENS of any tokenizer.
ROW_CHARACTERS = 800
SEED = 20
LEARNING_RATE = 1e-3
SAMPLE = Path(__file__).parent.parent / "samples" / "gothic_tale.txt"
CURVE = Path(__file__).parent / "golden_curve.json"


@dataclass(frozen=True)
class Compared:
    """Losses of this machine beside the golden ones."""

    losses: list[float]
    golden: list[float]
    precision: str
    tolerance: float

    @property
    def farthest(self) -> float:
        """Largest difference of a step; infinite where a loss is no number."""
        return max(abs(ours - theirs) if ours == ours else float("inf") for ours, theirs in zip(self.losses, self.golden, strict=True))

    @property
    def same(self) -> bool:
        return self.farthest <= self.tolerance

    @property
    def parts_at(self) -> int:
        """The first step that is farther off than allowed, from 1; 0 where none is."""
        off = [abs(ours - theirs) <= self.tolerance for ours, theirs in zip(self.losses, self.golden, strict=True)]
        return off.index(False) + 1 if False in off else 0


def compare_with_golden(tell: Callable[[int], None] | None = None) -> Compared:
    """Trains on the GPU if there is one, otherwise on the processor in float32. `tell` hears of every step. Raises what training raises."""
    import torch

    from halfbyte.model.machine import look_at_machine, torch_device
    from halfbyte.recipe.plan import choose_precision

    machine = look_at_machine()
    precision = choose_precision("auto", machine).value
    kept = json.loads(CURVE.read_text(encoding="utf-8"))
    with torch.random.fork_rng(devices=[0] if machine.device == "cuda" else []):
        losses = train_losses(torch_device(machine), precision, tell=tell)
    tolerance = kept["tolerance"]["float32" if precision == "float32" else "16 bit"]
    return Compared(losses, kept["losses"], precision, tolerance)


def train_losses(device: Any, precision: str, tell: Callable[[int], None] | None = None, change: Callable[[Any], None] | None = None) -> list[float]:
    """The curve. `change` spoils the adapted model before the first step, for tests."""
    import torch

    from halfbyte.data.batches import make_batch
    from halfbyte.data.tokens import Tokens
    from halfbyte.model.adapter import add_adapter
    from halfbyte.model.base import find_base
    from halfbyte.model.load import load_base, load_tokenizer
    from halfbyte.model.precision import DTYPES
    from halfbyte.recipe.schema import NF4, Adapter
    from halfbyte.train.optimizer import make_optimizer
    from halfbyte.train.step import train_step

    base = find_base("embedded")
    tokenizer = load_tokenizer(base)
    loaded = load_base(base, NF4(), precision, device)
    model, _ = add_adapter(loaded.model, Adapter(r=8, alpha=16), SEED)
    if change is not None:
        change(model)
    text = SAMPLE.read_text(encoding="utf-8")
    pieces = [text[at : at + ROW_CHARACTERS] for at in range(0, STEPS_A_PASS * ROWS_A_STEP * ROW_CHARACTERS, ROW_CHARACTERS)]
    rows = [Tokens(tokenizer(piece, add_special_tokens=False)["input_ids"][:ROW_TOKENS], [True] * ROW_TOKENS, SAMPLE.name, 1) for piece in pieces]
    optimizer = make_optimizer("adamw_torch", model.parameters(), LEARNING_RATE, 0.0)
    dtype = DTYPES[precision]
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    model.train()
    losses = []
    for step in range(STEPS):
        first = step % STEPS_A_PASS * ROWS_A_STEP
        batch = make_batch(rows[first : first + ROWS_A_STEP], 0)
        losses.append(train_step(model, [batch], optimizer, 1.0, dtype, scaler).loss)
        if tell is not None:
            tell(step + 1)
    return losses
