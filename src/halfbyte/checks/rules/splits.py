"""Rules on what is held out, and what chooses."""

import ast
import re
from collections.abc import Iterator

from halfbyte.checks.program import Call, Program
from halfbyte.checks.rule import Seen, rule

HELD_OUT = re.compile(r"(?<![a-z])(?:test|val|valid|validation|dev|eval|evaluation|held_?out|holdout)(?![a-z])", re.I)
TEST = re.compile(r"(?<![a-z])(?:test|held_?out|holdout)(?![a-z])", re.I)
ALL_SEEDS = ("set_seed", "seed_everything")


@rule(
    "fault",
    "the held-out rows are others in every run: no figure can be repeated, and two runs cannot be compared",
    "give it a seed, or split by a hash of the row",
)
def unseeded_split(program: Program) -> Iterator[Seen]:
    for call in program.calls:
        kind = _draws_split(program, call)
        if kind and not seeded_before(program, call, kind):
            yield call.node, f"{call.name} draws without a seed"


def _draws_split(program: Program, call: Call) -> str | None:
    """Which random source the call draws from, where it draws rows."""
    if call.name == "train_test_split":
        seed = call.given("random_state") or call.given("seed")
        return None if seed is not None and not is_none(seed) else "numpy"
    if call.dotted in ("random.sample", "random.shuffle", "random.choices"):
        return "random"
    if re.fullmatch(r"numpy\.random\.(permutation|shuffle|choice)", call.dotted):
        return "numpy"
    if call.name == "random_split":
        return None if "generator" in call.words else "torch"
    if call.name == "sample" and ("frac" in call.words or "n" in call.words) and "random_state" not in call.words:
        return "numpy"
    return None


def seeded_before(program: Program, call: Call, source: str) -> bool:
    """Whether the script seeds a random source (random, numpy, torch) before a call, itself or through a function of its own."""
    names = {"random": "random.seed", "numpy": "numpy.random.seed", "torch": "torch.manual_seed"}
    when = min(program.moments(call.node))
    for other in program.calls:
        everything = other.name in ALL_SEEDS and other.name not in program.functions and (other.dotted != other.name or program.star_import)
        if (other.dotted == names[source] or everything) and _is_run(program, other) and min(program.moments(other.node)) < when:
            return True
    return False


def _is_run(program: Program, call: Call) -> bool:
    if call.inside is None:
        return True
    name = next((name for name, function in program.functions.items() if function is call.inside), None)
    return any(other.dotted == name for other in program.calls)


@rule(
    "note",
    "the last row can never be drawn: range ends one before its end already",
    "write range(len(rows))",
)
def last_row_never_drawn(program: Program) -> Iterator[Seen]:
    drawn = [
        arg for call in program.calls if call.dotted in ("random.sample", "random.choice", "random.choices", "numpy.random.choice") for arg in call.node.args
    ]
    for arg in drawn:
        for node in ast.walk(program.value(arg) or arg):
            call = program.call_of(node)
            if call and call.dotted == "range" and call.node.args and re.fullmatch(r"len\(.*\) - 1", ast.unparse(call.node.args[-1])):
                yield call.node, ast.unparse(call.node)


@rule(
    "note",
    "the first row of that value is taken out, not the one that was drawn: where a row stands twice, its copy stays in the other part",
    "split by index, and drop duplicates first",
)
def removed_by_value(program: Program) -> Iterator[Seen]:
    if any(_draws_split(program, call) for call in program.calls):
        for call in program.called("remove"):
            if call.in_loop and len(call.node.args) == 1 and call.receiver is not None and "os" not in ast.unparse(call.receiver):
                yield call.node, "rows are removed from a list by their value"


@rule(
    "note",
    "the validation rows stand next to training rows in one file: parts of one article or book fall on both sides",
    "use the data set's own validation part, or split by document",
)
def slice_of_the_training_split(program: Program) -> Iterator[Seen]:
    slices = [
        (node, text) for node, text in program.texts if re.fullmatch(r"train\[\s*\d*%?\s*:\s*\d*%?\s*\]", text)
    ]  # fmt: skip
    if len(slices) > 1:
        for node, text in slices[1:]:
            yield node, f"{text} is cut from the split that trains, {slices[0][1]}"


def mentions(program: Program, pattern: re.Pattern[str]) -> bool:
    """Whether anything that holds rows is called so: a name, a key, a split."""
    for node in ast.walk(program.script.tree):
        named = node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else None
        named = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 40 else named
        if named and pattern.search(named.replace("_", " ")) and not named.startswith(("eval_", "evaluation_")):
            return True
    return any(call.name == "train_test_split" for call in program.calls)


@rule(
    "fault",
    "every row is trained on: nothing can tell learning from memorising, and a falling training loss says nothing of use",
    "hold out rows before anything else: some to choose by, some to be opened once at the end",
)
def nothing_held_out(program: Program) -> Iterator[Seen]:
    if not _evaluates(program) and not mentions(program, HELD_OUT):
        for call in program.trainers[:1]:
            yield call.node, "no evaluation rows anywhere"


def _evaluates(program: Program) -> bool:
    return any("eval_dataset" in call.words and not is_none(call.words["eval_dataset"]) for call in program.trainers)


def is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


@rule(
    "note",
    "nothing is measured while it trains: the last state is kept, whether or not an earlier one was better",
    "give eval_dataset and eval_strategy, and load_best_model_at_end=True",
)
def no_validation(program: Program) -> Iterator[Seen]:
    if program.trainers and not _evaluates(program) and mentions(program, HELD_OUT):
        yield program.trainers[0].node, "the trainer has no eval_dataset"


def evaluates_while_training(program: Program) -> bool:
    found = program.argument("eval_strategy") or program.argument("evaluation_strategy")
    return found is not None and program.literal(found[1]) != "no"


@rule(
    "note",
    "the last state is saved, also where validation had become worse by then",
    "load_best_model_at_end=True with metric_for_best_model='eval_loss'",
)
def last_not_best(program: Program) -> Iterator[Seen]:
    best = program.argument("load_best_model_at_end")
    if _evaluates(program) and evaluates_while_training(program) and (best is None or program.literal(best[1]) is False):
        for call in program.arguments[:1]:
            yield call.node, "validated while training, and no best state is chosen"


@rule(
    "fault",
    "the rows that choose the checkpoint are the rows that are reported: the figure is better than new rows would show",
    "three parts: train, validation to choose by, test to open once at the end",
)
def test_rows_choose(program: Program) -> Iterator[Seen]:
    best = program.argument("load_best_model_at_end")
    if best is None or not program.is_on(best[1]):
        return
    for call in program.trainers:
        rows = call.words.get("eval_dataset")
        if rows is not None and TEST.search(ast.unparse(rows).replace("_", " ")):
            yield rows, f"{ast.unparse(rows)} chooses the best state"


@rule(
    "note",
    "the only held-out rows chose settings or checkpoints, or were looked at throughout: there is no figure on rows that decided nothing",
    "keep a test part, and open it once",
)
def no_test_rows(program: Program) -> Iterator[Seen]:
    if _evaluates(program) and not mentions(program, TEST):
        yield program.trainers[0].node, "validation rows, and no test rows"
