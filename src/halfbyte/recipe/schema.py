"""The recipe: every key on one page. What the user asks; plan.py holds what will run.

Each field's docstring feeds `halfbyte recipe --explain`, the docs and later the forms. Names are those
that users of PEFT, transformers and TRL know; other spellings are translated in load.py.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from halfbyte.recipe.amounts import read_amount


class Section(BaseModel):
    """Frozen; a key that does not exist is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def not_a_switch(value: Any) -> Any:
    """YAML reads `on` and `yes` as true, which pydantic would take for 1."""
    if isinstance(value, bool):
        raise ValueError(f"input should be a number, got {str(value).lower()}")
    return value


def not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty: write a few words, or take it out")
    return text


def a_switch(value: Any) -> Any:
    """Python would take the texts `yes` and `on` for true; in a recipe they may as well be words."""
    if not isinstance(value, bool):
        raise ValueError("input should be true or false")
    return value


def on_or_off(value: Any) -> Any:
    """YAML reads `on` and `off` as a switch, and so may whoever writes `true`."""
    return value if not isinstance(value, bool) else "on" if value else "off"


def a_rate(rate: float) -> float:
    """Outside of these no adapter was ever trained well; inside, the plan warns above 1e-2."""
    if rate == 0:
        raise ValueError("nothing would be learned: give 2e-4, or leave it out")
    if 0 < rate < SMALLEST_RATE or rate > LARGEST_RATE:
        raise ValueError(f"got {rate:g}, which is outside 1e-7..0.1{meant_rate(rate)}")
    return rate


def meant_rate(rate: float) -> str:
    """1e3 for 1e-3: the sign was lost; otherwise the same digits where rates usually are."""
    digits, _, power = f"{rate:.3e}".partition("e")
    turned = -abs(int(power)) if 2 <= abs(int(power)) <= 6 and rate > 1 else -4
    return f": meant {float(digits):g}e{turned}?"


def some_modules(value: Any) -> Any:
    if value == []:
        raise ValueError("names no module; write all-linear, or leave it out")
    return value


def with_prompt(template: str) -> str:
    if template != "chat" and template.count("{prompt}") != 1:
        raise ValueError("write `chat`, or a text with {prompt} in it once")
    return template


def is_reserved(name: str) -> bool:
    """Windows takes such a name for a device, whatever ending it has, and drops a dot at the end."""
    return name.split(".")[0] in RESERVED or name.endswith(".")


def a_folder_name(name: str) -> str:
    if is_reserved(name):
        raise ValueError("is no folder that every system can have: choose another name")
    return name


def an_amount(given: Any) -> str:
    """Of memory, with its unit."""
    text = str(given)
    read_amount(text)
    return text


SMALLEST_RATE, LARGEST_RATE = 1e-7, 1e-1
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
Said = Annotated[str, AfterValidator(not_empty)]
Whole = Annotated[int, BeforeValidator(not_a_switch)]
Real = Annotated[float, BeforeValidator(not_a_switch), Field(allow_inf_nan=False)]
Switch = Annotated[bool, BeforeValidator(a_switch)]
Share = Annotated[Real, Field(ge=0, le=0.5)]


def one_or_more(value: Any) -> Any:
    """A list of files must name at least one."""
    if isinstance(value, list) and not value:
        raise ValueError("names no file")
    return value


class FileData(Section):
    """What every kind of data has."""

    path: Annotated[str | list[str], AfterValidator(one_or_more)]
    """The file, folder or list of files: CSV, TSV, JSON, JSONL, Parquet, .txt or .md, also packed (.gz, .xz, .zst); or hub:owner/name.
    A relative path starts at the folder you call from."""
    encoding: str | None = None
    """Character encoding; found by looking when not given (UTF-8 with or without mark, UTF-16, cp1252)."""
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    """Rows that cannot be read: `refuse` names up to 20 of them and stops; `skip` leaves them out and counts them."""
    licence: str | None = None
    """Licence of the data, kept beside the model so that whoever publishes it knows what it was made of."""
    redact: list[Literal["email", "phone", "handle", "link", "card", "iban"]] = []
    """Kinds of personal data that are replaced by tags such as [EMAIL]. What no pattern finds stays: the data are not anonymous."""
    max_length: Annotated[Whole, Field(ge=8)] = 512
    """Tokens in one training row. A longer prompt is shortened in its middle; a row whose answer does not fit is left out; both are counted."""
    packing: Literal["none", "best_fit"] = "none"
    """`best_fit` fills rows of max_length with several documents that do not see one another; `none` batches rows of like length."""
    validation_share: Share = 0.08
    """Share of the text or of the rows that chooses the best checkpoint; never trained on."""
    test_share: Share = 0.15
    """Share that is opened once, at the end, to compare base and tuned; never trained on."""
    validation_path: str | None = None
    """A file that validates, in the form of `path`, instead of a share of it."""
    test_path: str | None = None
    """A file that tests, in the form of `path`, instead of a share of it. It is compared with the training rows and what they share is reported."""
    drop_overlap: Switch = False
    """Leave out training rows that also stand, or nearly, in the given validation or test file."""
    group_column: str | None = None
    """Rows that have the same value here (an author, a video) stay on one side of the split."""
    near_duplicates: Literal["together", "drop", "ignore"] = "together"
    """Rows that are nearly the same (Jaccard 0.8 of their five-letter pieces): kept on one side of the split, or only the first kept."""
    keep_duplicates: Switch = False
    """Train on exact repetitions of a row too, which are left out and counted otherwise."""
    augment: list[Literal["case", "punctuation", "typos", "turns", "shift"]] = []
    """Changed copies of training rows: case, punctuation or typing errors of what the user says, the first turns of a conversation,
    or blocks of a text that begin elsewhere. Never of held-out rows; counted apart."""
    augment_copies: Annotated[Whole, Field(ge=1, le=10)] = 1
    """Changed copies of each training row, when `augment` asks for any."""

    @property
    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else self.path


