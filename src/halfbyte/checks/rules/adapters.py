"""Rules on adapters, precision and where the model lies."""

from collections.abc import Iterator

from halfbyte.checks.program import Call, Program
from halfbyte.checks.rule import Seen, rule
from halfbyte.checks.rules.splits import is_none, seeded_before


@rule(
    "fault",
    "the model is wrapped twice: what is saved has other names than what is loaded later, every tensor of the adapter is left out with a warning, "
    "and the 'tuned' model is the base",
    "hand SFTTrainer the plain model with peft_config, or the wrapped one without it; load the saved adapter once, and compare with the base",
)
def adapter_wrapped_twice(program: Program) -> Iterator[Seen]:
    for call in program.trainers:
        config = call.words.get("peft_config")
        if config is None or is_none(config):
            continue
        wrapped = next((one for one in program.lineage(call.given("model", 0), call.line) if one.name == "get_peft_model"), None)
        if wrapped is not None:
            yield config, f"get_peft_model in line {program.told_line(wrapped.node)}, and peft_config here"


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
