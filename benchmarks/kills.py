"""kill -9 at random moments of a run, then a resume: is it always possible, is a completed checkpoint ever lost, is the adapter the same to the bit?

    python benchmarks/kills.py [--n 1000] [--at-once 2] [--path api|loop|beside] [--results FOLDER]

A toy of 115,000 weights (projections in NF4) with dropout and accumulation, 24 steps, a checkpoint at every second. `api` is the user's way: halfbyte.api.train
from the file to the report is killed, halfbyte.api.resume goes on to the end (or train starts anew, where the kill came before the run had a
plan). `loop` is the training loop with its lock, events and checkpoints alone, on a model that is already loaded; it is quicker, for CI.
`beside` is `loop` with checkpoints that a thread writes beside the steps, as on a GPU.
Children are forked from a process that has imported everything. The moment is drawn evenly over what an uninterrupted run takes then (measured
again every 25 kills, since a machine that does other work as well is slower); a child that was done before its kill is drawn again. Each kill is
a line of kills.jsonl as soon as it is judged, so that a call goes on where an earlier one was stopped. Claim kills-bit-identical, from `api` alone.
"""

import os

# Before torch. Children are forked, which neither threads nor a GPU would survive.
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

import argparse
import hashlib
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from claims import RESULTS, record, save_raw
from halfbyte import api
from halfbyte.recipe.load import parse_recipe
from halfbyte.recipe.schema import Adapter, Train
from halfbyte.runs.events import EventLog
from halfbyte.runs.folder import ADAPTER_WEIGHTS, RunFolder, new_run
from halfbyte.train.checkpoint import newest_checkpoint
from halfbyte.train.loop import Hooks, run_training

STEPS, EVERY = 24, 2
LINES = "kills.jsonl"
AGAIN = 25
RUN = "toy"
Way = Callable[[Path], None]
"""Trains in a folder for runs: from the start, or from what is there."""


@dataclass(frozen=True)
class Subject:
    start: Way
    go_on: Way
    adapter: str
    """sha256 of what an uninterrupted run leaves."""


def the_user(scratch: Path) -> Subject:
    from toys import make_base

    base = make_base(scratch / "base")
    tale = scratch / "tale.txt"
    tale.write_text("\n\n".join(f"{number}. " + "the keeper lit the lamp and the sea was quiet. " * 3 for number in range(16)), encoding="utf-8")
    recipe = (
        f"name: toy\nbase: {base}\ndata:\n  path: {tale}\n  max_length: 48\n  test_share: 0\nadapter:\n  r: 4\n  dropout: 0.1\n"
        f"train:\n  max_steps: {STEPS}\n  batch_size: 1\n  gradient_accumulation_steps: 2\n  eval_steps: {EVERY}\n  learning_rate: 1e-2\n"
        "evaluate:\n  max_new_tokens: 2\n"
    )

    def start(runs: Path) -> None:
        api.train(parse_recipe(recipe, "toy.yaml", []), runs)

    def go_on(runs: Path) -> None:
        whole = [path for path in sorted(runs.glob("toy*")) if (path / "plan.json").is_file()]
        if whole:
            api.resume(whole[-1])
        else:
            start(runs)

    start(scratch / "warm")  # here, so that children find everything imported
    return Subject(start, go_on, straight(start, scratch))


def the_loop(scratch: Path, background: bool = False) -> Subject:
    from toy_training import PAD, adapted, random_rows, toy_plan
    from toys import make_base

    section = Train(learning_rate=2e-2, batch_size=1, gradient_accumulation_steps=2)
    rows = random_rows([9, 22, 14, 30, 6, 17, 25, 12, 19, 8, 11])
    plan = toy_plan(len(rows), section, STEPS, eval_steps=EVERY)
    model = adapted(make_base(scratch / "base"), Adapter(r=4, dropout=0.1))

    def train(run: RunFolder) -> None:
        from safetensors.torch import save_file

        from halfbyte.model.adapter import adapter_state

        with run.locked():
            path, _ = newest_checkpoint(run.checkpoints, RUN)
            hooks = Hooks(None, EventLog(run.events).append)
            run_training(model, rows, plan, section, 0, PAD, run.checkpoints, hooks, path, run_id=RUN, background=background)
            run.adapter.mkdir(exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in adapter_state(model).items()}, run.adapter / ADAPTER_WEIGHTS)
            run.seal_adapter()

    def start(runs: Path) -> None:
        with new_run(runs, "toy") as run:
            run.write_plan({})
        train(run)

    def go_on(runs: Path) -> None:
        whole = [path for path in sorted(runs.glob("toy*")) if (path / "plan.json").is_file()]
        if whole:
            train(RunFolder(whole[-1]))
        else:
            start(runs)

    return Subject(start, go_on, straight(start, scratch))


SUBJECTS = {"api": the_user, "loop": the_loop, "beside": partial(the_loop, background=True)}


def straight(start: Way, scratch: Path) -> str:
    """Twice, since a figure that does not repeat itself could not be lost by a kill either. In children: this process stays as it is."""
    seen = []
    for number in range(2):
        runs = scratch / f"straight-{number}"
        waited = wait(begin(start, runs))
        if waited:
            raise RuntimeError(f"the uninterrupted run failed: {(runs / 'error').read_text()}")
        seen.append(adapter_of(runs))
    if seen[0] is None or seen[0] != seen[1]:
        raise RuntimeError(f"two uninterrupted runs differ: {seen}")
    return seen[0]


