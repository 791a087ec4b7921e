"""Times halfbyte and its peers on the same 4-bit bytes, adapter values, optimizer and tokens, and checks that they computed the same.

    python benchmarks/suite.py [--configurations 4x2048 1x2048] [--programs ours hf unsloth-off] [--budget-seconds 570] [--peers FOLDER]
    python benchmarks/suite.py --tables     only writes docs/performance.md, its picture and the claims anew, from what was measured
    python benchmarks/suite.py --device cpu --shape toy --anchor 2x64 --configurations 2x64 --programs ours hf     all of it in half a minute

A cell is a configuration and a program. Each runs in a process of its own, leaves benchmarks/results/suite/CONFIGURATION--PROGRAM.json
and is not run again. One call of this command is a sitting: it times the ANCHORS first, so that cells of different sittings can be
compared. A program that is not installed, fails, runs out of memory or out of time leaves a cell that says so.

Where time on the machine is short, cells whose model is the same share a process, which loads it once:

    python benchmarks/suite.py --together --no-anchors --warm-caches --warm-up 5 --timed 8 --repeats 1 --again --programs fast lean unsloth ...

Packed rows are ROWSxTOKENS:LENGTHS, such as 1x8192:alpaca, with documents of the lengths in row_lengths.json.

    python benchmarks/suite.py --together --no-anchors --warm-caches --cells 4x2048--lean=8 4x2048--unsloth=8 1x2048--fast 1x2048--unsloth-off

runs these cells and no others; after =, the gigabytes that PyTorch may take of the GPU.
"""

import argparse
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from claims import RESULTS, save_raw
from programs import GRIDS, PROGRAMS, RANK, SHAPE, Configuration, Steps, configuration_of
from suite_claims import record_ratios
from suite_table import REFERENCES, load_cells, markdown, record_claims, write_page

ROOT = Path(__file__).parent.parent
ANCHORS = ("ours", "unsloth-off")
# Of a cell before any was measured: start, load, and 70 steps of the slowest program that was timed on a 7B shape (1.2 s a step on an H200).
UNKNOWN_CELL_SECONDS = 150.0
MARGIN = 1.1  # a cell may take this much longer than the one it is judged by
BESIDE_SECONDS = 10.0  # what a cell takes beside its steps where its model is loaded, before any such cell was measured
FEWEST_WARM_UP = 5
# A process that was stopped for the budget says nothing about its program.
BUDGET_SPENT = "budget spent"


@dataclass(frozen=True)
class Job:
    """A cell to be measured."""

    configuration: Configuration
    program: str
    steps: Steps
    anchor: bool = False
    done: bool = False
    """It is there; an anchor is timed once more."""
    budget_bytes: int | None = None

    @property
    def name(self) -> str:
        return f"{self.configuration.name}--{self.program}"


LAST_LINE = re.compile(r"^(?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt|Exit|Unfit)\b.*")


def sit(args: argparse.Namespace) -> None:
    """One sitting: the anchors, then every cell that is not there yet, until the budget is spent."""
    deadline = time.monotonic() + args.budget_seconds
    folder = args.results / "suite"
    sitting: dict[str, Any] = {"sitting": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "anchored_on": args.anchor.name, "anchors": {}}
    jobs = jobs_of(args, folder)
    if failed := write_given(args, {job.configuration for job in jobs}):
        sys.exit(f"what the programs are given could not be written: {failed}")
    for group in grouped(jobs) if args.together else [[job] for job in jobs]:
        chosen: list[Job] = []
        left = deadline - time.monotonic()
        for job in group:
            needed = MARGIN * expected_seconds(load_cells(folder), job.configuration, job.program, job.steps, beside=bool(chosen))
            if needed > left:
                print(f"{job.name}: not begun: it takes about {needed:.0f} s and {left:.0f} s of the budget are left", flush=True)
                continue
            left -= needed
            chosen.append(job)
        for job, measured in run_jobs(args, chosen, deadline):
            cell = {**measured, "sitting": sitting["sitting"]}
            again = ", the anchor again" if job.done else ""
            print(f"{job.name}{again}: {in_short(cell)}; {deadline - time.monotonic():.0f} s left", flush=True)
            if cell["reason"] == BUDGET_SPENT:
                continue
            if not job.done:
                save_raw(f"{job.name}.json", cell, folder)
            if job.anchor and cell["status"] == "measured":
                sitting |= {"where": cell["where"], "versions": cell["versions"]}
                sitting["anchors"][job.program] = {key: cell[key] for key in ("tokens_per_second", "median_ms", "repeat_medians_ms", "gpu")}
                save_sitting(folder, sitting)
    cells = load_cells(folder)
    print(markdown(cells, load_sittings(folder)))
    record_claims(cells, args.results)
    record_ratios(cells, args.results)