class TextData(FileData):
    """Plain text: a book, articles, a column of texts. Every token is trained."""

    kind: Literal["text"]
    column: str | None = None
    """The column that holds the text; not used for text files."""
    rows: Literal["auto", "book", "separate"] = "auto"
    """`book`: the rows follow one another and are joined, then cut into blocks; `separate`: each row is a text of its own."""
    separator: str = "auto"
    """What joins two rows of a book. `auto`: a line end between rows of a table and between lines, a blank line between paragraphs."""
    gap: Annotated[Whole, Field(ge=0)] = 1000
    """Characters of a book that are left out between training, validation and test, so that no page stands on two sides."""
    keep_boilerplate: Switch = False
    """Keep the header and licence text of Project Gutenberg, which are left out otherwise."""


class ChatData(FileData):
    """What every kind with prompts and answers has."""

    prompt_template: Annotated[str, AfterValidator(with_prompt)] = "chat"
    """`chat`: the tokenizer's own chat template; otherwise a text with {prompt} in it, put before the response."""
    system: str | None = None
    """A system text, the same for every row that has none of its own."""
    system_as: Literal["system", "user"] = "system"
    """`user` puts the system text before the first prompt, for chat templates that know no system role."""
    loss: Literal["answers", "last", "all"] = "answers"
    """What is trained: every answer with its end mark, only the last answer of a conversation, or prompts too."""


class AutoData(ChatData):
    """The kind is found by looking at the file; the plan says what was found and why."""

    kind: Literal["auto"] = "auto"
    column: str | None = None
    """The column to look at, where there are several."""
    instruction: str | None = None
    """A text put before every prompt, with a blank line between; never trained."""


class PairData(ChatData):
    """Prompt and response, from two columns. Only the response and its end mark are trained."""

    kind: Literal["prompt_response"]
    prompt_column: str
    """The column with what is asked."""
    response_column: str
    """The column with what the model should say."""
    instruction: str | None = None
    """A text put before every prompt, with a blank line between; never trained."""


class StructureData(ChatData):
    """A sentence and the structure that it means (a meaning representation, JSON). Trained like prompt and response."""

    kind: Literal["structure"]
    prompt_column: str
    """The column with the sentence."""
    response_column: str
    """The column with its structure."""
    instruction: str | None = None
    """A text put before every prompt, with a blank line between; never trained."""


class InstructionData(ChatData):
    """Instruction, an input that may be empty, and output (Alpaca)."""

    kind: Literal["instruction"]
    instruction_column: str = "instruction"
    """The column with the instruction."""
    input_column: str | None = None
    """The column with what the instruction is about, put behind it with a blank line between; may be empty in any row."""
    output_column: str = "output"
    """The column with what the model should say."""


class MessagesData(ChatData):
    """Conversations as lists of messages with `role` and `content` (OpenAI)."""

    kind: Literal["messages"]
    column: str = "messages"
    """The column with the list of messages."""


class ShareGPTData(ChatData):
    """Conversations as lists of turns with `from` (human, gpt, system) and `value` (ShareGPT)."""

    kind: Literal["sharegpt"]
    column: str = "conversations"
    """The column with the list of turns."""


class TaggedData(ChatData):
    """One column in which tags part the turns: <HUMAN>: ... <ASSISTANT>: ..."""

    kind: Literal["tagged"]
    column: str
    """The column with the turns."""
    user_tag: str = "<HUMAN>:"
    """What stands before each turn of the user."""
    assistant_tag: str = "<ASSISTANT>:"
    """What stands before each turn of the assistant."""


