"""Rules on what is trained: texts, labels, end marks, splits, adapters, precision, the trainer's arguments."""

import ast
import math
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
HELD_OUT = re.compile(r"(?<![a-z])(?:test|val|valid|validation|dev|eval|evaluation|held_?out|holdout)(?![a-z])", re.I)
TEST = re.compile(r"(?<![a-z])(?:test|held_?out|holdout)(?![a-z])", re.I)
INSTRUCT = re.compile(r"\b(instruct|chat|it)\b", re.I)
ALL_SEEDS = ("set_seed", "seed_everything")


# End marks and labels


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
        yield node, f"labels are the whole row, and rows are prompts with answers (line {_told(program, prompts[0])})"


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
                yield node, f"{mark}{word} here, {before[0]}{word} in line {_told(program, before)}"


def _told(program: Program, found: tuple[object, ...]) -> str:
    node = next(one for one in found if isinstance(one, ast.AST))
    place = program.script.place(getattr(node, "lineno", 1))
    return f"{place.line}" if place.cell is None else f"{place.line} of cell {place.cell}"


# Splits


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
        return None if seed is not None and not _is_none(seed) else "numpy"
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
    return any("eval_dataset" in call.words and not _is_none(call.words["eval_dataset"]) for call in program.trainers)


def _is_none(node: ast.expr) -> bool:
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


# Adapters and precision


@rule(
    "fault",
    "the model is wrapped twice: what is saved has other names than what is loaded later, every tensor of the adapter is left out with a warning, "
    "and the 'tuned' model is the base",
    "hand SFTTrainer the plain model with peft_config, or the wrapped one without it; load the saved adapter once, and compare with the base",
)
def adapter_wrapped_twice(program: Program) -> Iterator[Seen]:
    for call in program.trainers:
        config = call.words.get("peft_config")
        if config is None or _is_none(config):
            continue
        wrapped = next((one for one in program.lineage(call.given("model", 0), call.line) if one.name == "get_peft_model"), None)
        if wrapped is not None:
            yield config, f"get_peft_model in line {_told(program, (wrapped.node,))}, and peft_config here"


@rule(
    "note",
    "peft picks the modules: for Mistral and Llama the query and value projections alone, which adapts little of the model",
    'name them, or target_modules="all-linear"',
)
def target_modules_left_open(program: Program) -> Iterator[Seen]:
    for call in program.called("LoraConfig"):
        if "target_modules" not in call.words and not any(word.arg is None for word in call.node.keywords):
            yield call.node, "LoraConfig without target_modules"


@rule(
    "note",
    "the adapter's first matrices are drawn before the trainer sets its seed: the same seed gives another run",
    "set_seed(...) before get_peft_model",
)
def adapter_before_the_seed(program: Program) -> Iterator[Seen]:
    for call in program.called("get_peft_model"):
        if not any(word.arg == "random_state" for word in call.node.keywords) and not seeded_before(program, call, "torch"):
            yield call.node, "nothing seeds torch before the adapter is made"


@rule(
    "fault",
    "two 16-bit formats at once, one of the trainer and one of the 4-bit layers: rounded at every border, and float16 can overflow",
    "one format: bf16=True where the GPU has it, otherwise bnb_4bit_compute_dtype=torch.float16",
)
def two_precisions(program: Program) -> Iterator[Seen]:
    compute = [program.literal(call.words.get("bnb_4bit_compute_dtype")) for call in program.called("BitsAndBytesConfig")]
    wanted = {"fp16": "bfloat16", "bf16": "float16"}
    for name, other in wanted.items():
        found = program.argument(name)
        if found is not None and program.is_on(found[1]) and any(str(one).rpartition(".")[2] == other for one in compute if one):
            yield found[1], f"{name}=True over 4-bit layers that compute in {other}"


@rule(
    "note",
    "the weights are sharded over GPUs by one part of the program and put on one by another; with 4-bit weights on one GPU it does nothing, or breaks",
    "leave it out on one GPU",
)
def sharding_on_one_gpu(program: Program) -> Iterator[Seen]:
    plugin = program.called("FullyShardedDataParallelPlugin")
    four_bit = any(is_four_bit(program, call) for call in program.loads) or program.called("prepare_model_for_kbit_training")
    if plugin and four_bit:
        yield plugin[0].node, "an FSDP plugin beside a model in 4 bits that is loaded whole"


def is_four_bit(program: Program, load: Call) -> bool:
    return program.is_on(load.words.get("load_in_4bit")) or quantisation(program, load) is not None


def quantisation(program: Program, load: Call) -> Call | None:
    """The BitsAndBytesConfig with 4 bits that a load is given."""
    config = program.call_of(program.value(load.words.get("quantization_config"), load.line))
    return config if config is not None and config.name == "BitsAndBytesConfig" and program.is_on(config.words.get("load_in_4bit")) else None


# The trainer's arguments

