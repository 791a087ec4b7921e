"""Tokenizers and chat templates of the kinds that are met in the field, as toys: what one of them forgives, another does not."""

import json
import random
from functools import cache
from pathlib import Path

import halfbyte
from toys import CHAT_TEMPLATE, WORDS, make_tokenizer

# The line end behind the mark is written as text: jinja takes one off that stands behind a block.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# A template each of the families that render.py meets. All but `trims` write an answer as it stands.
TEMPLATES = {
    "chatml": CHATML,
    "begins": "{{ bos_token }}" + CHATML,
    # With the block that marks what an assistant says, as newer templates have it.
    "generation": CHAT_TEMPLATE,
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% elif m['role'] == 'system' %}"
        "{{ raise_exception('only user and assistant') }}{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    # No mark behind an answer: the end mark of the tokenizer takes its place.
    "endless": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
    # Qwen's way: a system text of its own where none is given.
    "obliging": "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}" + CHATML,
    # Llama 3's and Gemma's way with blanks.
    "trims": CHATML.replace("m['content']", "(m['content'] | trim)"),
}  # fmt: skip
ROUND_TRIP = [name for name in TEMPLATES if name != "trims"]


@cache
def tokenizer_of(kind: str, template: str | None = None):
    """`bytes` begins with <s>, `bare` does not; `blank`, `first` and `llama` put a blank before a text; `embedded` is ours."""
    made = {
        "bytes": make_tokenizer, "bare": lambda: make_tokenizer(bos=False), "prefix": _prefix_space, "blank": lambda: _sentencepiece("always"),
        "first": lambda: _sentencepiece("first"), "llama": lambda: _sentencepiece(None), "embedded": _embedded,
    }  # fmt: skip
    tokenizer = made[kind]()
    if kind != "embedded" or template is not None:
        tokenizer.chat_template = TEMPLATES[template] if template else None
    return tokenizer


KINDS = ("bytes", "bare", "prefix", "blank", "first", "llama", "embedded")
# Those whose tokens say the same wherever they stand, so that an answer can be decoded alone.
BYTE_LEVEL = ("bytes", "bare", "embedded")


def random_texts(count: int, seed: int, marks: tuple[str, ...] = ()) -> list[str]:
    """Texts of a few pieces each: words, blanks, line ends, digits, scripts, emoji, and whatever `marks` holds."""
    draw = random.Random(seed)
    pieces = [
        "the lamp", "x", " ", "  ", "\n", "\n\n", "\t", "7", "1e5", "don't", "\u00e9t\u00e9", "\u65e5\u672c", "\U0001f600\u200d\U0001f525",
        "\u202e", "\u0301", "[INST]", "</", "<", ">", "|", "{{ x }}", "{%", "\x01", "\U000f0000", "\u2581", "\xa0", *marks,
    ]  # fmt: skip
    texts = ["".join(draw.choices(pieces, k=draw.randint(1, 6))) for _ in range(count)]
    return [text for text in texts if text.strip()]


def _embedded():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Path(halfbyte.__file__).parent / "base")


def _prefix_space():
    """RoBERTa's way: byte-level, with a blank before a text that stands alone."""
    from tokenizers import pre_tokenizers

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def _sentencepiece(scheme: str | None):
    """A blank is U+2581, and one stands before a text: put there by Metaspace, or by Llama 2's normalizer if `scheme` is None."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    learner.train_from_iterator([WORDS] * 3, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(learned["vocab"], key=learned["vocab"].get)]
    vocabulary = {name: number for number, name in enumerate(names)}
    bpe = Tokenizer(models.BPE(vocabulary, [tuple(pair) for pair in learned["merges"]], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if scheme is None:
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    bpe.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>", additional_special_tokens=special[3:], clean_up_tokenization_spaces=False
    )
