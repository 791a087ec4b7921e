"""What the cells of the suite say together: whether all programs computed the same thing, how they compare, and the page that shows it."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from claims import save_raw
from programs import FP8_WAYS, FULL_ENOUGH, GRIDS, PROGRAMS, RANK, SHAPE, WAYS, configuration_of, family_of

Cell = dict[str, Any]

# Losses "agree to 3 decimals" on average over the steps: half a unit of the third. Not step by step: among nine sound programs on an H200 the
# loss of one step, a mean over ROUNDED_TOKENS, differed with a standard deviation of up to 0.0012 (0.0008 between ours and ours-kept, whose
# first losses are equal), and by 0.00025 at most on average over 70 steps. One step may be four such deviations away; the average of fewer
# steps is allowed as many of its own deviations as that of 70.
MEAN_LOSS_TOLERANCE = 0.0005
AVERAGED_STEPS = 70
STEP_LOSS_TOLERANCE = 0.005
ROUNDED_TOKENS = 4 * 2047
# Of a gradient's norm in the first steps. Thirteen cells of sound programs on an H200 differed by 0.0015 at most; packed documents that see each other, on a
# toy whose losses hardly notice, by 0.2.
NORM_TOLERANCE = 0.01
COMPARED_NORMS = 3
# FP8 on weights that nobody trained: 3 to 4 % of rounding in each product grows from layer to layer until, after 32 of them, a token's logits have little
# in common with those of bfloat16, while their distribution is the same. A token's loss there has a standard deviation of sqrt(2 (11.18 - ln 32000)) = 1.27
# (logits are normal), so means over ROUNDED_TOKENS of two such draws differ with 1.27 sqrt(2 / 8188) = 0.02. As above a step may be four such deviations
# away, and the average of 70 steps four of its own. The norm of the gradient may be a tenth away; a product without its scale is off by its whole size. None of
# these bounds was held against a sound kernel on a GPU yet.
FP8_MEAN_LOSS_TOLERANCE, FP8_STEP_LOSS_TOLERANCE, FP8_NORM_TOLERANCE = 0.01, 0.08, 0.1
REFERENCES = ("hf", "ours", "unsloth-off", "unsloth", "fast")  # the first that was measured is what the others are compared with
PLAIN_WAYS = ("fast", "lean")  # the other ways are for this much memory or that
CLAIMED = configuration_of(SHAPE, GRIDS[0], RANK).name
BEGIN, END = "<!-- suite: written by benchmarks/suite.py --tables -->", "<!-- suite: end -->"


def load_cells(folder: Path) -> list[Cell]:
    """In the order of PROGRAMS, the most tokens a step first."""
    cells = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*--*.json"))]
    order = list(PROGRAMS)
    cells = [cell for cell in cells if cell["program"] in order]
    return sorted(cells, key=lambda cell: (_size(cell), order.index(cell["program"])))


def reference_of(cells: list[Cell], configuration: str) -> Cell | None:
    measured = {cell["program"]: cell for cell in cells if cell["configuration"]["name"] == configuration and cell["status"] == "measured"}
    return next((measured[name] for name in REFERENCES if name in measured), None)


def faults(cell: Cell, reference: Cell | None) -> list[str]:
    """Why the figures of a measured cell cannot stand beside the others'; empty when they can."""
    found = []
    asked = cell["configuration"]["rows"] * cell["configuration"]["tokens"]
    full = FULL_ENOUGH * asked < cell["tokens_a_step"] <= asked if cell["configuration"].get("packed") else cell["tokens_a_step"] == asked
    if not full:
        found.append(f"{cell['tokens_a_step']} tokens a step instead of {asked}")
    if not all(map(math.isfinite, cell["warm_up_losses"] + cell["losses"])):
        found.append("a loss is not finite")
    if cell["trained"]["dtypes"] != ["torch.float32"]:
        found.append(f"adapters in {', '.join(cell['trained']['dtypes'])}")
    gradients = cell["gradients"]
    zero = list(dict.fromkeys(gradients["zero_b_in_step_1"] + gradients["zero_a_in_step_2"] + gradients.get("zero_in_step_3", [])))
    if zero:
        found.append(f"{len(zero)} gradients are zero, the first of {zero[0]}")
    if cell["trained"]["not_moved"]:
        found.append(f"{len(cell['trained']['not_moved'])} matrices did not move, the first {cell['trained']['not_moved'][0]}")
    if cell["weights_sha256"]["packed"] is None:
        found.append("no 4-bit weights found")
    if reference is None:
        return found
    if cell["trained"]["parameters"] != reference["trained"]["parameters"]:
        found.append(f"{cell['trained']['parameters']} trained numbers, {reference['trained']['parameters']} in {reference['program']}")
    theirs = reference["weights_sha256"]
    found += [f"{part} weights are not those of {reference['program']}" for part, summed in cell["weights_sha256"].items() if summed != theirs[part]]
    average, largest = loss_differences(cell, reference)
    more = rounding(cell)
    steps = min(len(one["warm_up_losses"]) + len(one["losses"]) for one in (cell, reference))
    mean_loss, step_loss, norm = (
        (FP8_MEAN_LOSS_TOLERANCE, FP8_STEP_LOSS_TOLERANCE, FP8_NORM_TOLERANCE) if cell["program"] in FP8_WAYS
        else (MEAN_LOSS_TOLERANCE, STEP_LOSS_TOLERANCE, NORM_TOLERANCE)
    )  # fmt: skip
    if abs(average) > mean_loss * more * math.sqrt(max(1.0, AVERAGED_STEPS / steps)):
        found.append(f"losses are {average:+.4f} away from {reference['program']} on average")
    if largest > step_loss * more:
        found.append(f"a step's loss is {largest:.4f} away from {reference['program']}")
    away = [abs(mine / theirs - 1) for mine, theirs in zip(cell["grad_norms"], reference["grad_norms"])][:COMPARED_NORMS]
    if wrong := [one for one in away if not one <= norm]:  # what is no number is wrong
        found.append(f"a gradient's norm is {max(wrong):.0%} away from {reference['program']}")
    return found


