"""One flipped bit, a cut, a swap or a missing file, in anything that a resume or a user of the adapter reads: is it noticed before it is used?

    python benchmarks/bit_flips.py [--flips 1000] [--results FOLDER]     a minute; writes bit_flips.json, claim bit-flips-detected

A toy run is made by halfbyte.api.train. The flips are spread over the files of its newest checkpoint, the final adapter and its seal, evenly over the
files and at random bits of each. The question is asked the user's way: for a checkpoint, does newest_checkpoint (what a resume starts with) name the
damage and take the one before; for the adapter, does RunFolder.check_adapter (what evaluate, chat and compare start with) refuse. Beside them:
the small files cut at every length and the large ones at 200; each file taken from an older checkpoint and from one of another run; whole
folders under another step's name or from another run; files missing.
"""

import os

os.environ |= {"HF_HUB_OFFLINE": "1"}

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from claims import RESULTS, record, save_raw
from halfbyte import api
from halfbyte.errors import IntegrityError
from halfbyte.recipe.load import parse_recipe
from halfbyte.runs.folder import ADAPTER_WEIGHTS, RunFolder
from halfbyte.runs.manifest import read_manifest
from halfbyte.train.checkpoint import FILES, MANIFEST, checkpoints_in, newest_checkpoint

SMALL = 4096
CUTS = 200
SEED = 6


@dataclass
class Tally:
    """What was tried and what passed unnoticed, by kind."""

    tried: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)

    def add(self, kind: str, noticed: bool, what: str) -> None:
        self.tried[kind] += 1
        if not noticed:
            self.missed.append(f"{kind}: {what}")


def make_run(folder: Path, base: Path, seed: int = 0) -> RunFolder:
    tale = folder / "tale.txt"
    tale.write_text("\n\n".join(f"{number}. " + "the keeper lit the lamp and the sea was quiet. " * 3 for number in range(16)), encoding="utf-8")
    recipe = (
        f"name: toy\nbase: {base}\nseed: {seed}\ndata:\n  path: {tale}\n  max_length: 48\nadapter:\n  r: 4\ntrain:\n  max_steps: 4\n  batch_size: 2\n"
        "  eval_steps: 1\n  keep_checkpoints: 4\nevaluate:\n  max_new_tokens: 2\n"
    )
    return api.train(parse_recipe(recipe, "toy.yaml", []), folder / "runs")


class Trial:
    """A run whose files are damaged one at a time and put back."""

    def __init__(self, run: RunFolder) -> None:
        self.run, self.id = run, read_manifest(run.path)["id"]
        *_, self.before, self.newest = checkpoints_in(run.checkpoints)
        if newest_checkpoint(run.checkpoints, self.id) != (self.newest, []):
            raise RuntimeError("the run is damaged before anything was done to it")
        run.check_adapter()

    def checkpoint_noticed(self) -> bool:
        """The damage is named and the one before is what a resume would take."""
        path, passed_over = newest_checkpoint(self.run.checkpoints, self.id)
        return path == self.before and len(passed_over) == 1 and self.newest.name in passed_over[0]

    def adapter_noticed(self) -> bool:
        try:
            self.run.check_adapter()
        except IntegrityError:
            return True
        return False

    def files(self) -> list[tuple[Path, Callable[[], bool]]]:
        adapter = [self.run.adapter / ADAPTER_WEIGHTS, self.run.adapter_hash]
        return [(self.newest / name, self.checkpoint_noticed) for name in (*FILES, MANIFEST)] + [(file, self.adapter_noticed) for file in adapter]


def flip(trial: Trial, flips: int, tally: Tally) -> None:
    draw = random.Random(SEED)
    files = trial.files()
    for number in range(flips):
        file, noticed = files[number % len(files)]
        raw = file.read_bytes()
        bit = draw.randrange(8 * len(raw))
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        tally.add(f"flip in {file.name}", noticed(), f"bit {bit}")
        file.write_bytes(raw)


def cut(trial: Trial, tally: Tally) -> None:
    for file, noticed in trial.files():
        raw = file.read_bytes()
        lengths = range(len(raw)) if len(raw) <= SMALL else sorted({len(raw) * part // CUTS for part in range(CUTS)} | {len(raw) - 1})
        for length in lengths:
            file.write_bytes(raw[:length])
            tally.add(f"{file.name} cut", noticed(), f"at {length} of {len(raw)}")
        file.write_bytes(raw)


def swap(trial: Trial, other: RunFolder, tally: Tally) -> None:
    """With what is whole in itself, but of another step or another run."""
    *_, older_there, newest_there = checkpoints_in(other.checkpoints)
    for name in (*FILES, MANIFEST):
        raw = (trial.newest / name).read_bytes()
        for source in (trial.before, newest_there):
            (trial.newest / name).write_bytes((source / name).read_bytes())
            tally.add("file of another checkpoint", trial.checkpoint_noticed(), f"{name} of {source}")
        (trial.newest / name).write_bytes(raw)
    aside = trial.newest.with_name("aside")
    trial.newest.rename(aside)
    for source in (trial.before, newest_there, older_there):
        shutil.copytree(source, trial.newest)
        tally.add("folder of another checkpoint", trial.checkpoint_noticed(), str(source))
        shutil.rmtree(trial.newest)
    aside.rename(trial.newest)
    weights = trial.run.adapter / ADAPTER_WEIGHTS
    raw = weights.read_bytes()
    weights.write_bytes((other.adapter / ADAPTER_WEIGHTS).read_bytes())
    tally.add("adapter of another run", trial.adapter_noticed(), "adapter")
    weights.write_bytes(raw)


def miss(trial: Trial, tally: Tally) -> None:
    for name in (*FILES, MANIFEST):
        aside = (trial.newest / name).rename(trial.newest.parent / "aside")
        tally.add("file missing", trial.checkpoint_noticed(), name)
        aside.rename(trial.newest / name)


def measure(scratch: Path, flips: int) -> Tally:
    from toys import make_base

    os.environ["HALFBYTE_CACHE"] = str(scratch / "cache")
    base = make_base(scratch / "base")
    (scratch / "other").mkdir()
    trial, other = Trial(make_run(scratch, base)), make_run(scratch / "other", base, seed=1)
    tally = Tally()
    flip(trial, flips, tally)
    cut(trial, tally)
    swap(trial, other, tally)
    miss(trial, tally)
    Trial(trial.run)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        tally = measure(Path(scratch), args.flips)
    flips = sum(count for kind, count in tally.tried.items() if kind.startswith("flip"))
    silent = [one for one in tally.missed if one.startswith("flip")]
    for kind, count in sorted(tally.tried.items()):
        print(f"{count:6} {kind}")
    print("\n".join(tally.missed) or "all noticed")
    save_raw("bit_flips.json", {"tried": dict(sorted(tally.tried.items())), "missed": tally.missed, "seed": SEED}, args.results)
    record("bit-flips-detected", flips - len(silent), f"of {flips}", args.results)
    sys.exit(bool(tally.missed))


if __name__ == "__main__":
    main()
