"""Rules on how a loss or a score is measured."""

import ast
import re
from collections.abc import Iterator

from halfbyte.checks.program import HOLE, Call, Program
from halfbyte.checks.rule import Seen, rule
from halfbyte.checks.rules.rows import TURN_MARKS
from halfbyte.checks.rules.splits import evaluates_while_training

METRICS = re.compile(
    r"accuracy|f1_score|classification_report|confusion_matrix|bleu|rouge|chrf|exact_match|evaluate\.load|load_metric|perplexity|bert_?score|meteor|edit_distance|\bwer\b",
    re.I,
)


@rule(
    "fault",
    "dropout stays on after trainer.train(): the tuned model is scored and sampled with part of its adapter switched off at random, the base was not",
    "model.eval() before anything is measured or generated",
)
def no_eval_mode(program: Program) -> Iterator[Seen]:
    if evaluates_while_training(program):
        return  # the last evaluation leaves the model in evaluation mode
    trained = [(moment, call) for call in _trainings(program) for moment in program.moments(call.node)]
    settled = [moment for call in program.calls if _settles(program, call) for moment in program.moments(call.node)]
    for call in program.calls:
        if call not in program.generations and not _computes_loss(program, call):
            continue
        model = call.receiver if call in program.generations else call.node.func
        loaded = [moment for one in program.lineage(model, call.line) if one in program.loads for moment in program.moments(one.node)]
        for moment in program.moments(call.node):
            before = [when for when, one in trained if when < moment and program.file_of(one.line) == program.file_of(call.line)]
            if before and not any(max(before) < when < moment for when in (*settled, *loaded)):
                yield call.node, f"{ast.unparse(call.node.func)}(...) after training, and no eval() between"
                break


def _trainings(program: Program) -> list[Call]:
    """trainer.train(), and model.train() of a loop of one's own."""
    loops = [call for call in program.called("train") if not call.node.args and call.receiver is not None and program.called("backward")]
    return [*program.trainings, *(call for call in loops if call not in program.trainings)]


def _settles(program: Program, call: Call) -> bool:
    """Leaves the model in evaluation mode."""
    if call.receiver is None:
        return call.name == "pipeline" or call.dotted.endswith(".pipeline")
    evaluated = call.name in ("evaluate", "predict") and program.is_trainer(call.receiver)
    return (call.name == "eval" and not call.node.args) or evaluated or call.name in ("for_inference", "pipeline")


def _computes_loss(program: Program, call: Call) -> bool:
    """model(..., labels=...), or a call of the model whose .loss is read."""
    named = isinstance(call.node.func, ast.Name) and "model" in call.node.func.id.lower() and call.node.func.id not in program.functions
    return named and "labels" in call.words and not _is_of_a_training_loop(program, call.node)


def _is_of_a_training_loop(program: Program, node: ast.AST) -> bool:
    """A loop around it, within its function, goes backward."""
    above = program.parent(node)
    while above is not None and not isinstance(above, (ast.FunctionDef, ast.Module)):
        if isinstance(above, (ast.For, ast.While)) and any(isinstance(one, ast.Attribute) and one.attr == "backward" for one in ast.walk(above)):
            return True
        above = program.parent(above)
    return False


@rule(
    "fault",
    "the mean of exponentials is no perplexity: it is always higher, the worst rows decide it, and the improvement that it shows is another one",
    "exp(sum of the losses over all tokens / number of tokens)",
)
def mean_of_exponentials(program: Program) -> Iterator[Seen]:
    carriers = _carriers(program)
    for node in ast.walk(program.script.tree):
        averaged: ast.AST | None = None
        if isinstance(node, ast.Call):
            call = program.call_of(node)
            if call is not None and call.name in ("mean", "fmean", "average", "nanmean"):
                averaged = node
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and not _is_exp_of_loss(program, node):
            averaged = node.left
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add) and _in_loop(program, node) and program.text(node.value) is None:
            averaged = node.value
        carried = averaged is not None and _carries(program, averaged, carriers) and (_sums(program, averaged) or isinstance(node, ast.AugAssign))
        if carried or (isinstance(node, ast.Call) and averaged is node and _of_many(program, node)):
            yield node, "exp of each row's loss, then the mean"


def _of_many(program: Program, mean: ast.Call) -> bool:
    """mean(exp(losses)) where the losses are seen to be several: whatever each of them is itself the mean of."""
    inner = _operand(program, mean)
    losses = _operand(program, inner) if inner is not None and _is_exp_of_loss(program, inner) else None
    value = program.value(losses) if losses is not None else None
    call = program.call_of(value)
    return isinstance(value, ast.List | ast.ListComp) or (call is not None and call.name in ("stack", "cat", "concatenate", "hstack"))


def _operand(program: Program, node: ast.AST) -> ast.expr | None:
    """f(x) and x.f() -> x"""
    call = program.call_of(node)
    return None if call is None else call.node.args[0] if call.node.args else call.receiver


def _is_exp(program: Program, node: ast.AST) -> bool:
    call = program.call_of(node)
    return call is not None and (call.dotted in ("math.exp", "numpy.exp", "torch.exp") or (call.name == "exp" and call.receiver is not None))


def _is_exp_of_loss(program: Program, node: ast.AST) -> bool:
    """exp(...) whose argument is about a loss."""
    if not _is_exp(program, node):
        return False
    text = ast.unparse(node)
    names = [ast.unparse(program.value(one) or one) for one in ast.walk(node) if isinstance(one, ast.Name)]
    return bool(re.search(r"loss|nll|entropy", text + " ".join(names), re.I))