def loss_differences(cell: Cell, reference: Cell) -> tuple[float, float]:
    """On average over the steps that both took, and the largest of one step."""
    own, other = ([*one["warm_up_losses"], *one["losses"]] for one in (cell, reference))
    differences = [mine - theirs for mine, theirs in zip(own, other)]
    return mean(differences), max(map(abs, differences))


def rounding(cell: Cell) -> float:
    """How much more the losses of shorter steps may differ: errors of tokens are independent, so that of their mean falls with the root of their number."""
    supervised = cell["configuration"]["rows"] * (cell["configuration"]["tokens"] - 1)
    return max(1.0, math.sqrt(ROUNDED_TOKENS / supervised))


def compile_seconds(cell: Cell) -> float:
    """What the warm-up took beyond the same number of settled steps."""
    return max(0.0, cell["warm_up_seconds"] - cell["warm_up_steps"] * cell["median_ms"] / 1e3)


def attention_of(kernels: list[str]) -> str:
    """The kind of attention, from the names of the kernels of one step."""
    names = " ".join(kernels).lower()
    marks = {"not profiled": "not profiled", "cudnn": "cuDNN", "flash": "flash", "fmha": "memory-efficient"}
    return next((kind for mark, kind in marks.items() if mark in names), "none of the fused kernels")


def ratio(cell: Cell, anchor: str, cells: list[Cell], sittings: list[dict[str, Any]]) -> float | None:
    """Tokens/s over those of `anchor` in the same configuration; across sittings, corrected by how fast the anchor itself was in each."""
    name = cell["configuration"]["name"]
    other = next((one for one in cells if one["program"] == anchor and one["configuration"]["name"] == name and one["status"] == "measured"), None)
    if other is None or faults(other, reference_of(cells, name)):
        return None
    plain = cell["tokens_per_second"] / other["tokens_per_second"]
    if cell["sitting"] == other["sitting"]:
        return plain
    speeds = {one["sitting"]: (one["anchored_on"], one["anchors"][anchor]["tokens_per_second"]) for one in sittings if anchor in one["anchors"]}
    own, others = speeds.get(cell["sitting"]), speeds.get(other["sitting"])
    if own is None or others is None or own[0] != others[0]:
        return None
    return plain * others[1] / own[1]