RENAMED = {
    "evaluation_strategy": "eval_strategy", "no_cuda": "use_cpu", "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size", "use_auth_token": "token", "torch_dtype": "dtype", "max_seq_length": "max_length",
    "group_by_length": "train_sampling_strategy", "warmup_ratio": "warmup_steps (below 1 it is a share)", "push_to_hub_token": "hub_token",
    "overwrite_output_dir": "nothing: it is gone", "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
}  # fmt: skip
OF_TRAINING = ("evaluation_strategy", "no_cuda", "per_gpu_train_batch_size", "per_gpu_eval_batch_size", "group_by_length", "warmup_ratio", "push_to_hub_token",
               "overwrite_output_dir", "logging_dir", "max_seq_length")  # fmt: skip


@rule(
    "note",
    "the name is deprecated or gone: new versions of transformers, peft and TRL warn, ignore it or stop",
    "write the new name",
)
def old_argument(program: Program) -> Iterator[Seen]:
    for call in program.calls:
        training = call in program.arguments or call in program.trainers
        loading = call.name in ("from_pretrained", "push_to_hub", "load_dataset", "pipeline")
        for name, node in call.words.items():
            if (training and name in OF_TRAINING) or (loading and name in ("use_auth_token", "torch_dtype")):
                yield node, f"{name}; today {RENAMED[name]}"
        if call in program.trainers and "tokenizer" in call.words:
            yield call.words["tokenizer"], "tokenizer= of a trainer; today processing_class"
        if loading and "load_in_4bit" in call.words:
            yield call.words["load_in_4bit"], "load_in_4bit= of from_pretrained; today quantization_config=BitsAndBytesConfig(...)"
        if call.name in ("prepare_model_for_int8_training", "DataCollatorForCompletionOnlyLM"):
            yield call.node, f"{call.name} is gone"


SETTINGS = re.compile(
    r"^(\w+_strategy|\w+_steps|num_\w*epochs|learning_rate|lr|\w*batch_size|\w*_config|optim(izer)?|lr_scheduler_type|max_\w*length|warmup_\w+|weight_decay|seed)$"
)
CONFIGS = ("BitsAndBytesConfig", "LoraConfig", "GenerationConfig", "TrainingArguments", "SFTConfig")


