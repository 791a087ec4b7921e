"""A disk that fills up at any moment of a run: is the last good checkpoint whole, does the message give sizes, is nothing left over?

    python benchmarks/disk_full.py [--results FOLDER]     as root on Linux, a few minutes; writes disk_full.json, claim disk-full-survived

The run folder lies on a tmpfs of fixed size, which is really full. In the sweep, one save after another meets 0, 4, 8 ... kB of room, from nothing to
what it needs, so that each write of it is the one that fails. In the runs, halfbyte.api.train is given the disk and something else fills it at an
event of the run: before the run (refused before a model is loaded), after the n-th step, and before the adapter is written. A run either goes on
to its end once there is room again, or stops with exit code 3 and one line; then there is room, and a resume must end with the adapter of the
undisturbed run. Where mounting is not allowed it says so and leaves with 77.
"""

import os

os.environ |= {"HF_HUB_OFFLINE": "1"}

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from claims import RESULTS, record, save_raw
from halfbyte import api
from halfbyte.errors import HalfbyteError, MachineError
from halfbyte.recipe.load import Loaded, parse_recipe
from halfbyte.runs import disk
from halfbyte.runs.folder import ADAPTER_WEIGHTS
from halfbyte.train.checkpoint import load_checkpoint, newest_checkpoint
from halfbyte.train.keeper import Keeper
from save_cut_points import content

PAGE = 4096
SIZE = 80 << 20
SAID = re.compile(r"disk full: needs [\d.]+ [kMG]?B, [\d.]+ [kMG]?B are free")
BALLAST = "ballast"
STEPS = 6
SKIPPED = 77


@contextmanager
def small_disk(place: Path, size: int = SIZE) -> Iterator[Path]:
    """Raises PermissionError where mounting is not allowed."""
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, room: int = 0) -> None:
    """Leaves about that much room, in whole pages."""
    free = disk.free_bytes(place)
    with open(place / BALLAST, "ab") as stream:
        stream.write(bytes(max(0, free - room)))


def empty(place: Path) -> None:
    (place / BALLAST).unlink(missing_ok=True)


def sweep(place: Path) -> list[dict[str, Any]]:
    """A save with every amount of room, until it fits."""
    found = []
    with small_disk(place, 1 << 20) as mounted:
        folder = mounted / "checkpoints"
        Keeper(folder, 2, print).insist(1, lambda: content(1), None)
        for pages in range(1000):
            fill(mounted, pages * PAGE)
            said: list[str] = []
            saved = Keeper(folder, 2, said.append).save(2, lambda: content(2), None)
            newest, passed_over = newest_checkpoint(folder)
            one = {"room": pages * PAGE, "saved": saved is not None, "said": said, "left_over": [path.name for path in folder.glob(".*")]}
            expected = 2 if saved else 1
            one["whole"] = newest is not None and not passed_over and load_checkpoint(newest).state["made"] == expected
            one["good"] = bool(one["whole"] and not one["left_over"] and (saved or SAID.search(said[0])))
            found.append(one)
            empty(mounted)
            if saved and not said:
                return found
    raise RuntimeError("it never fitted")


def recipe_of(base: Path, tale: Path) -> Loaded:
    text = (
        f"name: toy\nbase: {base}\ndata:\n  path: {tale}\n  max_length: 48\nadapter:\n  r: 4\n  dropout: 0.1\ntrain:\n  max_steps: {STEPS}\n"
        "  batch_size: 2\n  eval_steps: 1\nevaluate:\n  max_new_tokens: 2\n"
    )
    return parse_recipe(text, "toy.yaml", [])


def adapter_of(run: Path) -> str:
    return hashlib.sha256((run / "adapter" / ADAPTER_WEIGHTS).read_bytes()).hexdigest()