def jobs_of(args: argparse.Namespace, folder: Path) -> list[Job]:
    """The anchors first; then the program that losses and bytes are compared with before those that are compared."""
    if args.cells:
        steps = Steps(args.warm_up, args.timed, args.repeats)
        return [Job(configuration, name, steps, budget_bytes=budget) for configuration, name, budget in args.cells]
    anchors = [(args.anchor, name) for name in ANCHORS] if args.anchors else []
    others = [(configuration, name) for configuration in args.configurations for name in sorted(args.programs, key=lambda name: name not in REFERENCES[:2])]
    jobs = []
    for configuration, name in dict.fromkeys([*anchors, *others]):
        file = folder / f"{configuration.name}--{name}.json"
        earlier = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        # A package that was missing may be there now, and to look costs a moment.
        done = earlier is not None and earlier["status"] != "missing" and not (args.again and (configuration, name) in others)
        anchor = (configuration, name) in anchors
        if not done or (anchor and earlier["status"] == "measured"):
            jobs.append(Job(configuration, name, Steps(args.warm_up, args.timed, 1 if done else args.repeats), anchor, done))
    return jobs


ASKED = re.compile(r"(?P<grid>\d+x\d+(:\w+)?)--(?P<program>[\w-]+?)(=(?P<gigabytes>[\d.]+))?")


def asked_cell(words: str, shape: str, rank: int) -> tuple[Configuration, str, int | None]:
    """Of one word of --cells, with the bytes of its limit. Raises ValueError."""
    found = ASKED.fullmatch(words)
    if found is None or found["program"] not in PROGRAMS:
        raise ValueError(f"--cells {words}: a cell is ROWSxTOKENS[:LENGTHS]--PROGRAM[=GB], such as 4x2048--unsloth=8")
    return configuration_of(shape, found["grid"], rank), found["program"], int(float(found["gigabytes"]) * 1e9) if found["gigabytes"] else None


def write_given(args: argparse.Namespace, configurations: set[Configuration]) -> str | None:
    """What the programs are given, where it is not there yet; the reason if that failed."""
    unwritten = [asdict(configuration) for configuration in configurations if not configuration.is_written(args.scratch)]
    return in_own_process(args, {"write": unwritten}, "write", args.limit_seconds) if unwritten else None


def grouped(jobs: list[Job]) -> list[list[Job]]:
    """Jobs that can share a process, in the order of the first of each group."""
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        groups.setdefault(PROGRAMS[job.program].process, []).append(job)
    return list(groups.values())


