"""Every write, fsync, rename, unlink, mkdir and rmdir of one save fails once and kills the process once: is what is there always usable?

    python benchmarks/save_cut_points.py [--results FOLDER]     a minute; writes save_cut_points.json, claim save-cut-points-recovered

Two saves: the first of a folder, and the hardest one: the step has a checkpoint already (it is replaced), an older one goes (pruning), the best
moves, and a killed save has left its folder. Files are written in pieces of 2 kB, so that they are cut in their middle too, and a write that fails
or dies has written half. After each cut: every checkpoint that verifies is to the bit one that was saved, the newest is the one before or the new
one, and `latest` and `best` name whole ones. Then the save is done again and must leave what an undisturbed one leaves.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from claims import RESULTS, record, save_raw
from halfbyte.errors import MachineError
from halfbyte.runs import disk
from halfbyte.train.checkpoint import Checkpoint, checkpoints_in, load_checkpoint, newest_checkpoint, step_of, verify_checkpoint
from halfbyte.train.keeper import BEST, LATEST, Keeper, read_pointer
from toy_disk import Counted, die, full

PIECE = 2048
DIED = 77
STEP, BEST_BEFORE = 6, 2


def content(number: int) -> Checkpoint:
    """Told apart by its number."""
    numbers = torch.full((700,), float(number))
    moments = {0: {"step": torch.tensor(float(number)), "exp_avg": numbers, "exp_avg_sq": numbers + 1}}
    return Checkpoint({"weight": numbers}, {"state": moments, "param_groups": [{"lr": 0.1, "params": [0]}]}, {"made": number})


def first_save(folder: Path) -> None:
    folder.mkdir()


def hardest_save(folder: Path) -> None:
    """Steps 2 (best), 4, 5 and an older 6; two are kept."""
    folder.mkdir()
    keeper = Keeper(folder, 9, print)
    for step in (BEST_BEFORE, 4, 5, STEP):
        keeper.insist(step, lambda step=step: content(step), BEST_BEFORE)
    (folder / ".step-6.tmp-dead").mkdir()
    (folder / ".step-6.tmp-dead" / "adapter.safetensors").write_bytes(b"half")


STARTS = {"first": first_save, "replaced, pruned, best moved": hardest_save}


def save(folder: Path, said: Callable[[str], None]) -> None:
    """What the loop does at step 6, which is now the best."""
    Keeper(folder, 2, said).insist(STEP, lambda: content(100), STEP)


def cut(folder: Path, at: int, do: Callable[[], None], said: list[str]) -> tuple[bool, list[str]]:
    """Whether the save ended well, and the calls up to then; in a child where it is to die."""
    counted = Counted(at, do)
    if do is die:
        child = os.fork()
        if not child:
            try:
                disk.os = counted
                save(folder, said.append)
            except BaseException:  # noqa: BLE001 - told by the parent
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code not in (0, DIED):
            raise RuntimeError(f"the save of call {at} ended with {code}")
        return code == 0, []
    real = disk.os
    disk.os = counted
    try:
        save(folder, said.append)
    except MachineError as error:
        said.append(error.message)
        return False, counted.calls
    finally:
        disk.os = real
    return True, counted.calls


def wrong(folder: Path, before: int | None) -> str | None:
    """What a user could stumble on, or None."""
    for path in checkpoints_in(folder):
        try:
            verify_checkpoint(path)
        except Exception:  # noqa: BLE001 - what does not verify does not exist
            continue
        made = load_checkpoint(path).state["made"]
        if made not in (step_of(path), 100) or not bool((load_checkpoint(path).adapter["weight"] == made).all()):
            return f"{path.name} holds what was made as {made}"
    newest, _ = newest_checkpoint(folder)
    made = None if newest is None else load_checkpoint(newest).state["made"]
    if made not in (before, 100):
        return f"the newest is {newest}, made as {made}"
    for name in (LATEST, BEST):
        named = read_pointer(folder, name)
        at = None if named is None else [one for one in (folder / named, folder / named.removesuffix(".new"), folder / f"{named}.new") if one.is_dir()]
        if at is not None and not any(not raises(one) for one in at):
            return f"{name} names {named}, which is not whole"
    return None


def raises(path: Path) -> bool:
    try:
        verify_checkpoint(path)
    except Exception:  # noqa: BLE001
        return True
    return False


def what_is_there(folder: Path) -> dict[str, Any]:
    made = {path.name: load_checkpoint(path).state["made"] for path in checkpoints_in(folder)}
    others = sorted(path.name for path in folder.iterdir() if not path.is_dir())
    return {"made": made, "files": {name: read_pointer(folder, name) for name in others}, "aside": sorted(path.name for path in folder.glob(".*"))}


def sweep(scratch: Path) -> dict[str, Any]:
    disk.PIECE = PIECE
    found: dict[str, Any] = {}
    for name, start in STARTS.items():
        before = scratch / "before"
        start(before)
        newest = newest_checkpoint(before)[0]
        made = None if newest is None else load_checkpoint(newest).state["made"]
        undisturbed = scratch / "undisturbed"
        shutil.copytree(before, undisturbed)
        _, calls = cut(undisturbed, -1, full, [])
        expected = what_is_there(undisturbed)
        cuts = []
        for how in (full, die):
            for at in range(1, len(calls) + 1):
                folder, said = scratch / "cut", []
                shutil.copytree(before, folder)
                ended, _ = cut(folder, at, how, said)
                seen = wrong(folder, made)
                aside = sorted(path.name for path in folder.glob(".*"))
                if how is full and not ended and aside:
                    seen = seen or f"left {aside}"
                if seen is None:
                    save(folder, said.append)
                    after = what_is_there(folder)
                    seen = None if after == expected else f"after the next save there is {after}"
                cuts.append({"call": at, "is": calls[at - 1], "how": "fails" if how is full else "kills", "saved": ended, "wrong": seen, "said": said})
                shutil.rmtree(folder)
        for folder in (before, undisturbed):
            shutil.rmtree(folder)
        found[name] = {"calls": dict(Counter(calls)), "cuts": cuts}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = json.loads(json.dumps(sweep(Path(scratch))).replace(scratch, ""))
    cuts = [one for start in found.values() for one in start["cuts"]]
    recovered = sum(one["wrong"] is None for one in cuts)
    for name, start in found.items():
        print(f"{name}: {sum(start['calls'].values())} calls {start['calls']}")
    for one in cuts:
        if one["wrong"]:
            print(one)
    print(f"{recovered} of {len(cuts)} recovered")
    save_raw("save_cut_points.json", found, args.results)
    record("save-cut-points-recovered", recovered / len(cuts), f"share of {len(cuts)}", args.results)
    sys.exit(recovered < len(cuts))


if __name__ == "__main__":
    main()
