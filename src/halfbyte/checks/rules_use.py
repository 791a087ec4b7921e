"""Rules on what is done with a model: measuring, prompting, generating, stopping, merging; and on what is unsafe."""

import ast
import re
from collections.abc import Iterator

from halfbyte.checks.program import HOLE, Call, Program
from halfbyte.checks.rule import Seen, rule
from halfbyte.checks.rules_training import BEGIN_MARKS, TEST, TURN_MARKS, _told, evaluates_while_training, is_four_bit, mentions, quantisation, seeded_before
from halfbyte.checks.scripts import SECRET
from halfbyte.checks.versions import HOLES, numbers

MOST_NEW_TOKENS = 4096
METRICS = re.compile(
    r"accuracy|f1_score|classification_report|confusion_matrix|bleu|rouge|chrf|exact_match|evaluate\.load|load_metric|perplexity|bert_?score|meteor|edit_distance|\bwer\b",
    re.I,
)

# Measuring


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
        if averaged is not None and _carries(program, averaged, carriers) and (_sums(program, averaged) or isinstance(node, ast.AugAssign)):
            yield node, "exp of each row's loss, then the mean"


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


# Prompts


@rule(
    "fault",
    "the tokenizer closes every text with the end mark, prompts too: generation begins behind an end, where the model was never trained to speak (and is "
    "warned of 'right padding' where pad and end mark share an id)",
    "a tokenizer without add_eos_token for prompts; put the end mark into the training text",
)
def end_mark_behind_the_prompt(program: Program) -> Iterator[Seen]:
    closing = [call for call in program.called("from_pretrained") if program.is_on(call.words.get("add_eos_token"))]
    set_later = [one for one in program.assigned if one.target.endswith(".add_eos_token") and program.is_on(one.value)]
    undone = any(one.target.endswith(".add_eos_token") and program.literal(one.value) is False for one in program.assigned)
    if not (closing or set_later) or undone:
        return
    bases = {str(program.literal(call.given("pretrained_model_name_or_path", 0))) for call in closing}
    for call in program.generations:
        for tokenized in _prompts_of(program, call):
            tokenizer = tokenized.receiver or tokenized.node.func
            made = program.call_of(program.value(tokenizer, tokenized.line))
            set_on_it = any(one.target == f"{ast.unparse(tokenizer)}.add_eos_token" for one in set_later)
            # One that is loaded from elsewhere than the base was saved with the model, and has its settings.
            saved = made is not None and made not in closing and str(program.literal(made.given("pretrained_model_name_or_path", 0))) not in bases
            tuned = (
                saved and made is not None and "add_eos_token" not in made.words and program.file_of(made.line) != program.file_of((closing or [made])[0].line)
            )
            if made in closing or set_on_it or tuned:
                yield tokenized.node, f"{ast.unparse(tokenizer)} adds the end mark to this prompt"


def _prompts_of(program: Program, generation: Call) -> list[Call]:
    """The tokenizer's calls that made what generate is given."""
    given = [*generation.node.args, *generation.words.values(), *(word.value for word in generation.node.keywords if word.arg is None)]
    found: list[Call] = []
    for node in given:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Call):
                candidate: ast.expr | None = inner
            elif isinstance(inner, ast.Name):
                candidate = program.value(inner, generation.line)
            else:
                continue
            found += [call for part in ast.walk(candidate) if (call := program.call_of(part)) in program.tokenizations] if candidate is not None else []
    return [call for call in found if program.literal(call.words.get("add_special_tokens")) is not False]


@rule(
    "fault",
    "the prompt at use ends otherwise than the prompt before the answers in training: the model starts from a state that it was never trained on",
    "make both from one function",
)
def prompt_of_another_shape(program: Program) -> Iterator[Seen]:
    if not program.trainers or not program.generations:
        return
    texts = [(node, _without_begin(text)) for node, text in program.texts if HOLE in text and len(text) > 20]
    for node, used in texts:
        for other, trained in texts:
            prefix = _prompt_part(used, trained)
            if prefix is not None and prefix != used and prefix.strip() == used.strip():
                yield node, f"ends in {used[-8:].split(HOLE)[-1]!r}, in training (line {_told(program, (other,))}) in {prefix[-8:].split(HOLE)[-1]!r}"


def _without_begin(text: str) -> str:
    return next((text[len(mark) :] for mark in BEGIN_MARKS if text.startswith(mark)), text)


def _prompt_part(used: str, trained: str) -> str | None:
    """What of the training text stands before the answer, where the prompt at use has one hole less."""
    if trained.count(HOLE) != used.count(HOLE) + 1:
        return None
    prefix = trained[: trained.rindex(HOLE)]
    return prefix if prefix.count(HOLE) == used.count(HOLE) else None


