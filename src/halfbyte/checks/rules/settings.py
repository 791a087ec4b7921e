"""Rules on the trainer's arguments, and on names and comments that say what is not so."""

import ast
import math
import re
from collections.abc import Iterator

from halfbyte.checks.program import Program
from halfbyte.checks.rule import Seen, rule

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


# Of adapters: QLoRA (arXiv 2305.14314, appendix B) has 1e-4 to 2e-4; ten times that works on small models, a hundred times not.
HIGHEST_RATE = 5e-3
# They train a few vectors, at rates of 1e-2 and more.
OF_PROMPTS = ("PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig", "IA3Config", "VeraConfig", "XLoraConfig")


@rule(
    "note",
    "a pretrained model is torn apart by such a rate: the loss jumps in the first steps, and what it knew is gone, while the run ends as any other",
    "1e-4 to 1e-3 for an adapter, a tenth of that for all weights; look at the first steps' loss",
)
def learning_rate_far_off(program: Program) -> Iterator[Seen]:
    """Where a pretrained language model is trained with Adam, which is the default."""
    pretrained = any("ForCausalLM" in call.dotted for call in program.loads) or bool(program.called("LoraConfig", "get_peft_model"))
    if not pretrained or program.called(*OF_PROMPTS) or program.called("from_config"):
        return
    optimizer = program.argument("optim")
    if optimizer is not None and "adam" not in str(program.literal(optimizer[1])).lower():
        return
    found = [call.words["learning_rate"] for call in program.arguments if "learning_rate" in call.words]
    found += [call.words["lr"] for call in program.called("AdamW", "Adam", "PagedAdamW", "AdamW8bit", "PagedAdamW8bit") if "lr" in call.words]
    for node in found:
        rate = program.literal(node)
        if isinstance(rate, float | int) and not isinstance(rate, bool) and rate > HIGHEST_RATE:
            yield node, f"{rate:g}, where 1e-3 is much already"


@rule(
    "fault",
    "the rate is still climbing when the run ends: the one that was asked for is never reached, and nothing decays",
    "a warm-up of 3 to 10 % of the steps (warmup_steps below 1 is a share of them)",
)
def warmup_never_ends(program: Program) -> Iterator[Seen]:
    pairs = []
    for call in program.arguments:
        schedule = program.literal(call.words.get("lr_scheduler_type"))
        if schedule != "constant":  # which has no warm-up
            pairs.append((call.words.get("warmup_steps"), call.words.get("max_steps")))
    for call in program.calls:
        if re.fullmatch(r"get_\w*schedule\w*", call.name):
            pairs.append((call.words.get("num_warmup_steps"), call.words.get("num_training_steps")))
    for warmup, total in pairs:
        asked, steps = program.literal(warmup), program.literal(total)
        if warmup is not None and type(asked) is int and type(steps) is int and asked >= steps > 0:
            yield warmup, f"{asked:,} steps of warm-up in a run of {steps:,}"


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