def begin(way: Way, runs: Path) -> int:
    """A child that goes that way. What it raises is left in `runs`/error."""
    runs.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        sink = os.open(runs / "printed", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        way(runs)
        code = 0
    except BaseException:  # noqa: BLE001 - the child ends here, whatever it was
        (runs / "error").write_text(traceback.format_exc(), encoding="utf-8")
    finally:
        os._exit(code)


def wait(child: int) -> int:
    return os.waitpid(child, 0)[1]


def adapter_of(runs: Path) -> str | None:
    """Of the run with a sealed adapter; None without one."""
    done = [path for path in sorted(runs.glob("toy*")) if (path / "adapter.sha256").is_file()]
    return hashlib.sha256((done[-1] / "adapter" / ADAPTER_WEIGHTS).read_bytes()).hexdigest() if done else None


def told(runs: Path, kind: str) -> list[int]:
    """Steps of an event's kind in the last run; a line that was cut off is no event."""
    steps = []
    for path in sorted(runs.glob("toy*"))[-1:]:
        for line in (path / "events.jsonl").read_text(encoding="utf-8").splitlines() if (path / "events.jsonl").is_file() else []:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event["event"] == kind:
                steps.append(event["step"])
    return steps


def left_overs(runs: Path) -> list[str]:
    return sorted(str(path.relative_to(runs)) for pattern in ("*/.*.part", "*/*/.*.part", "*/*/.*.tmp-*", "*/*/*.new") for path in runs.glob(pattern))


def kill_once(subject: Subject, runs: Path, after: float) -> dict[str, Any] | None:
    """One kill, judged; None where the run had ended before."""
    child = begin(subject.start, runs)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    if os.WIFEXITED(wait(child)):
        return None
    planned = any((path / "plan.json").is_file() for path in runs.glob("toy*"))
    found: dict[str, Any] = {
        "after_s": round(after, 3), "planned": planned, "steps": len(told(runs, "step")), "told": max(told(runs, "checkpoint"), default=0),
        "left_by_kill": left_overs(runs), "sealed": adapter_of(runs) is not None,
    }  # fmt: skip
    failed = wait(begin(subject.go_on, runs))
    found["resumed_from"] = max(told(runs, "resume"), default=0)
    # What is finished is left as it is: nothing is resumed, and nothing lost.
    found["lost"] = max(0, found["told"] - found["resumed_from"]) if len(told(runs, "step")) > found["steps"] or not found["sealed"] else 0
    found["error"] = (runs / "error").read_text()[-2000:] if failed else None
    found["identical"] = not failed and adapter_of(runs) == subject.adapter
    found["left_over"] = left_overs(runs)
    return found


def work(subject: Subject, scratch: Path, lines: Path, wanted: int, seed: int) -> None:
    """Kills until the file has as many lines as are wanted; others write to it too."""
    draw, takes = random.Random(seed), 0.0
    for number in range(10**9):
        if count(lines) >= wanted:
            return
        runs = scratch / f"{os.getpid()}-{number}"
        if number % AGAIN == 0:
            began = time.monotonic()
            wait(begin(subject.start, runs))
            takes = time.monotonic() - began
        else:
            found = kill_once(subject, runs, draw.uniform(0, takes))
            if found is not None:
                with open(lines, "a", encoding="utf-8") as stream:
                    stream.write(json.dumps(found) + "\n")
                if found["error"] or not found["identical"] or found["lost"]:
                    continue  # kept, to be looked at
        shutil.rmtree(runs)


def count(lines: Path) -> int:
    return len(lines.read_text(encoding="utf-8").splitlines()) if lines.is_file() else 0


def kill_many(make: Callable[[Path], Subject], lines: Path, wanted: int, at_once: int) -> list[dict[str, Any]]:
    """All kills of the file, of which there are at least as many as wanted."""
    torch.set_num_threads(1)
    scratch = Path(tempfile.mkdtemp(prefix="kills-"))
    os.environ["HALFBYTE_CACHE"] = str(scratch / "cache")
    subject = make(scratch)
    children = []
    for _ in range(at_once):
        seed = random.SystemRandom().randrange(2**32)
        child = os.fork()
        if not child:
            try:
                work(subject, scratch, lines, wanted, seed)
            except BaseException:  # noqa: BLE001 - told by the parent
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    if any([wait(child) for child in children]):
        raise RuntimeError("a worker failed; its traceback stands above")
    found = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    if all(one["identical"] and not one["error"] and not one["lost"] for one in found):
        shutil.rmtree(scratch)
    else:
        print(f"what failed lies in {scratch}")
    return found


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    where = Counter(
        "before the run had a plan" if not one["planned"] else "before the first checkpoint" if not one["told"]
        else "after the adapter was sealed" if one["sealed"] else "after the last step" if one["steps"] >= STEPS else "between checkpoints"
        for one in found
    )  # fmt: skip
    return {
        "kills": len(found), "resumed": sum(not one["error"] for one in found), "identical": sum(one["identical"] for one in found),
        "completed_checkpoints_lost": sum(one["lost"] > 0 for one in found), "with_left_overs_after_resume": sum(bool(one["left_over"]) for one in found),
        "in_the_middle_of_a_write": sum(bool(one["left_by_kill"]) for one in found), "where": dict(where), "steps": STEPS, "checkpoint_every": EVERY,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--path", choices=sorted(SUBJECTS), default="api")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    lines = args.results / (LINES if args.path == "api" else f"kills_{args.path}.jsonl")
    found = kill_many(SUBJECTS[args.path], lines, args.n, args.at_once)
    said = summary(found)
    print(json.dumps(said, indent=1))
    if args.path == "api":
        save_raw("kills.json", said, args.results)
        record("kills-bit-identical", said["identical"], f"of {said['kills']}", args.results)
    sys.exit(said["identical"] < said["kills"] or said["completed_checkpoints_lost"] > 0 or said["with_left_overs_after_resume"] > 0)


if __name__ == "__main__":
    main()
