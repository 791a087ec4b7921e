"""Rules on how answers are drawn, and where they stop."""

import ast
import re
from collections.abc import Iterator

from halfbyte.checks.program import HOLE, Program
from halfbyte.checks.rule import Seen, rule
from halfbyte.checks.rules.splits import seeded_before

MOST_NEW_TOKENS = 4096


@rule(
    "note",
    "nothing tells padding from text: with a pad token that is the end mark a batch, or a padded prompt, is answered wrongly, with a warning",
    "model.generate(**inputs), or attention_mask=inputs.attention_mask",
)
def no_attention_mask(program: Program) -> Iterator[Seen]:
    for call in program.generations:
        ids = call.given("input_ids") or call.given("inputs", 0)
        handed_on = any(word.arg is None for word in call.node.keywords)
        if ids is not None and not handed_on and "attention_mask" not in call.words and re.search(r"input_?ids|\bids\b", ast.unparse(ids)):
            yield call.node, "generate is given ids alone"


SAMPLING = ("temperature", "top_p", "top_k", "typical_p", "min_p")


@rule(
    "note",
    "without do_sample=True generation is greedy: these settings are read by nothing",
    "do_sample=True, or take them out",
)
def sampling_that_does_not_sample(program: Program) -> Iterator[Seen]:
    for call in (*program.generations, *program.called("GenerationConfig")):
        handed_on = [ast.unparse(word.value) for word in call.node.keywords if word.arg is None]
        given = [name for name in SAMPLING if name in call.words and program.literal(call.words[name]) not in (None, 0, 1.0)]
        config = program.call_of(program.value(call.words.get("generation_config")))
        asked = "do_sample" in call.words or any("do_sample" in text for text in handed_on)
        if given and not asked and config is None:
            yield call.words[given[0]], f"{', '.join(given)} without do_sample"
    for one in program.assigned:
        match = re.fullmatch(r"(.*)\.(temperature|top_p|top_k)", one.target)
        if match and match[1].endswith("generation_config") and not any(other.target == f"{match[1]}.do_sample" for other in program.assigned):
            yield one.value, f"{one.target} without do_sample"


@rule(
    "note",
    "drawn anew at each run: one shown answer is an anecdote, and nobody can have it again",
    "set_seed(...) before, or greedy decoding, and more than one prompt",
)
def drawn_without_a_seed(program: Program) -> Iterator[Seen]:
    for call in (*program.generations, *program.called("GenerationConfig")):
        if program.is_on(call.words.get("do_sample")) and not seeded_before(program, call, "torch"):
            yield call.words["do_sample"], "do_sample=True, and no seed"


@rule(
    "note",
    "a model that has learned to stop needs no such limit; one that has not fills it",
    "the longest answer that makes sense, and a model that was taught its end mark",
)
def endless_answers(program: Program) -> Iterator[Seen]:
    wanted = {"max_new_tokens", "max_tokens", "max_new_token"}
    for call in program.calls:
        for name in wanted & set(call.words):
            number = program.literal(call.words[name])
            if isinstance(number, int) and number > MOST_NEW_TOKENS:
                yield call.words[name], f"{name}={number}"
    if program.generations:
        limits = re.compile(r"max|limit|length|tokens", re.I)
        for node in ast.walk(program.script.tree):
            large = isinstance(node, ast.Constant) and type(node.value) is int and node.value > MOST_NEW_TOKENS
            if large and isinstance(node, ast.Constant) and _may_be_limit(program, node, limits):
                yield node, f"{node.value!r} new tokens"


def _may_be_limit(program: Program, node: ast.Constant, limits: re.Pattern[str]) -> bool:
    """The number is a value of a name, or of a dictionary with a name, that generate takes its limit from."""
    above = program.parent(node)
    while isinstance(above, (ast.Dict, ast.Tuple, ast.List, ast.IfExp)):
        above = program.parent(above)
    if not isinstance(above, ast.Assign):
        return False
    target = ast.unparse(above.targets[0])
    used = " ".join(ast.unparse(call.words[name]) for call in program.generations for name in ("max_new_tokens", "max_length") if name in call.words)
    chosen = [one.target for one in program.assigned if re.search(rf"\b{re.escape(target)}\b", ast.unparse(one.value))]
    return bool(limits.search(target)) and any(re.search(rf"\b{re.escape(name)}\b", used) for name in (target, *chosen))