class LabelData(ChatData):
    """A text and its class. The class is the answer; classes are text, as they stand in the file."""

    kind: Literal["label"]
    text_column: str
    """The column with the text."""
    label_column: str
    """The column with the class."""
    label_pattern: str | None = None
    """Takes the class out of the column: a regular expression whose first group is the class."""
    labels: list[str] = []
    """The classes that may occur; any other is refused with its line."""
    merge_labels: dict[str, str] = {}
    """Classes that are read as another one: {neutral: other}."""
    instruction: str | None = None
    """A text put before every text, with a blank line between; never trained."""


SomeData = AutoData | TextData | PairData | StructureData | InstructionData | MessagesData | ShareGPTData | TaggedData | LabelData
SettledData = TextData | PairData | StructureData | InstructionData | MessagesData | ShareGPTData | TaggedData | LabelData


ManyTurns = MessagesData | ShareGPTData | TaggedData
_KINDS_OF_DATA = {kind.model_fields["kind"].annotation.__args__[0]: set(kind.model_fields) for kind in SomeData.__args__}


class NF4(Section):
    """4-bit NormalFloat (arXiv 2305.14314, section 3), blocks of 64 weights, by bitsandbytes."""

    kind: Literal["nf4"] = "nf4"
    double_quant: Switch = True
    """Quantise the block scales too: 4.13 instead of 4.5 bits a weight."""


class FP4(Section):
    """4-bit float, blocks of 64 weights, by bitsandbytes; less exact than NF4."""

    kind: Literal["fp4"]
    double_quant: Switch = True
    """Quantise the block scales too."""


class NoQuant(Section):
    """The base stays in 16 or 32 bits (plain LoRA)."""

    kind: Literal["none"]


class Adapter(Section):
    """The trained matrices (LoRA, arXiv 2106.09685), made and saved by peft, kept in float32."""

    kind: Literal["lora", "rslora", "dora"] = "lora"
    """`rslora` scales by alpha/sqrt(r) (arXiv 2312.03732); `dora` trains the magnitude too (arXiv 2402.09353)."""
    r: Annotated[Whole, Field(ge=1)] = 16
    """Rank: width of the adapter."""
    alpha: Annotated[Real, Field(gt=0)] = 32
    """The adapter's output is scaled by alpha/r."""
    dropout: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's input that is set to zero in training."""
    target_modules: Annotated[Literal["all-linear"] | list[str], BeforeValidator(some_modules)] = "all-linear"
    """Names of the linear layers that get an adapter; `all-linear` is all of them but the output head."""
    modules_to_save: list[str] = []
    """Modules trained whole and saved with the adapter (embed_tokens, lm_head); large."""
    init_from: str | None = None
    """A run folder or adapter folder to go on from; its r, alpha, dropout and modules are kept."""