def one_run(recipe: Loaded, mounted: Path, full_at: Callable[[dict[str, Any]], bool], room_at: Callable[[dict[str, Any]], bool], room: int) -> dict[str, Any]:
    """A run whose disk fills up at one event, and is emptied at another; and what a resume makes of it, where it stopped."""
    runs = mounted / "runs"
    filled = False

    def hear(event: dict[str, Any]) -> None:
        nonlocal filled
        if not filled and full_at(event):
            filled = True
            fill(mounted, room)
        elif filled and room_at(event):
            empty(mounted)

    found: dict[str, Any] = {"room": room, "stopped": None, "exit": 0}
    try:
        api.train(recipe, runs, hear)
    except HalfbyteError as error:
        found |= {"stopped": error.message, "exit": error.exit_code, "is_machine": isinstance(error, MachineError)}
    run = runs / "toy"
    found["filled"] = filled
    found["left_over"] = sorted(str(path.relative_to(run)) for pattern in (".*.part", "*/.*.part", "*/.*.tmp-*") for path in run.glob(pattern))
    empty(mounted)
    newest, passed_over = newest_checkpoint(run / "checkpoints")
    found |= {"newest": newest.name if newest else None, "passed_over": passed_over}
    if found["stopped"]:
        api.resume(run)
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    found["notes"] = [event["message"] for event in events if event["event"] == "note" and "disk full" in event["message"]]
    found["adapter"] = adapter_of(run)
    subprocess.run(["rm", "-r", str(runs)], check=True)
    return found


def runs(scratch: Path) -> list[dict[str, Any]]:
    from toys import make_base

    base, tale = make_base(scratch / "base"), scratch / "tale.txt"
    tale.write_text("\n\n".join(f"{number}. " + "the keeper lit the lamp and the sea was quiet. " * 3 for number in range(16)), encoding="utf-8")
    recipe = recipe_of(base, tale)
    expected = adapter_of(api.train(recipe, scratch / "undisturbed").path)
    found = []
    with small_disk(scratch / "runs_disk") as mounted:
        fill(mounted, 1 << 20)
        try:
            api.train(recipe, mounted / "runs")
        except MachineError as error:
            found.append(
                {
                    "case": "full before the run",
                    "exit": error.exit_code,
                    "stopped": error.message,
                    "good": bool(re.search(r"need .*B, .*B are free", error.message)),
                }
            )
        else:
            found.append({"case": "full before the run", "good": False})
        empty(mounted)
        subprocess.run(["rm", "-rf", str(mounted / "runs")], check=True)

        def at_step(step: int) -> Callable[[dict[str, Any]], bool]:
            return lambda event: event["event"] == "step" and event["step"] == step

        def at(kind: str) -> Callable[[dict[str, Any]], bool]:
            return lambda event: event["event"] == kind

        def never(event: dict[str, Any]) -> bool:
            return False

        cases = [(f"full after step {step}, with {room // 1000} kB", at_step(step), never, room) for step in (1, 3, STEPS) for room in (0, 24 * PAGE)]
        cases += [("full after step 2, room after step 4", at_step(2), at_step(4), 24 * PAGE), ("full before the adapter", at("labels"), never, 0)]
        cases += [("full before the measurement", at("measuring"), never, 0), ("full before step 1", at("model"), never, 0)]
        for name, full_at, room_at, room in cases:
            one = {"case": name, **one_run(recipe, mounted, full_at, room_at, room)}
            told = one["stopped"] or " ".join(one["notes"])
            one["good"] = (
                one["filled"] and one["adapter"] == expected and not one["passed_over"] and not one["left_over"] and bool(SAID.search(told))
                and one["exit"] in (0, 3) and "\n" not in (one["stopped"] or "")
            )  # fmt: skip
            found.append(one)
            print(f"{'good' if one['good'] else 'BAD '} {name}: exit {one['exit']}, {one['stopped'] or one['notes']}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        os.environ["HALFBYTE_CACHE"] = str(scratch / "cache")
        try:
            saves = sweep(scratch / "saves_disk")
        except PermissionError as error:
            print(error)
            sys.exit(SKIPPED)
        print(f"{sum(one['good'] for one in saves)} of {len(saves)} saves with 0 to {saves[-1]['room'] // 1024} kB of room")
        whole_runs = runs(scratch)
    good, of = sum(one["good"] for one in [*saves, *whole_runs]), len(saves) + len(whole_runs)
    print(f"{good} of {of}")
    raw = json.dumps({"saves": saves, "runs": whole_runs}, ensure_ascii=False).replace(place, "")
    save_raw("disk_full.json", json.loads(raw), args.results)
    record("disk-full-survived", good / of, f"share of {of}", args.results)
    sys.exit(good < of)


if __name__ == "__main__":
    main()
