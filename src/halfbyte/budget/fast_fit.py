"""Whether the fast path is known to compute a run, by its recipe and its base's config alone; fast/adopt.py has the last word, on the loaded model."""

from typing import Any

from halfbyte.budget.fast_sizes import FP8_CAPABILITY
from halfbyte.recipe.schema import Recipe

FAMILY = ("llama", "mistral", "qwen2", "qwen3", "falcon")
ROPES = ("default", "linear", "llama3", "yarn")
FP8_CANNOT = "train.compute is fp8, and it cannot be taken: {}"
FP8_HINT = "leave train.compute out, and products are in 16 bits"
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FALCON_LINEARS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")


def why_plain(recipe: Recipe, config: dict[str, Any], precision: str = "bfloat16", on_gpu: bool = True, is_old: bool = False) -> str | None:
    """The reason, in the words of the plan, or None. precision: what is computed in; is_old: a GPU before compute capability 8.0."""
    if recipe.train.fast_path == "off":
        return "train.fast_path is off"
    if not on_gpu and recipe.train.fast_path == "auto":
        return "without a GPU it is taken only where train.fast_path is on"
    return _of_machine(precision, on_gpu, is_old) or _of_adapter(recipe, config) or _of_weights(recipe, config) or _of_config(config)


def why_not_fp8(recipe: Recipe, config: dict[str, Any], precision: str, on_gpu: bool, has_fp8: bool, plain_because: str | None) -> str | None:
    """The reason, or None. has_fp8: a GPU that multiplies 8-bit numbers; plain_because: what `why_plain` says."""
    if on_gpu and not has_fp8:
        return f"8-bit products need a GPU of compute capability {FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]} or more"
    if not on_gpu and recipe.train.fast_path != "on":
        return "there is no GPU; train.fast_path=on computes it in plain PyTorch, slowly"
    if precision != "bfloat16":
        return f"it is beside bfloat16, and this computes in {precision}; train.precision=bfloat16 sets it"
    if config.get("model_type") == "falcon":
        return "it is for the Llama family, and this base is of type falcon"
    return plain_because and f"it is of the fast path, which is not taken: {plain_because}"


def _of_machine(precision: str, on_gpu: bool, is_old: bool) -> str | None:
    if precision == "float16":
        return "float16 needs loss scaling, which it does not have"
    if on_gpu and is_old:
        return "its attention needs a GPU of compute capability 8.0"
    if on_gpu and precision == "float32":
        return "its attention computes in 16 bits on a GPU"
    return None


def _of_adapter(recipe: Recipe, config: dict[str, Any]) -> str | None:
    adapter, known = recipe.adapter, FALCON_LINEARS if config.get("model_type") == "falcon" else LINEARS
    if adapter.kind == "dora":
        return "the adapter is DoRA"
    if adapter.dropout > 0:
        return "the adapter has dropout, for which each layer's input is another"
    if adapter.modules_to_save:
        return f"{adapter.modules_to_save[0]} is trained whole"
    if adapter.target_modules != "all-linear":
        other = next((name for name in adapter.target_modules if name.rsplit(".", 1)[-1] not in known), None)
        return other and f"{other} has an adapter"
    return None


def _of_weights(recipe: Recipe, config: dict[str, Any]) -> str | None:
    saved = config.get("quantization_config")
    if saved:
        kind = str(saved.get("bnb_4bit_quant_type", "fp4")) if saved.get("load_in_4bit") else str(saved.get("quant_method", "another kind"))
    else:
        kind = recipe.quant.kind
    return None if kind in ("nf4", "none") else f"the base is in {kind}, not nf4"


def _of_config(config: dict[str, Any]) -> str | None:
    family = config.get("model_type")
    if family not in FAMILY:
        return f"it is for {', '.join(FAMILY)}, and this base is of type {family}"
    if reason := _of_falcon(config) if family == "falcon" else _of_llama(config):
        return reason
    if config.get("attention_dropout"):
        return "the base drops attention out"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        return "only a part of each head is rotated"
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPES:
        return f"its positions are of kind {kind}, not {', '.join(ROPES)}"
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if not isinstance(width, int) or not isinstance(heads, int) or not heads:
        return "config.json gives no width or no heads"
    head_width = config.get("head_dim") or width // heads
    if head_width % 8 or head_width > 256:
        return f"its heads are {head_width} wide"
    for inputs in (width, heads * head_width, config.get("ffn_hidden_size" if family == "falcon" else "intermediate_size") or 4 * width):
        if inputs % 64:
            return f"a linear layer has {inputs} inputs, not a multiple of 64"
    return None


def _of_llama(config: dict[str, Any]) -> str | None:
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        return f"the base's activation is {config['hidden_act']}, not silu"
    return "pretraining_tp is not 1" if config.get("pretraining_tp", 1) not in (1, None) else None


def _of_falcon(config: dict[str, Any]) -> str | None:
    """Falcon is a name for several blocks: Falcon-7B's is known."""
    if config.get("new_decoder_architecture"):
        return "the base has Falcon's new architecture, with groups of keys and two norms"
    if config.get("alibi"):
        return "the base has alibi in place of rotary positions"
    if not config.get("multi_query", True):
        return "each of the base's heads has its own keys and values"
    if not config.get("parallel_attn", True):
        return "the base's MLP stands behind its attention, not beside it"
    if config.get("num_ln_in_parallel_attn") not in (None, 1):
        return f"the base has {config['num_ln_in_parallel_attn']} norms in front of each layer"
    if config.get("bias"):
        return "the base's linear layers have biases"
    if config.get("activation", "gelu") != "gelu":
        return f"the base's activation is {config['activation']}, not gelu"
    return "the base drops a part of each layer's result out" if config.get("hidden_dropout") else None