def _carriers(program: Program) -> set[str]:
    """Names and functions that stand for exp of one row's loss, or for a list of such."""
    found: set[str] = set()
    for _ in range(3):  # a function, the list that its values are put into, and a name of that
        for name, function in program.functions.items():
            returned = program.returned(function)
            if returned is not None and _carries(program, returned, found) and not _sums(program, returned) and not _averages(program, function):
                found.add(name)
        for one in program.assigned:
            if one.target.isidentifier() and _carries(program, one.value, found) and not _aggregated(program, one.value):
                found.add(one.target)
        for call in program.called("append", "extend"):
            if call.in_loop and call.node.args and isinstance(call.receiver, ast.Name) and _carries(program, call.node.args[0], found):
                found.add(call.receiver.id)
    return found


def _averages(program: Program, function: ast.AST) -> bool:
    """The function loops over rows itself: what it returns is its mean already."""
    return any(isinstance(node, (ast.For, ast.While)) for node in ast.walk(function))


def _aggregated(program: Program, node: ast.AST) -> bool:
    """exp of a mean or of a quotient of sums: a right perplexity."""
    for inner in ast.walk(node):
        if _is_exp(program, inner):
            call = program.call_of(inner)
            argument = call.node.args[0] if call is not None and call.node.args else call.receiver if call is not None else None
            if argument is None:
                continue
            value = program.value(argument) if isinstance(argument, ast.expr) else argument
            text = ast.unparse(value) if value is not None else ""
            if re.search(r"mean\(|sum\(|stack\(|cat\(|/ |avg|average|total|eval_loss|\[['\"]loss['\"]\]|mean", ast.unparse(argument) + text):
                return True
    return False


def _carries(program: Program, node: ast.AST, carriers: set[str]) -> bool:
    for inner in ast.walk(node):
        if _is_exp_of_loss(program, inner) and not _aggregated(program, inner):
            return True
        if isinstance(inner, ast.Name) and inner.id in carriers:
            return True
    return False


def _sums(program: Program, node: ast.AST) -> bool:
    """A sum or a mean stands in it, or a name that is added to in a loop."""
    for inner in ast.walk(node):
        call = program.call_of(inner)
        if call is not None and call.name in ("sum", "fsum", "mean", "fmean", "average", "nanmean"):
            return True
    return False


def _in_loop(program: Program, node: ast.AST) -> bool:
    above = program.parent(node)
    while above is not None and not isinstance(above, (ast.FunctionDef, ast.Module)):
        if isinstance(above, (ast.For, ast.While)):
            return True
        above = program.parent(above)
    return False


@rule(
    "note",
    "a tensor is copied out of a tensor, with a warning: the figure is right, and the graph that it came from is gone",
    "loss.item(), or torch.exp(loss) itself",
)
def tensor_of_a_tensor(program: Program) -> Iterator[Seen]:
    for call in program.calls:
        if call.dotted == "torch.tensor" and call.node.args:
            value = program.value(call.node.args[0])
            if isinstance(value, ast.Attribute) and value.attr in ("loss", "logits"):
                yield call.node, f"torch.tensor({ast.unparse(call.node.args[0])}) of what is a tensor already"


@rule(
    "note",
    "the loss is an average over every token, prompts too: it does not say how many answers are right, nor whether they end",
    "score the answers of held-out rows: exact match, F1, chrF, or by hand without knowing which is which",
)
def loss_is_the_only_figure(program: Program) -> Iterator[Seen]:
    if not program.trainers or any("compute_metrics" in call.words for call in program.trainers):
        return
    tasks = [text for _, text in program.texts if HOLE in text and TURN_MARKS.search(text)]
    named = any(METRICS.search(call.dotted) for call in program.calls) or any(METRICS.search(name) for name in program.functions)
    compared = any(
        isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq) and _beside_generation(program, node) for node in ast.walk(program.script.tree)
    )
    if tasks and not named and not compared and (program.called("evaluate") or any("eval_dataset" in call.words for call in program.trainers)):
        yield program.trainers[0].node, "a task with answers, and no figure on them"


def _beside_generation(program: Program, node: ast.AST) -> bool:
    """In a loop in which answers are generated, or read."""
    above = program.parent(node)
    while above is not None and not isinstance(above, (ast.FunctionDef, ast.Module)):
        if isinstance(above, (ast.For, ast.While, ast.GeneratorExp, ast.ListComp)):
            return bool(re.search(r"generate|pipe|pred|answer|output|decode|said", ast.unparse(above)))
        above = program.parent(above)
    return False


@rule(
    "note",
    "one row was looked at; the rest of the test part was loaded and never scored: an anecdote, no figure",
    "score every test row, and say how many there were",
)
def test_part_of_one_row(program: Program) -> Iterator[Seen]:
    for one in program.assigned:
        if not one.target.isidentifier() or not _is_test_part(program, one.value):
            continue
        uses = [node for node in ast.walk(program.script.tree) if isinstance(node, ast.Name) and node.id == one.target and isinstance(node.ctx, ast.Load)]
        single = [node for node in uses if isinstance(above := program.parent(node), ast.Subscript) and isinstance(program.value(above.slice), ast.Constant)
                  and isinstance(program.literal(above.slice), int)]  # fmt: skip
        shown = [node for node in uses if (call := program.call_of(program.parent(node) or node)) is not None and call.name in ("print", "len", "display")]
        if single and len(single) + len(shown) == len(uses):
            yield single[0], f"{one.target} is used for single rows alone"


def _is_test_part(program: Program, node: ast.expr) -> bool:
    if isinstance(node, ast.Subscript):
        return program.literal(node.slice) == "test"
    call = program.call_of(node)
    return call is not None and call.name == "load_dataset" and str(program.literal(call.words.get("split"))).startswith("test")
