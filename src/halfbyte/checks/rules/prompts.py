"""Rules on what generation is given, beside what was trained."""

import ast
from collections.abc import Iterator

from halfbyte.checks.program import HOLE, Call, Program
from halfbyte.checks.rule import Seen, rule
from halfbyte.checks.rules.rows import BEGIN_MARKS


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
                yield node, f"ends in {used[-8:].split(HOLE)[-1]!r}, in training (line {program.told_line(other)}) in {prefix[-8:].split(HOLE)[-1]!r}"


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
