"""The shape of a decoder-only model, from what its config.json says: all that memory and time depend on."""

from dataclasses import dataclass
from typing import Any

from halfbyte.errors import ModelError

LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""Under which a config.json may give the number of decoder layers."""
LLAMA_FAMILY = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose blocks are described by step.py operation by operation; Falcon is described apart."""
BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share a scale, and scales that share one, in 4 bits."""


@dataclass(frozen=True)
class Linear:
    """A projection of a decoder layer."""

    name: str
    outputs: int
    inputs: int
    bias: bool = False

    @property
    def weights(self) -> int:
        return self.outputs * self.inputs


@dataclass(frozen=True)
class Shape:
    """`linears` are those of one layer, in the order in which they are computed."""

    family: str
    exact: bool
    """Whether the blocks of this family are described operation by operation; others are taken for Llama's."""
    layers: int
    width: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    tied: bool
    norms_of_heads: bool
    """Qwen3 normalises queries and keys."""
    linears: tuple[Linear, ...]
    window: int | None = None
    """Tokens that a token sees, where they are fewer than there may be in a row."""

    @property
    def linear_weights(self) -> int:
        return self.layers * sum(linear.weights for linear in self.linears)

    @property
    def norm_weights(self) -> int:
        """Of one layer."""
        if self.family == "falcon":
            return 2 * self.width
        return 2 * self.width + (2 * self.head_width if self.norms_of_heads else 0)

    @property
    def parameters(self) -> int:
        ends = self.vocabulary * self.width * (1 if self.tied else 2) + self.width * (2 if self.family == "falcon" else 1)
        biases = sum(linear.outputs for linear in self.linears if linear.bias)
        return self.linear_weights + ends + self.layers * (self.norm_weights + biases)


def read_shape(config: dict[str, Any], name: str = "the base") -> Shape:
    """Raises ModelError when config.json lacks what is needed."""
    inner = config.get("text_config") or {}
    settings = {**config, **inner}
    family = str(settings.get("model_type", ""))
    experts = next((key for key in ("num_local_experts", "num_experts", "n_routed_experts") if settings.get(key)), None)
    if experts:
        raise ModelError(f"base: {name} is a mixture of {settings[experts]} experts, whose memory is not simulated", hint="use a dense model")

    def number(*keys: str, default: int | None = None) -> int:
        for key in keys:
            if isinstance(settings.get(key), int) and settings[key] > 0:
                return int(settings[key])
        if default is None:
            raise ModelError(f"base: config.json of {name} gives no {keys[0]}", hint="memory cannot be predicted without it: is this a language model?")
        return default

    width, layers = number("hidden_size", "n_embd", "d_model"), number(*LAYER_KEYS)
    heads = number("num_attention_heads", "n_head", "n_heads", "num_heads")
    if family == "falcon":
        return _falcon(settings, width, layers, heads, number("vocab_size"), number("ffn_hidden_size", default=4 * width))
    key_heads = number("num_key_value_heads", default=heads)
    head_width = number("head_dim", default=width // heads)
    feed = number("intermediate_size", "n_inner", "ffn_dim", default=4 * width)
    biased = family == "qwen2" or bool(settings.get("attention_bias"))
    queries, keys = heads * head_width, key_heads * head_width
    linears = (
        Linear("q_proj", queries, width, biased), Linear("k_proj", keys, width, biased), Linear("v_proj", keys, width, biased),
        Linear("o_proj", width, queries, bool(settings.get("attention_bias")) and family != "qwen2"),
        Linear("gate_proj", feed, width), Linear("up_proj", feed, width), Linear("down_proj", width, feed),
    )  # fmt: skip
    tied = bool(settings.get("tie_word_embeddings", False))
    window = number("sliding_window", default=0) if settings.get("use_sliding_window", True) else 0
    return Shape(
        family, family in LLAMA_FAMILY, layers, width, heads, key_heads, head_width, number("vocab_size"), tied, family == "qwen3", linears,
        window or None,
    )  # fmt: skip


def _falcon(settings: dict[str, Any], width: int, layers: int, heads: int, vocabulary: int, feed: int) -> Shape:
    new = bool(settings.get("new_decoder_architecture"))
    head_width = width // heads
    kept = settings.get("num_kv_heads")
    key_heads = int(kept) if new and isinstance(kept, int) else 1 if settings.get("multi_query", True) else heads
    biased = bool(settings.get("bias"))
    linears = (
        Linear("query_key_value", (heads + 2 * key_heads) * head_width, width, biased), Linear("dense", width, width, biased),
        Linear("dense_h_to_4h", feed, width, biased), Linear("dense_4h_to_h", width, feed, biased),
    )  # fmt: skip
    exact = not new and not settings.get("alibi") and bool(settings.get("parallel_attn", True)) and key_heads == 1
    tied = bool(settings.get("tie_word_embeddings", True))
    return Shape("falcon", exact, layers, width, heads, key_heads, head_width, vocabulary, tied, False, linears)