def run_jobs(args: argparse.Namespace, jobs: list[Job], deadline: float) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Each with its cell. A cell that fails ends its process, and those after it are run in another."""
    while jobs:
        cells = run_cells(args, jobs, deadline - time.monotonic()) if len(jobs) > 1 else [run_cell(args, jobs[0], deadline - time.monotonic())]
        yield from zip(jobs, cells, strict=False)
        jobs = [] if cells[-1]["reason"] == BUDGET_SPENT else jobs[len(cells) :]


def expected_seconds(cells: list[dict[str, Any]], configuration: Configuration, name: str, steps: Steps, beside: bool = False) -> float:
    """What this cell took before; else the slowest of its configuration; else the slowest of all; else a guess. `beside`: its model is loaded."""
    measured = [cell for cell in cells if cell["status"] == "measured"]
    alike = [cell for cell in measured if cell["configuration"]["name"] == configuration.name]
    own = [cell for cell in alike if cell["program"] == name]
    near = own or alike or measured
    if not near:
        return UNKNOWN_CELL_SECONDS
    if beside:
        return min(BESIDE_SECONDS, *map(without_steps, near)) + steps.total * max(cell["median_ms"] for cell in near) / 1e3
    return max(without_steps(cell) + steps.total * cell["median_ms"] / 1e3 for cell in near)


def without_steps(cell: dict[str, Any]) -> float:
    """Start, load, compiling: the wall time of a cell less its steps."""
    return cell["wall_seconds"] - (cell["warm_up_steps"] + sum(map(len, cell["times_ms"]))) * cell["median_ms"] / 1e3


def run_cell(args: argparse.Namespace, job: Job, left: float) -> dict[str, Any]:
    """The cell as it is saved, whatever became of its process."""
    return run_cells(args, [job], left)[0]


def run_cells(args: argparse.Namespace, jobs: list[Job], left: float) -> list[dict[str, Any]]:
    """Cells in one process, in order: all of them, or those up to the first that failed."""
    outs = [args.scratch / f"cell-{number}.json" for number in range(len(jobs))]
    for out in outs:
        out.unlink(missing_ok=True)
    began = time.monotonic()
    tasks = [
        {"program": job.program, "configuration": asdict(job.configuration), "steps": asdict(job.steps), "budget_bytes": job.budget_bytes, "out": str(out)}
        for job, out in zip(jobs, outs, strict=True)
    ]
    name = jobs[0].name if len(jobs) == 1 else f"{jobs[0].name}-and-{len(jobs) - 1}-more"
    failed = in_own_process(args, {"program": jobs[0].program, "cells": tasks}, name, left, len(jobs))
    measured = [json.loads(out.read_text(encoding="utf-8")) for out in outs if out.is_file()]  # what was measured stands, however the process ended
    rest = time.monotonic() - began - sum(one["own_seconds"] for one in measured)  # the start; or what failed
    cells = [as_saved(args, job, None, one["own_seconds"], one) for job, one in zip(jobs, measured, strict=False)]
    if len(measured) < len(jobs):
        cells.append(as_saved(args, jobs[len(measured)], failed or "ended without a result", rest, {}))
    else:
        cells[0]["wall_seconds"] += rest
    return cells


def as_saved(args: argparse.Namespace, job: Job, failed: str | None, seconds: float, measured: dict[str, Any]) -> dict[str, Any]:
    return {
        "configuration": {"name": job.configuration.name, **asdict(job.configuration)}, "program": job.program, "about": PROGRAMS[job.program].about,
        "status": how_it_failed(failed) if failed else "measured", "reason": failed, **measured, "wall_seconds": seconds,
        "compile_caches": "kept from cell to cell" if args.warm_caches or args.together else "empty at the start",
    }  # fmt: skip


def how_it_failed(reason: str) -> str:
    if "out of memory" in reason.lower():
        return "out of memory"
    kind = reason.split(":")[0]
    return {"ModuleNotFoundError": "missing", "time limit": "timed out"}.get(kind, "failed")


def in_own_process(args: argparse.Namespace, task: dict[str, Any], name: str, left: float, cells: int = 1) -> str | None:
    """Runs one task, of so many cells; the reason in one line if it failed. Its output is kept in the scratch folder."""
    # Compilers load what they write, which /dev/shm often forbids (noexec); and Unsloth writes into the folder that it is started in.
    work = Path(tempfile.gettempdir()) / f"halfbyte-suite-{'kept' if args.warm_caches else name}"
    work.mkdir(exist_ok=True)
    log = args.scratch / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    longest = args.limit_seconds * cells
    limit = min(longest, left)
    given = json.dumps({**task, "scratch": str(args.scratch), "device": args.device})
    command = [sys.executable, str(Path(__file__).resolve()), "--task", given]
    with open(log, "w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, cwd=work, env=environment(args, task, work), start_new_session=True)
        try:
            process.wait(limit)
            reason = None if process.returncode == 0 else last_error(log, process.returncode)
        except subprocess.TimeoutExpired:
            reason = f"time limit: not done after {limit:.0f} s" if limit == longest else BUDGET_SPENT
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its compilers too
                process.wait()
    if reason and how_it_failed(reason) == "failed":
        print("\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]), flush=True)
    if not args.warm_caches:
        shutil.rmtree(work, ignore_errors=True)
    return reason


def environment(args: argparse.Namespace, task: dict[str, Any], work: Path) -> dict[str, str]:
    """Of a task's process: no network, one allocator setting, compile caches of its own, and halfbyte and the peers to import."""
    places = [*([args.peers] if args.peers else []), ROOT / "src", *(Path(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place)]
    return {
        **os.environ, "PYTHONPATH": os.pathsep.join(str(place.resolve()) for place in places), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false", "UNSLOTH_DISABLE_STATISTICS": "1", "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"), "TRITON_CACHE_DIR": str(work / "triton"),
        **(PROGRAMS[task["program"]].environment if "program" in task else {}),
    }  # fmt: skip


def last_error(log: Path, code: int) -> str:
    """The last line of the log that names an error, without the folders of this machine."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    found = next((line for line in reversed(lines) if LAST_LINE.match(line)), f"ended with code {code}")
    return re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+", ".../", found)[:240]


def run_task(task: dict[str, Any]) -> None:
    """In the process of one cell or several. What must come before torch, and what must not be found, is seen to first."""
    scratch, device = Path(task["scratch"]), task["device"]
    if "write" in task:
        from suite_given import write_all

        for asked in task["write"]:
            write_all(Configuration(**asked), scratch, device)
        return
    program = PROGRAMS[task["program"]]
    for name in program.hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # an import of it fails as if it were not installed
    if program.imported_first:
        importlib.import_module(program.imported_first)
    from suite_cell import measure_all

    measure_all(task["cells"], scratch, device)


def in_short(cell: dict[str, Any]) -> str:
    if cell["status"] != "measured":
        return f"{cell['status']}: {cell['reason']}"
    reserved = cell["peaks"].get("reserved_bytes")
    memory = "" if reserved is None else f", {reserved / 1e9:.2f} GB reserved"
    return f"{cell['tokens_per_second']:,.0f} tokens/s, {cell['median_ms']:.1f} ms a step{memory}; {cell['wall_seconds']:.0f} s in all"


def load_sittings(folder: Path) -> list[dict[str, Any]]:
    file = folder / "sittings.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []


def save_sitting(folder: Path, sitting: dict[str, Any]) -> None:
    """Replaces the sitting of the same moment: it is saved after each anchor."""
    save_raw("sittings.json", [*(one for one in load_sittings(folder) if one["sitting"] != sitting["sitting"]), sitting], folder)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default=SHAPE, help="a shape of random_base.py, or toy")
    parser.add_argument("--configurations", nargs="+", default=list(GRIDS), metavar="ROWSxTOKENS[:LENGTHS]")
    parser.add_argument("--anchor", default=GRIDS[0], metavar="ROWSxTOKENS", help="the configuration that every sitting times the anchors on")
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=list(PROGRAMS), metavar="PROGRAM")
    parser.add_argument("--cells", nargs="+", default=[], metavar="ROWSxTOKENS[:LENGTHS]--PROGRAM[=GB]", help="these and no others, also where they are there")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--warm-up", type=int, default=10, help="steps")
    parser.add_argument("--timed", type=int, default=20, help="steps of each repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--together", action="store_true", help="cells whose model is the same share a process: quicker, and compile times say little")
    parser.add_argument("--no-anchors", dest="anchors", action="store_false", help="this sitting's speeds are compared with each other only")
    parser.add_argument("--again", action="store_true", help="run the cells that are asked for also where they are there already")
    parser.add_argument("--warm-caches", action="store_true", help="cells find what earlier cells compiled: quicker, and compile times say little")
    parser.add_argument("--budget-seconds", type=float, default=float("inf"), help="no cell is begun that would not be done by then")
    parser.add_argument("--limit-seconds", type=float, default=300, help="of one cell")
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/halfbyte-suite"), help="for the base and what may be deleted; 5 GB for a 7B shape")
    parser.add_argument("--peers", type=Path, help="folder with packages that are not installed")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--tables", action="store_true", help="measure nothing: write docs/performance.md, its picture and the claims")
    parser.add_argument("--task", help=argparse.SUPPRESS)  # what one cell's process is told
    return parser


def main() -> None:
    words = parser()
    args = words.parse_args()
    if args.warm_up < FEWEST_WARM_UP:
        words.error(f"--warm-up must be at least {FEWEST_WARM_UP}: the first steps are checked and the last ones settle")
    if args.task:
        run_task(json.loads(args.task))
        return
    args.scratch = args.scratch.resolve()
    try:
        args.cells = [asked_cell(one, args.shape, args.rank) for one in args.cells]
    except ValueError as error:
        words.error(str(error))
    args.anchor, *args.configurations = (configuration_of(args.shape, grid, args.rank) for grid in [args.anchor, *args.configurations])
    if args.tables:
        from frontier import record_budgets

        folder = args.results / "suite"
        write_page(folder, load_sittings(folder), ROOT / "docs")
        record_claims(load_cells(folder), args.results)
        record_ratios(load_cells(folder), args.results)
        record_budgets(args.results)
    else:
        sit(args)


if __name__ == "__main__":
    main()
