"""Rules on the rows that are trained: end marks, labels, padding, templates."""

import ast
import re
from collections.abc import Iterator

from halfbyte.checks.program import HOLE, Call, Program
from halfbyte.checks.rule import Seen, rule

BEGIN_MARKS = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "<|endoftext|><")
# What parts the turns of a conversation, or a task from its answer, in a text.
TURN_MARKS = re.compile(
    r"\[/?INST\]|<\|(?:im_start|user|assistant|start_header_id|system)\|?>|<start_of_turn>|</?(?:HUMAN|USER|ASSISTANT|BOT|AI)>"
    r"|\b(?:Human|User|Assistant|Question|Answer|Instruction|Response|Output)\s*:|^#{2,3} ?\w[\w ]*:",
    re.I | re.M,
)
INSTRUCT = re.compile(r"\b(instruct|chat|it)\b", re.I)


@rule(
    "fault",
    "every label that is the pad token is left out of the loss, and so is the end mark: the model never learns to stop, and talks until max_new_tokens",
    "give the pad token an id of its own (an unused or reserved token of the tokenizer), or use a collator that masks by position, not by id",
)
def pad_is_end_mark(program: Program) -> Iterator[Seen]:
    if not _masks_pads(program):
        return
    for one in program.assigned:
        value = program.dotted(one.value) if isinstance(one.value, (ast.Name, ast.Attribute)) else str(program.literal(one.value))
        if re.search(r"pad_token(_id)?$", one.target) and re.search(r"\.?eos_token(_id)?$|^</s>$|^<\|endoftext\|>$", value):
            yield one.value, f"{one.target} is the end mark, and the collator masks every pad token"
    for call in program.calls:
        word = call.words.get("pad_token")
        special = program.entries(call.node.args[0], call.line).get("pad_token") if call.name == "add_special_tokens" and call.node.args else None
        for node in (word, special):
            if node is not None and (program.dotted(node).endswith("eos_token") or program.literal(node) in ("</s>", "<|endoftext|>")):
                yield node, "pad_token is the end mark, and the collator masks every pad token"


def _masks_pads(program: Program) -> bool:
    """transformers' collator for causal models, asked for or by default of TRL's trainer (its own, by position, only since 2025)."""
    if any(_is_causal_collator(program, call) for call in program.calls):
        return True
    return any(call.name == "SFTTrainer" and "data_collator" not in call.words for call in program.trainers)


def _is_causal_collator(program: Program, call: Call) -> bool:
    return call.name == "DataCollatorForLanguageModeling" and program.literal(call.given("mlm", 1)) is False


@rule(
    "fault",
    "the prompt is in the loss too: where it is long or the same in every row, most of the gradient learns the prompt, and the loss says little of the answers",
    "train on the answers alone: prompt and completion columns with TRL's completion_only_loss, or labels of -100 over the prompt",
)
def whole_sequence_loss(program: Program) -> Iterator[Seen]:
    prompts = _prompted_texts(program) or _printed_rows(program)
    if not prompts or not program.trainers or _masks_prompts(program):
        return
    copied = list(_copied_labels(program))
    collators = [call.node for call in program.calls if _is_causal_collator(program, call)]
    trainers = [call.node for call in program.trainers if call.name == "SFTTrainer" and not _has_prompt_columns(program)]
    where = copied or collators or trainers
    for node in where[:1]:
        yield node, f"labels are the whole row, and rows are prompts with answers (line {program.told_line(prompts[0][0])})"


def _printed_rows(program: Program) -> list[tuple[ast.expr, str]]:
    """A row that a notebook printed, with two turns at least, in a cell that generates nothing."""
    found: list[tuple[ast.expr, str]] = []
    for lines, text in program.script.outputs:
        turns = {mark.lower() for mark in TURN_MARKS.findall(text)}
        nodes = [call.node for call in program.calls if call.line in lines and call.name == "print"]
        if len(turns) > 1 and nodes and not any(call.line in lines for call in (*program.generations, *program.trainings)):
            found.append((nodes[0], text))
    return found