@rule(
    "note",
    "words begin with their blank in these tokenizers: a prompt that ends in one ends in a token that training never showed there, and the answer begins oddly",
    "take the last blank away",
)
def prompt_ends_in_a_blank(program: Program) -> Iterator[Seen]:
    for node, text in _prompt_texts(program):
        if text.endswith((" ", "\t")) and text.strip():
            yield node, f"the prompt ends in {text[-6:]!r}"


def _prompt_texts(program: Program) -> Iterator[tuple[ast.expr, str]]:
    """Texts that are tokenised for generation, or handed to a function that generates."""
    makers = {name for name, function in program.functions.items() if any(call.inside is function for call in program.generations)}
    prompts = [tokenized.given("text", 0) for call in program.generations for tokenized in _prompts_of(program, call)]
    prompts += [arg for call in program.calls if call.dotted in makers or call.name in ("pipe", "generator") for arg in (*call.node.args, *call.words.values())]
    for node in prompts:
        inner = node.elts if isinstance(node, (ast.List, ast.Tuple)) else [node]
        for one in inner:
            text = program.text(one) if one is not None else None
            if text:
                yield program.value(one) or one, text  # type: ignore[misc]


# Generating


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


# Loading and merging


@rule(
    "fault",
    "the adapter is added to weights that were rounded to 4 bits, and the sum is rounded again: the merged model is not the one that was trained",
    "merge into the 16-bit base, and compare with the unmerged model; or keep the adapter beside the 4-bit base",
)
def merged_into_four_bits(program: Program) -> Iterator[Seen]:
    for call in program.called("merge_and_unload"):
        for one in program.lineage(call.receiver, call.line):
            if one.name == "from_pretrained" and is_four_bit(program, one):
                yield call.node, f"the base was loaded in 4 bits in line {_told(program, (one.node,))}"


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
            yield load.node, f"{kind} here, {kinds[0][1]} in line {_told(program, (kinds[0][0].node,))}"


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
            yield call.node, f"{name} is loaded in line {_told(program, (seen[key].node,))} already"
        seen[key] = call


def _freed(program: Program, first: Call, second: Call) -> bool:
    holder = program.parent(first.node)
    name = ast.unparse(holder.targets[0]) if isinstance(holder, ast.Assign) else None
    deleted = [node for node in ast.walk(program.script.tree) if isinstance(node, ast.Delete) and first.line < node.lineno < second.line]
    return any(name == ast.unparse(target) for node in deleted for target in node.targets)


# Safety


@rule(
    "fault",
    "whoever can write to that repository runs code on this machine, at each load",
    "leave it out: transformers knows the family itself; or name a revision whose code was read",
)
def runs_code_of_a_stranger(program: Program) -> Iterator[Seen]:
    for call in program.calls:
        node = call.words.get("trust_remote_code")
        if node is not None and program.is_on(node) and "revision" not in call.words and "code_revision" not in call.words:
            yield node, "trust_remote_code=True"


@rule(
    "fault",
    "the token goes wherever the file goes: to the repository, to colleagues, into backups",
    "take it back on the hub's page; then read it from the environment (HF_TOKEN) or from `hf auth login`",
)
def token_typed_in(program: Program) -> Iterator[Seen]:
    # Words that stand for a token in an example.
    example = re.compile(r"your|here|token|xxx|\.\.\.|<.*>|^$", re.I)
    for node, text in program.texts:
        if SECRET.match(text) and not re.fullmatch(r"[0-9a-f]{40}", text) and not example.search(text[3:]):
            yield node, "a token stands in the text"
    for call in program.called("login", "notebook_login", "from_pretrained", "push_to_hub"):
        given = (
            call.words.get("token") or call.words.get("key") or call.words.get("use_auth_token") or (call.given("token", 0) if call.name == "login" else None)
        )
        text = program.literal(given)
        if given is not None and isinstance(text, str) and len(text) > 12 and not example.search(text) and not isinstance(program.value(given), ast.Attribute):
            yield given, "a token stands in the text"


@rule(
    "fault",
    "a version with a known hole is asked for, and stays in every environment that is made from this file",
    "the version named here, or a later one",
)
def version_with_a_hole(program: Program) -> Iterator[Seen]:
    for pin in program.script.pins:
        floor, hole = HOLES.get(pin.package.replace("_", "-"), (None, ""))
        if floor is None:
            continue
        exact = pin.sign in ("==", "<=", "~=")
        if numbers(pin.version) < numbers(floor) if exact else numbers(pin.version) <= numbers(floor):
            yield pin.line, f"{pin.package}{pin.sign}{pin.version}, needs {floor}: {hole}"


@rule(
    "note",
    "what is pushed is whatever state the run stopped in, for everybody, before anyone has measured it",
    "push by hand, after base and tuned were compared on rows that were never trained on",
)
def pushed_unmeasured(program: Program) -> Iterator[Seen]:
    pushed = program.argument("push_to_hub")
    if pushed is not None and program.is_on(pushed[1]) and not mentions(program, TEST):
        yield pushed[1], "push_to_hub=True, and no test rows"
