"""Rules on loading a model for use, and merging."""

import ast
from collections.abc import Iterator

from halfbyte.checks.program import Call, Program
from halfbyte.checks.rule import Seen, rule
from halfbyte.checks.rules.adapters import is_four_bit, quantisation


@rule(
    "fault",
    "the adapter is added to weights that were rounded to 4 bits, and the sum is rounded again: the merged model is not the one that was trained",
    "merge into the 16-bit base, and compare with the unmerged model; or keep the adapter beside the 4-bit base",
)
def merged_into_four_bits(program: Program) -> Iterator[Seen]:
    for call in program.called("merge_and_unload"):
        for one in program.lineage(call.receiver, call.line):
            if one.name == "from_pretrained" and is_four_bit(program, one):
                yield call.node, f"the base was loaded in 4 bits in line {program.told_line(one.node)}"


@rule(
    "fault",
    "used with other rounding than it was trained with (load_in_4bit alone is FP4): the adapter corrects errors that are not there any more",
    "the same BitsAndBytesConfig in training and in use",
)
def other_quantisation(program: Program) -> Iterator[Seen]:
    kinds: list[tuple[Call, str]] = []
    for load in program.loads:
        config = quantisation(program, load)
        if config is not None:
            kinds.append((load, str(program.literal(config.words.get("bnb_4bit_quant_type")) or "fp4")))
        elif program.is_on(load.words.get("load_in_4bit")):
            kinds.append((load, "fp4"))
    for load, kind in kinds[1:]:
        if kind != kinds[0][1]:
            yield load.node, f"{kind} here, {kinds[0][1]} in line {program.told_line(kinds[0][0].node)}"


@rule(
    "note",
    "4-bit weights in FP4, the default of BitsAndBytesConfig: less exact than NF4 at the same size",
    'bnb_4bit_quant_type="nf4"',
)
def four_bits_without_a_kind(program: Program) -> Iterator[Seen]:
    for call in program.called("BitsAndBytesConfig"):
        if program.is_on(call.words.get("load_in_4bit")) and "bnb_4bit_quant_type" not in call.words:
            yield call.node, "no bnb_4bit_quant_type"


@rule(
    "note",
    "two copies of the base in memory at once",
    "load it once: with the adapter disabled (model.disable_adapter()) it is the base",
)
def loaded_twice(program: Program) -> Iterator[Seen]:
    seen: dict[tuple[str, str], Call] = {}
    for call in program.loads:
        name = program.literal(call.given("pretrained_model_name_or_path", 0))
        if not isinstance(name, str) or call.inside is not None or "Peft" in call.dotted:
            continue
        key = (program.file_of(call.line), name)
        if key in seen and not _freed(program, seen[key], call):
            yield call.node, f"{name} is loaded in line {program.told_line(seen[key].node)} already"
        seen[key] = call


def _freed(program: Program, first: Call, second: Call) -> bool:
    holder = program.parent(first.node)
    name = ast.unparse(holder.targets[0]) if isinstance(holder, ast.Assign) else None
    deleted = [node for node in ast.walk(program.script.tree) if isinstance(node, ast.Delete) and first.line < node.lineno < second.line]
    return any(name == ast.unparse(target) for node in deleted for target in node.targets)