def rows_of(cells: list[Cell], configuration: str, sittings: list[dict[str, Any]]) -> list[str]:
    reference = reference_of(cells, configuration)
    lines = []
    for cell in (one for one in cells if one["configuration"]["name"] == configuration):
        name = f"**{cell['program']}**" if family_of(cell["program"]) == "ours" else cell["program"]
        if cell["status"] != "measured":
            lines.append(f"| {name} | | | | | | | | | {cell['status']}: {_in_cell(cell['reason'])} |")
            continue
        wrong = faults(cell, reference)
        ratios = [None, None] if wrong else [ratio(cell, anchor, cells, sittings) for anchor in ("ours", "unsloth-off")]
        speed, step = f"{cell['tokens_per_second']:,.0f}", f"{cell['median_ms']:.1f} ({cell['fastest_ms']:.1f} to {cell['slowest_ms']:.1f})"
        if wrong:
            speed, step = f"~~{speed}~~", f"~~{step}~~"
        away = "" if reference is None or reference is cell else "{:+.5f}, {:.4f}".format(*loss_differences(cell, reference))
        peaks = [_gigabytes(cell["peaks"].get(key)) for key in ("allocated_bytes", "reserved_bytes")]
        times = ["" if one is None else f"{one:.2f}" for one in ratios]
        verdict = f"**failed**: {_in_cell('; '.join(wrong))}" if wrong else "passed"
        lines.append("| " + " | ".join([name, step, speed, *times, *peaks, f"{compile_seconds(cell):.0f}", away, verdict]) + " |")
    return lines


def markdown(cells: list[Cell], sittings: list[dict[str, Any]]) -> str:
    """A table for each configuration."""
    parts = []
    for configuration in dict.fromkeys(cell["configuration"]["name"] for cell in cells):
        reference = reference_of(cells, configuration)
        compared = "nothing to compare with" if reference is None else f"loss less {reference['program']}'s: mean, largest"
        parts += [
            f"### {_title(cells, configuration)}", "",
            f"| program | ms a step, median (range) | tokens/s | x ours | x unsloth-off | allocated, GB | reserved, GB | compiling, s | {compared} | checks |",
            "|---|---|---|---|---|---|---|---|---|---|", *rows_of(cells, configuration, sittings), "",
        ]  # fmt: skip
    return "\n".join([*parts, *_circumstances(cells, sittings)]).strip() or "Nothing is measured yet."


def not_run(cells: list[Cell]) -> str:
    """What is asked for by default and has no cell."""
    lines = []
    for configuration in (configuration_of(SHAPE, grid, RANK) for grid in GRIDS):
        run = [cell["program"] for cell in cells if cell["configuration"]["name"] == configuration.name]
        if missing := [name for name in PROGRAMS if name not in run and (name not in WAYS or name in PLAIN_WAYS)]:
            lines.append(f"\n- Not run yet on {configuration.name}: {', '.join(missing) if run else 'all programs'}.")
    return "".join(lines)