class Train(Section):
    """The loop: AdamW, loss over the supervised tokens of the whole optimizer step."""

    learning_rate: Annotated[Real, AfterValidator(a_rate), Field(gt=0)] = 2e-4
    """Highest learning rate."""
    num_epochs: Annotated[Real, Field(gt=0)] = 3
    """Passes over the training rows; not used when max_steps is given."""
    max_steps: Annotated[Whole, Field(ge=1)] | None = None
    """Stop after this many optimizer steps."""
    batch_size: Annotated[Whole, Field(ge=1)] = 4
    """Rows computed at a time. On a GPU the plan splits the rows of a step (batch_size x gradient_accumulation_steps) as memory
    allows: the step is the same."""
    gradient_accumulation_steps: Annotated[Whole, Field(ge=1)] = 1
    """Batches in one optimizer step."""
    optimizer: Literal["auto", "adamw_torch", "paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit"] = "auto"
    """`auto`: torch's AdamW; paged AdamW on a GPU too small for its state."""
    weight_decay: Annotated[Real, Field(ge=0)] = 0.0
    """Decoupled weight decay of AdamW."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after warm-up: to zero, or not at all."""
    warmup_steps: Annotated[Real, Field(ge=0)] = 0.03
    """Steps of linear warm-up; below 1 it is a share of all steps."""
    max_grad_norm: Annotated[Real, Field(gt=0)] = 1.0
    """Gradients are scaled down to this norm when they are larger."""
    gradient_checkpointing: Switch | None = None
    """Recompute the activations of every layer (true) or of none (false) in the backward pass; when not given, of as many layers as
    memory demands: each costs its share of a third more time."""
    fast_path: Annotated[Literal["auto", "on", "off"], BeforeValidator(on_or_off)] = "auto"
    """halfbyte's own training step, for Llama, Mistral, Qwen2, Qwen3 and Falcon-7B: `auto` takes it on a GPU where it is known to compute this run,
    and the plan says why not; `on` refuses where it cannot, and takes it on a CPU too, in plain PyTorch; `off` never takes it."""
    precision: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of the computation. Adapters and their optimizer state are float32 in every case."""
    compute: Literal["auto", "fp8"] = "auto"
    """`auto`: every product in `precision`. `fp8`: those with the frozen base in 8 bits (E4M3) while it is trained, an approximation for GPUs of
    compute capability 8.9 and more; unproven at 7B, so compare a short run with one without it. It is of the fast path, in bfloat16, and refused by
    name where it cannot be; with fast_path: on a CPU computes it in plain PyTorch, slowly."""
    eval_steps: Annotated[Whole, Field(ge=1)] | None = None
    """Validate, and keep a checkpoint, every so many steps; ten times a run when not given."""
    early_stopping_patience: Annotated[Whole, Field(ge=1)] | None = None
    """Stop after so many validations without a better one."""
    keep_checkpoints: Annotated[Whole, Field(ge=1)] = 2
    """Newest checkpoints that are kept, beside the best."""


class Evaluate(Section):
    """What is measured at the end, base against tuned."""

    prompts: list[Said] = []
    """Prompts that base and tuned answer side by side in the report."""
    max_new_tokens: Annotated[Whole, Field(ge=1)] = 80
    """Longest answer, in tokens."""
    repetition_penalty: Annotated[Real, Field(ge=1, le=2)] = 1.0
    """Above 1, greedy decoding is kept from saying the same again; the same for base and tuned. Small models need it."""
    batch_size: Annotated[Whole, Field(ge=1)] | None = None
    """Rows or prompts computed at a time; twice train.batch_size when not given, and at least 64 without a GPU."""
    stride: Annotated[Whole, Field(ge=1)] | None = None
    """Step of the window that slides over held-out text, in tokens: each token but those of the
    first window is scored with at least max_length less stride before it. Half of data.max_length when not given."""
    max_answers: Annotated[Whole, Field(ge=0)] = 200
    """Test rows, evenly drawn, that base and tuned answer; the answers are scored against those of the file. Likelihoods use every row."""
    wanted_accuracy: Annotated[Real, Field(gt=0, le=1)] = 0.9
    """Of classes: below the confidence at which validation rows are right this often, the scorer abstains."""
    neutral_path: str | None = None
    """A text file on which forgetting is measured; a text of everyday English of halfbyte's own when not given."""
    min_gain: Annotated[Real, Field(ge=0, lt=1)] | None = None
    """What the run promises: the share by which the first figure of the report gets better. `halfbyte gate` checks it."""
    max_forgetting: Annotated[Real, Field(ge=0)] | None = None
    """What the run promises: the share by which perplexity on neutral text may rise. `halfbyte gate` checks it."""


class Track(Section):
    """Where else a run's events are sent, beside its own events.jsonl, which stays the record."""

    report_to: list[Literal["trackio", "tensorboard", "wandb", "mlflow"]] = []
    """Trackers, each an optional extra of the installation; one that fails or hangs is put aside."""


class Recipe(Section):
    """One fine-tuning run, from file to report."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$"), AfterValidator(a_folder_name)]
    """Name of the run's folder: small letters, digits, dot, dash and underscore."""
    base: str = "embedded"
    """The model to start from: `embedded` (ships with halfbyte), a folder, or a hub name, `owner/name@revision`."""
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = 0
    """Seed of adapter, order and dropout: the same seed on the same machine gives the same run; on a GPU as long as the plan computes the
    step in the same way."""
    memory_budget: Annotated[str, BeforeValidator(an_amount)] | None = None
    """GPU memory that the run may take, driver included, such as 24GB; what is free when not given. The plan chooses how the step is
    computed so that it fits, and the run is held to it."""
    data: Annotated[SomeData, Field(discriminator="kind")]
    quant: Annotated[NF4 | FP4 | NoQuant, Field(discriminator="kind")] = NF4()
    adapter: Adapter = Adapter()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    track: Track = Track()

    @model_validator(mode="before")
    @classmethod
    def kinds_have_defaults(cls, values: Any) -> Any:
        """A section without `kind` means the first of its kinds, auto or nf4, unless its keys belong to another: the first that has them all."""
        if isinstance(values, dict):
            for section, kinds in (("data", _KINDS_OF_DATA), ("quant", {"nf4": set()})):
                given = values.get(section)
                if isinstance(given, dict) and "kind" not in given:
                    first, *others = kinds
                    fitting = [] if section == "quant" or set(given) <= kinds[first] else [kind for kind in others if set(given) <= kinds[kind]]
                    values = {**values, section: {"kind": fitting[0] if fitting else first, **given}}
        return values

    @model_validator(mode="after")
    def something_is_left_to_train(self) -> "Recipe":
        if self.data.validation_share + self.data.test_share >= 0.9:
            raise ValueError("data: validation_share and test_share leave nothing to train on")
        return self