def _stoppers(program: Program) -> Iterator[tuple[ast.ClassDef, ast.FunctionDef]]:
    for node in program.classes:
        if any("StoppingCriteria" in ast.unparse(base) for base in node.bases):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and inner.name == "__call__":
                    yield node, inner


PUNCTUATION = {".", "!", "?", ";", ":"}


@rule(
    "fault",
    "the model is cut off at a full stop, because it never learned to end: abbreviations and numbers stop it too, and each mark has several token forms",
    "teach the end mark (it must have a label in training), and stop at it",
)
def stops_at_punctuation(program: Program) -> Iterator[Seen]:
    for node, _ in _stoppers(program):
        marks = [inner for inner in ast.walk(node) if isinstance(inner, ast.Constant) and inner.value in PUNCTUATION]
        made = [call for call in program.calls if call.name == node.name]
        given = [
            inner for call in made for arg in (*call.node.args, *call.words.values()) for inner in ast.walk(program.value(arg) or arg)
            if isinstance(inner, ast.Constant) and inner.value in PUNCTUATION
        ]  # fmt: skip
        if marks or given:
            yield (marks or given)[0], f"{node.name} stops at a punctuation mark"


@rule(
    "fault",
    "only the first row of a batch decides when all rows end",
    "one answer per row: return a tensor with a value for each",
)
def stop_looks_at_the_first_row(program: Program) -> Iterator[Seen]:
    for node, called in _stoppers(program):
        names = [arg.arg for arg in called.args.args[1:2]]
        for inner in ast.walk(called):
            first = isinstance(inner, ast.Subscript) and isinstance(inner.value, ast.Name) and inner.value.id in names
            if first and isinstance(inner, ast.Subscript) and re.match(r"\(?0\b", ast.unparse(inner.slice)):
                yield inner, f"{node.name} reads {ast.unparse(inner)}"


@rule(
    "note",
    "what one call counted is still there in the next: the second answer is stopped by the length of the first",
    "make a new one for each call, or read the length from input_ids",
)
def stop_that_remembers(program: Program) -> Iterator[Seen]:
    for node, called in _stoppers(program):
        for inner in ast.walk(called):
            targets = inner.targets if isinstance(inner, ast.Assign) else [inner.target] if isinstance(inner, ast.AugAssign) else []
            for target in targets:
                if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
                    yield inner, f"{node.name} changes {ast.unparse(target)} when it is called"


# Short texts with numbers that an answer may well hold; a pattern is tried on them. What it takes away of them is lost from answers too.
PROBES = ("in 1939 to 1945. It", "13.8 billion", "lr=0.01, n=9", "5 of 7. Then")
LONGEST_PATTERN = 80


@rule(
    "fault",
    "the pattern was meant for list numbers and takes numbers out of sentences: years, decimals, code",
    "anchor it to the beginning of a line (^, re.M), or leave answers as they are",
)
def pattern_eats_numbers(program: Program) -> Iterator[Seen]:
    if not program.generations and not program.called("pipeline"):
        return
    for call in program.called("sub"):
        compiled = program.call_of(program.value(call.receiver)) if call.dotted != "re.sub" and call.receiver is not None else None
        pattern = program.literal(call.given("pattern", 0) if compiled is None else compiled.given("pattern", 0))
        put_in = program.literal(call.given("repl", 1 if compiled is None else 0))
        if (call.dotted == "re.sub" or compiled is not None) and isinstance(pattern, str) and isinstance(put_in, str) and HOLE not in pattern:
            eaten = _eaten(pattern, put_in)
            if eaten:
                yield call.node, eaten


def _eaten(pattern: str, put_in: str) -> str:
    if len(pattern) > LONGEST_PATTERN or not re.search(r"\\d|\[[^\]]*0-9", pattern) or re.search(r"\\[1-9]|\\g<", put_in):
        return ""
    if re.search(r"[+*}]\)?[+*{]", pattern):
        return ""  # repetition of repetition: could take for ever
    try:
        tried = re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return ""
    for probe in PROBES:
        after = tried.sub(lambda _: put_in, probe)
        if sum(map(str.isdigit, after)) < sum(map(str.isdigit, probe)):
            return f"{pattern!r} makes {after!r} of {probe!r}"
    return ""