def _circumstances(cells: list[Cell], sittings: list[dict[str, Any]]) -> list[str]:
    """Where, with which versions, at which clock, and how far the anchors moved from sitting to sitting."""
    measured = [cell for cell in cells if cell["status"] == "measured"]
    lines = []
    if measured:
        numbers = _together((name, number) for cell in measured for name, number in cell["versions"].items() if number and number != "absent")
        lines.append(f"Measured on: {', '.join(sorted({cell['where'] for cell in measured}))}.")
        lines.append(f"Versions: {', '.join(f'{name} {found}' for name, found in numbers.items())}.")
        lines.append(f"Compile caches: {', '.join(sorted({cell['compile_caches'] for cell in measured}))}.")
        kinds = _together((attention_of(cell["attention_kernels"]), cell["program"]) for cell in measured if cell["attention_kernels"] is not None)
        if kinds:
            lines.append(f"Attention that ran, by the names of the GPU's kernels: {'; '.join(f'{kind}: {names}' for kind, names in kinds.items())}.")
        readings = [reading for cell in measured for reading in cell["gpu"][1:] if reading]
        if readings:
            clocks, watts = [one["sm_mhz"] for one in readings], [one["power_watts"] for one in readings]
            lines.append(
                f"Right after timed steps the SM clock was {min(clocks):.0f} to {max(clocks):.0f} MHz (most: {readings[0]['sm_most_mhz']:.0f}), "
                f"the power {min(watts):.0f} to {max(watts):.0f} W, {mean(watts):.0f} on average."
            )
    for one in sittings:
        speeds = ", ".join(f"{name} {found['tokens_per_second']:,.0f} tokens/s" for name, found in one["anchors"].items())
        lines.append(f"Sitting of {one['sitting']}, anchors on {one['anchored_on']}: {speeds}.")
    return ["\n".join(f"- {line}" for line in lines)] if lines else []


def record_claims(cells: list[Cell], results: Path) -> None:
    """suite-PROGRAM: tokens/s of every program that was measured on CLAIMED and passes its checks, as its cell says; no other claim stays."""
    reference = reference_of(cells, CLAIMED)
    file = results / "claims.json"
    claims = [one for one in json.loads(file.read_text(encoding="utf-8")) if not one["claim"].startswith("suite-")] if file.is_file() else []
    for cell in cells:
        if cell["configuration"]["name"] == CLAIMED and cell["status"] == "measured" and not faults(cell, reference):
            claims.append({
                "claim": f"suite-{cell['program']}", "value": round(cell["tokens_per_second"]), "unit": "tokens/s",
                "command": f"python benchmarks/suite.py --configurations {GRIDS[0]} --programs {cell['program']} --again",
                "where": cell["where"], "date": cell["sitting"][:10], "versions": cell["versions"],
            })  # fmt: skip
    save_raw(file.name, sorted(claims, key=lambda one: one["claim"]), results)


def write_page(folder: Path, sittings: list[dict[str, Any]], docs: Path) -> None:
    """Puts tables between the marks of performance.md, and the picture beside it."""
    from frontier import load_pairs
    from suite_chart import draw
    from suite_claims import targets_table

    cells = load_cells(folder)
    page = docs / "performance.md"
    text = page.read_text(encoding="utf-8")
    if not 0 <= text.find(BEGIN) < text.find(END):
        raise SystemExit(f"{page} lacks the lines between which the tables go: {BEGIN} and {END}")
    targets = f"### Targets\n\n{targets_table(cells, load_pairs(folder.parent))}"
    tables = f"{targets}\n\n{markdown(cells, sittings)}{not_run(cells)}"
    page.write_text(f"{text[: text.find(BEGIN)]}{BEGIN}\n\n{tables}\n\n{text[text.find(END) :]}", encoding="utf-8")
    good = [cell for cell in cells if cell["status"] == "measured" and not faults(cell, reference_of(cells, cell["configuration"]["name"]))]
    (docs / "performance.svg").write_text(draw(good), encoding="utf-8")


def _together(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Every key with its different values, in their order."""
    found: dict[str, dict[str, None]] = {}
    for key, value in pairs:
        found.setdefault(key, {})[value] = None
    return {key: ", ".join(values) for key, values in found.items()}


def _title(cells: list[Cell], name: str) -> str:
    configuration = next(cell["configuration"] for cell in cells if cell["configuration"]["name"] == name)
    rows, tokens = configuration["rows"], configuration["tokens"]
    packed = f", packed with documents as long as those of {configuration['packed']}" if configuration.get("packed") else ""
    return f"{configuration['shape']}: {rows} x {tokens:,} = {rows * tokens:,} tokens a step{packed}, r {configuration['rank']}"


def _size(cell: Cell) -> tuple[str, int, int]:
    configuration = cell["configuration"]
    return configuration["shape"], -configuration["rows"] * configuration["tokens"], configuration["rank"]


def _gigabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e9:.2f}"


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|")