def _copied_labels(program: Program) -> Iterator[ast.AST]:
    for one in program.assigned:
        if re.search(r"""\[['"]labels['"]\]$""", one.target) and re.search(r"""input_ids['"]?\]?(\.copy\(\)|\[:\]|\.clone\(\))?$""", ast.unparse(one.value)):
            yield one.value
    for node in ast.walk(program.script.tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "labels" and "input_ids" in ast.unparse(value):
                    yield value


def _masks_prompts(program: Program) -> bool:
    if program.called("DataCollatorForCompletionOnlyLM", "train_on_responses_only"):
        return True
    asked = [program.argument(name) for name in ("completion_only_loss", "assistant_only_loss")]
    if any(found is not None and program.is_on(found[1]) for found in asked):
        return True
    return any(isinstance(node, ast.UnaryOp) and ast.unparse(node) == "-100" for node in ast.walk(program.script.tree))


def _has_prompt_columns(program: Program) -> bool:
    """TRL trains on the completion alone where rows have the columns prompt and completion."""
    keys = {frozenset(key.value for key in node.keys if isinstance(key, ast.Constant)) for node in ast.walk(program.script.tree) if isinstance(node, ast.Dict)}
    return any({"prompt", "completion"} <= found for found in keys)


def _prompted_texts(program: Program) -> list[tuple[ast.expr, str]]:
    """Texts with something put in and a mark between question and answer; a chat template makes one too."""
    made = [(node, text) for node, text in program.texts if HOLE in text and TURN_MARKS.search(text)]
    return made or [(call.node, "") for call in program.called("apply_chat_template") if not program.is_on(call.given("add_generation_prompt"))]


@rule(
    "fault",
    "the tokenizer puts its own begin mark before the one in the text: every training row begins with two, every prompt at use with one",
    "take the mark out of the text, or tokenise with add_special_tokens=False",
)
def double_begin_mark(program: Program) -> Iterator[Seen]:
    if not program.trainers or not _adds_marks(program):
        return
    for node, text in program.texts:
        mark = next((mark for mark in BEGIN_MARKS if text.lstrip(HOLE + " \n").startswith(mark) and len(text) > len(mark)), None)
        if mark:
            yield node, f"the text begins with {mark}, and is tokenised with special tokens on"


def _adds_marks(program: Program) -> bool:
    """Rows are tokenised, by the script or by TRL's trainer, with special tokens on."""
    asked = [call for call in program.tokenizations if program.literal(call.given("add_special_tokens")) is not False]
    unasked = not program.tokenizations and any(call.name == "SFTTrainer" for call in program.trainers)
    return bool(asked) or unasked


@rule(
    "note",
    "rows of one length teach nothing more; the model computes mostly padding, and memory is that of the longest row",
    "pad in the collator, to the longest row of the batch (padding=True or none when tokenising)",
)
def padded_to_the_limit(program: Program) -> Iterator[Seen]:
    for call in program.tokenizations:
        if program.literal(call.given("padding")) == "max_length":
            yield call.node, "every row is padded to max_length"


@rule(
    "fault",
    "labels are the ids themselves, padding included, and this collator leaves them so: the model is trained to say pad tokens",
    "set the labels of padding to -100, or use DataCollatorForLanguageModeling or DataCollatorForSeq2Seq",
)
def padding_in_the_loss(program: Program) -> Iterator[Seen]:
    padded = any(program.literal(call.given("padding")) == "max_length" for call in program.tokenizations)
    collators = [program.value(call.words.get("data_collator")) for call in program.trainers if "data_collator" in call.words]
    keeps = any("default_data_collator" in ast.unparse(node) or "DataCollatorWithPadding" in ast.unparse(node) for node in collators if node is not None)
    plain = any(call.name == "Trainer" and "data_collator" not in call.words for call in program.trainers)
    if padded and (keeps or plain) and not _masks_prompts(program):
        for node in _copied_labels(program):
            yield node, "labels are a copy of padded ids"


@rule(
    "note",
    "a row longer than the model's positions is not cut ('default to no truncation'): one long row decides memory, or breaks the run",
    "say max_length, and count what it cuts",
)
def no_length_limit(program: Program) -> Iterator[Seen]:
    if not program.trainers or any("model_max_length" in call.words for call in program.called("from_pretrained")):
        return
    if any(one.target.endswith("model_max_length") for one in program.assigned):
        return
    for call in program.tokenizations:
        if program.is_on(call.given("truncation")) and "max_length" not in call.words:
            yield call.node, "truncation=True without max_length"


# About 50 English words, for the template, the prompt and its answer.
SHORT_TOKENS = 64


@rule(
    "note",
    "a longer row loses its end, with it the answer's last words and the end mark, and nothing counts how many do",
    "count the rows that are longer, and take a limit that keeps nearly all of them",
)
def short_limit(program: Program) -> Iterator[Seen]:
    """Of a language model that is trained. Labels of a classifier stand beside its texts, which may be cut."""
    if not program.trainers or any(re.search("Classification", call.dotted) for call in program.loads):
        return
    cut = [call for call in program.tokenizations if program.is_on(call.given("truncation")) and not program.is_on(call.given("return_overflowing_tokens"))]
    for call in (*cut, *program.arguments, *program.trainers):
        for name in ("max_length", "max_seq_length"):
            limit = program.literal(call.words.get(name))
            if type(limit) is int and 0 < limit <= SHORT_TOKENS:
                yield call.words[name], f"rows are cut at {limit} tokens, about {limit * 3 // 4} English words"


@rule(
    "fault",
    "a long row loses its beginning: the begin mark and the instruction, while the answer stays",
    "cut the middle of the prompt, or leave such rows out, and count them",
)
def cut_at_the_beginning(program: Program) -> Iterator[Seen]:
    for one in program.assigned:
        if one.target.endswith("truncation_side") and program.literal(one.value) == "left":
            yield one.value, "rows are cut on the left"
    for call in program.calls:
        if program.literal(call.words.get("truncation_side")) == "left":
            yield call.words["truncation_side"], "rows are cut on the left"


@rule(
    "fault",
    "no text of the data has the turn marks that an instruct model answers to: it learns to go on with text, and forgets how to answer",
    "take the base model for plain text, or render conversations with tokenizer.apply_chat_template",
)
def plain_text_on_an_instruct_model(program: Program) -> Iterator[Seen]:
    if not program.trainers or program.called("apply_chat_template") or any(TURN_MARKS.search(text) for _, text in program.texts):
        return
    if any(isinstance(node, ast.Constant) and node.value == "messages" for node in ast.walk(program.script.tree)):
        return
    for call in program.loads:
        name = program.literal(call.given("pretrained_model_name_or_path", 0))
        if isinstance(name, str) and INSTRUCT.search(name.rpartition("/")[2].replace("-", " ").replace("_", " ")):
            yield call.node, f"{name} is an instruct model, and nothing here speaks its chat template"
            return


@rule(
    "fault",
    "two spellings of one word that look alike: the model is told one and shown the other, and no figure shows it",
    "write it once, and use that everywhere",
)
def two_spellings(program: Program) -> Iterator[Seen]:
    seen: dict[str, tuple[str, ast.expr]] = {}
    for node, text in program.texts:
        for mark, word in re.findall(r"([-\u2010-\u2015\u2212])([^\W\d_]\w{3,})", text):
            before = seen.setdefault(word, (mark, node))
            beginning = re.search(rf"(?:^|[\s'\"\x00]){re.escape(mark + word)}", text)
            if before[0] != mark and beginning:
                yield node, f"{mark}{word} here, {before[0]}{word} in line {program.told_line(before[1])}"