@rule(
    "fault",
    "it is set and nothing reads it: the run has the library's default instead",
    "hand it on, or take it out",
)
def set_and_never_read(program: Program) -> Iterator[Seen]:
    if not program.trainers and not program.loads:
        return
    read = {node.id for node in ast.walk(program.script.tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    words = " ".join(text for _, text in program.texts)
    for one in program.assigned:
        if not one.target.isidentifier() or one.target in read or one.part is not None or one.inside is not None:
            continue
        call = program.call_of(one.value)
        is_setting = SETTINGS.match(one.target) and program.literal(one.value) is not None
        if (is_setting or (call is not None and call.name in CONFIGS)) and one.target not in words:
            yield one.value, f"{one.target} is never used"


@rule(
    "note",
    "the comment says one number, the code another: whoever reads it takes the wrong one",
    "take the comment out, or mend it",
)
def comment_says_otherwise(program: Program) -> Iterator[Seen]:
    for one in program.assigned:
        yield from _compare_comment(program, one.target.rpartition(".")[2], one.value)
    for call in (*program.arguments, *program.called("LoraConfig")):
        for name, node in call.words.items():
            yield from _compare_comment(program, name, node)


def _compare_comment(program: Program, name: str, node: ast.expr) -> Iterator[Seen]:
    value = program.literal(node)
    unit = name.rpartition("_")[2].lower()
    line = program.script.place(node.end_lineno or node.lineno).text
    if isinstance(value, int) and not isinstance(value, bool) and unit in ("steps", "epochs", "length", "size", "tokens") and isinstance(node, ast.Constant):
        rest = line[(node.end_col_offset or 0) :].partition("#")[2]
        said = re.search(rf"(\d[\d,]*)\s+(?:\w+\s+)?{unit}\b", rest)
        if said and int(said[1].replace(",", "")) != value:
            yield node, f"{name} is {value}, the comment says {said[0]}"


@rule(
    "fault",
    "a name that no cell gives a value: the cell that made it was deleted, so the notebook cannot be run again, and nobody can see how the model was loaded",
    "put the cell back, restart, and run all cells",
)
def name_never_given(program: Program) -> Iterator[Seen]:
    if program.star_import or program.script.unread:
        return
    bound, first = _bound_names(program), _first_bindings(program)
    told: set[str] = set()
    loaded = [node for node in ast.walk(program.script.tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    for node in sorted(loaded, key=lambda node: (node.lineno, node.col_offset)):
        if node.id in told:
            continue
        if node.id not in bound:
            told.add(node.id)
            yield node, f"nothing here defines {node.id}"
        elif program.owner(node) is None and node.lineno < first.get(node.id, 0):
            told.add(node.id)
            yield node, f"{node.id} is used before anything gives it a value"


def _first_bindings(program: Program) -> dict[str, int]:
    """Name -> the last line of the statement that binds it first, of names that plain statements of the top level alone bind."""
    lines: dict[str, int] = {}
    elsewhere: set[str] = set()
    for node in ast.walk(program.script.tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            statement = program.parent(node)
            while isinstance(statement, (ast.Tuple, ast.List, ast.Starred)):
                statement = program.parent(statement)
            plain = isinstance(statement, ast.Assign) and program.owner(node) is None and isinstance(program.parent(statement), ast.Module)
            if plain and isinstance(statement, ast.Assign):
                # Its own right side runs before it: a line of that that reads the name counts as before.
                lines[node.id] = min(lines.get(node.id, 10**9), (statement.end_lineno or statement.lineno) + 1)
            else:
                elsewhere.add(node.id)
    elsewhere |= {alias.asname or alias.name.partition(".")[0] for node in ast.walk(program.script.tree)
                  if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names}  # fmt: skip
    elsewhere |= {node.name for node in ast.walk(program.script.tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))}
    import builtins

    return {name: line for name, line in lines.items() if name not in elsewhere and name not in dir(builtins)}


OF_NOTEBOOKS = {"display", "get_ipython", "In", "Out", "exit", "quit", "_", "__", "___", "_ih", "_oh", "spark", "dbutils", "__file__", "__name__", "__doc__"}


def _bound_names(program: Program) -> set[str]:
    import builtins

    bound = set(dir(builtins)) | OF_NOTEBOOKS
    for node in ast.walk(program.script.tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            bound |= set(node.names)
        elif isinstance(node, (ast.MatchAs, ast.MatchStar)) and node.name:
            bound.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            bound.add(node.rest)
    return bound


MANY_EPOCHS = 15


@rule(
    "note",
    "so many passes over a small file are learned by heart: the training loss falls to almost nothing, and says so",
    "2 to 4 epochs, early stopping on validation rows",
)
def many_epochs(program: Program) -> Iterator[Seen]:
    found = program.argument("num_train_epochs")
    if found is not None and isinstance(value := program.literal(found[1]), (int, float)) and value >= MANY_EPOCHS and program.argument("max_steps") is None:
        yield found[1], f"{value:g} epochs"
    steps, rows = program.argument("max_steps"), _printed_count(program)
    if steps is not None and rows and isinstance(value := program.literal(steps[1]), int):
        passes = value * math.prod(_sizes(program).values()) / rows
        if passes >= MANY_EPOCHS:
            yield steps[1], f"{passes:.0f} passes over {rows} rows"
    for call in program.trainings:
        for lines, text in program.script.outputs:
            bars = re.findall(r"Epoch (\d+(?:\.\d+)?)/\d+", text)
            if call.line in lines and bars and float(bars[-1]) >= MANY_EPOCHS:
                yield call.node, f"the saved output stands at epoch {float(bars[-1]):g}"


def _printed_count(program: Program) -> int | None:
    """Rows that train, where a notebook printed its data set: that of the part called train, or the only one."""
    printed = [text for _, text in program.script.outputs]
    trained = {int(count) for text in printed for count in re.findall(r"train['\"]?: Dataset\(\{[^}]*num_rows: (\d+)", text)}
    counts = trained or {int(count) for text in printed for count in re.findall(r"num_rows: (\d+)", text)}
    return counts.pop() if len(counts) == 1 else None


FEWEST_STEPS_A_PASS = 4


@rule(
    "note",
    "few updates, each an average over much of the file; the last of a pass holds fewer rows and weighs as much",
    "a smaller per_device_train_batch_size x gradient_accumulation_steps",
)
def few_steps_a_pass(program: Program) -> Iterator[Seen]:
    rows, sizes = _printed_count(program), _sizes(program)
    if rows and sizes and rows / math.prod(sizes.values()) < FEWEST_STEPS_A_PASS:
        largest = program.argument(max(sizes, key=lambda name: sizes[name]))
        if largest is not None:
            yield largest[1], f"{rows} rows in steps of {math.prod(sizes.values())}: {rows / math.prod(sizes.values()):.1f} steps a pass"


def _sizes(program: Program) -> dict[str, int]:
    """What is known of the rows in a step."""
    found = {name: program.argument(name) for name in ("gradient_accumulation_steps", "per_device_train_batch_size")}
    values = {name: program.literal(one[1]) for name, one in found.items() if one is not None}
    return {name: value for name, value in values.items() if isinstance(value, int)}


@rule(
    "note",
    "rows of one length stand together, long ones first: the loss goes in waves, and neighbouring steps are not alike",
    "leave it out, unless padding costs more than that; look at the loss over whole epochs",
)
def rows_sorted_by_length(program: Program) -> Iterator[Seen]:
    found = program.argument("group_by_length")
    if found is not None and program.is_on(found[1]):
        yield found[1], "batches are made of rows of like length"


@rule(
    "fault",
    "the saved output shows that training broke off: what was pushed or saved is whatever checkpoint was last",
    "resume it, or say which step the model is of",
)
def run_broke_off(program: Program) -> Iterator[Seen]:
    for call in program.trainings:
        for lines, text in program.script.outputs:
            bars = re.findall(r"\[\s*(\d+)/(\d+)\s", text)
            if call.line in lines and bars and int(bars[-1][0]) < int(bars[-1][1]):
                yield call.node, f"stopped at step {bars[-1][0]} of {bars[-1][1]}"
            elif call.line in lines and "KeyboardInterrupt" in text:
                yield call.node, "interrupted"
