"""Finds, in a model that transformers, bitsandbytes and peft have loaded, what the fast blocks compute with; or says why they cannot.

Nothing of the model is changed or replaced. Every part is called by its name, and each number that the blocks take for granted is looked at:
a model of a known type with an unknown setting is refused like an unknown type.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from halfbyte.budget.fast_sizes import SPARE
from halfbyte.fast.block import Block
from halfbyte.fast.falcon import FalconLayer
from halfbyte.fast.head import Head
from halfbyte.fast.layer import Layer
from halfbyte.fast.linear import Frozen, Group, Lora
from halfbyte.fast.norms import LayerNorm, Norm, RmsNorm
from halfbyte.kernels.reference import BLOCK

FAMILY = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "falcon": "Falcon"}
"""transformers' model types whose layers the blocks know (layer.py, falcon.py), and how the names of their classes begin."""
ROPES = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose frequencies do not change with the rows that are seen."""
ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
"""transformers' own, which all compute the same."""
WIDEST_HEAD = 256


class Unfit(Exception):
    """Why the plain path it is, in the words of the plan."""


@dataclass(frozen=True)
class Adopted:
    embedding: nn.Embedding
    rotary: nn.Module
    layers: tuple[Block, ...]
    head: Head
    dtype: torch.dtype


@dataclass(frozen=True)
class Names:
    """Where a model has its parts, and what reads them."""

    decoder: str
    embedding: str
    layers: str
    norm: str
    look: Callable[[Any], None]
    """At the config, for what this family alone can have."""
    read_layer: Callable[[Any, Any], Block]
    read_norm: Callable[[Any, Any], Norm]


def adopt(model: nn.Module, dtype: torch.dtype) -> Adopted:
    """model: a PeftModel around a causal language model, in the types that it trains in; `dtype`: what it computes in. Raises Unfit."""
    causal: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    config: Any = getattr(causal, "config", None)
    if getattr(config, "model_type", None) not in FAMILY:
        raise Unfit(f"they are for {', '.join(FAMILY)}, and this base is of type {getattr(config, 'model_type', type(causal).__name__)}")
    names = FALCON if config.model_type == "falcon" else LLAMA
    decoder = getattr(causal, names.decoder)
    for module, part in ((causal, "ForCausalLM"), (decoder, "Model"), (decoder.rotary_emb, "RotaryEmbedding")):
        _expect(module, config, part)
    embedding, head = getattr(decoder, names.embedding), causal.lm_head
    _look_at_machine(causal, dtype)
    names.look(config)
    _look_at_config(config)
    _look_at_hooks(model, embedding)
    layers = tuple(names.read_layer(layer, config) for layer in getattr(decoder, names.layers)[: config.num_hidden_layers])
    if type(head) is not nn.Linear or head.bias is not None or head.weight.requires_grad:
        raise Unfit("the head is trained, in 4 bits or of another kind")
    if head.weight.dtype != dtype:
        raise Unfit(f"the head is in {_name(head.weight.dtype)}, not in {_name(dtype)}")
    if type(embedding) is not nn.Embedding or embedding.weight.requires_grad:
        raise Unfit("the embedding is trained or of another kind")
    _look_at_trained(model, layers, dtype)
    return Adopted(embedding, decoder.rotary_emb, layers, Head(names.read_norm(getattr(decoder, names.norm), config), head.weight), dtype)


def _look_at_machine(causal: Any, dtype: torch.dtype) -> None:
    """One device holds all, and has kernels for this type."""
    if dtype == torch.float16:
        raise Unfit("float16 needs loss scaling, which they do not have")
    tensors = (*causal.parameters(), *causal.buffers())
    devices = sorted({str(tensor.device) for tensor in tensors})
    if len(devices) > 1:
        raise Unfit(f"the model lies on {' and '.join(devices)}")
    device = next(causal.parameters()).device
    if device.type not in ("cpu", "cuda"):
        raise Unfit(f"they are not for {device.type}")
    if device.type == "cuda":
        if dtype != torch.bfloat16:
            raise Unfit(f"on a GPU they compute in bfloat16, not in {_name(dtype)}")
        if torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 0):
            raise Unfit("they are for GPUs of NVIDIA with compute capability 8.0 or more")
        if find_spec("triton") is None:
            raise Unfit("Triton is not installed")


def _look_at_llama(config: Any) -> None:
    if config.hidden_act not in ("silu", "swish"):
        raise Unfit(f"the base's activation is {config.hidden_act}, not silu")
    if getattr(config, "pretraining_tp", 1) not in (1, None):
        raise Unfit("pretraining_tp is not 1")


def _look_at_falcon(config: Any) -> None:
    """Falcon is a name for several blocks: Falcon-7B's is known."""
    if config.new_decoder_architecture:
        raise Unfit("the base has Falcon's new architecture, with groups of keys and two norms")
    if config.alibi:
        raise Unfit("the base has alibi in place of rotary positions")
    if not config.multi_query:
        raise Unfit("each of the base's heads has its own keys and values")
    if not config.parallel_attn:
        raise Unfit("the base's MLP stands behind its attention, not beside it")
    if config.num_ln_in_parallel_attn not in (None, 1):
        raise Unfit(f"the base has {config.num_ln_in_parallel_attn} norms in front of each layer")
    if config.bias:
        raise Unfit("the base's linear layers have biases")
    if config.activation != "gelu":
        raise Unfit(f"the base's activation is {config.activation}, not gelu")
    if config.hidden_dropout:
        raise Unfit("the base drops a part of each layer's result out")


def _look_at_config(config: Any) -> None:
    if getattr(config, "attention_dropout", 0.0):
        raise Unfit("the base drops attention out")
    if config._attn_implementation not in ATTENTIONS:
        raise Unfit(f"its attention is {config._attn_implementation}")
    rope = getattr(config, "rope_parameters", None) or {}
    if any(isinstance(value, dict) for value in rope.values()):
        raise Unfit("its layers have different positions")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise Unfit("only a part of each head is rotated")
    if rope.get("rope_type", "default") not in ROPES:
        raise Unfit(f"its positions are of kind {rope['rope_type']}, not {', '.join(ROPES)}")


def _look_at_hooks(model: nn.Module, embedding: nn.Module) -> None:
    """A module that is read and not called runs no hook; and offloaded weights come by one. The embedding alone is called."""
    for name, module in model.named_modules():
        hooks = [module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks]
        if module is not embedding:
            hooks.append(module._forward_hooks)
        if any(hooks) or (module is not embedding and "forward" in vars(module)):
            raise Unfit(f"{name or 'the model'} has hooks")


def _look_at_trained(model: nn.Module, layers: tuple[Block, ...], dtype: torch.dtype) -> None:
    """What is trained is what gets a gradient: the adapters, whole, in float32, each in one place."""
    matrices = [matrix for layer in layers for group in layer.groups for matrix in group.matrices()]
    known = {id(matrix) for matrix in matrices}
    if not known:
        raise Unfit("no adapter is there")
    if len(known) < len(matrices):
        raise Unfit("modules share an adapter")
    for name, parameter in model.named_parameters():
        if id(parameter) not in known:
            if parameter.requires_grad:
                raise Unfit(f"{name} is trained, which they do not know")
            continue
        if not parameter.requires_grad:
            raise Unfit(f"{name} is not trained")
        if parameter.dtype != (torch.float64 if dtype == torch.float64 else torch.float32):
            raise Unfit(f"the adapter is in {_name(parameter.dtype)}, not in float32")
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise Unfit(f"{name} has hooks")


def _llama_layer(module: Any, config: Any) -> Layer:
    _expect(module, config, "DecoderLayer")
    attention, mlp = module.self_attn, module.mlp
    _expect(attention, config, "Attention")
    _expect(mlp, config, "MLP")
    head_dim = _head_dim(attention)
    qkv = Group([_frozen(attention, name) for name in ("q_proj", "k_proj", "v_proj")])
    q_norm, k_norm = (_rms_norm(attention.q_norm, config), _rms_norm(attention.k_norm, config)) if config.model_type == "qwen3" else (None, None)
    return Layer(
        input_norm=_rms_norm(module.input_layernorm, config), middle_norm=_rms_norm(module.post_attention_layernorm, config),
        qkv=qkv, o=Group([_frozen(attention, "o_proj")]), gate_up=Group([_frozen(mlp, "gate_proj"), _frozen(mlp, "up_proj")]),
        down=Group([_frozen(mlp, "down_proj")]), heads=qkv.layers[0].outputs // head_dim, kv_heads=qkv.layers[1].outputs // head_dim,
        head_dim=head_dim, scale=attention.scaling, window=_window(attention, config), q_norm=q_norm, k_norm=k_norm,
    )  # fmt: skip


def _window(attention: Any, config: Any) -> int | None:
    """Mistral's is the config's, Qwen's the layer's own; a Llama has none."""
    if config.model_type == "llama":
        return None
    return attention.sliding_window if config.model_type in ("qwen2", "qwen3") else config.sliding_window


def _falcon_layer(module: Any, config: Any) -> FalconLayer:
    _expect(module, config, "DecoderLayer")
    attention, mlp = module.self_attention, module.mlp
    _expect(attention, config, "Attention")
    _expect(mlp, config, "MLP")
    if _kind(mlp.act) != ("transformers.activations", "GELUActivation"):
        raise Unfit(f"in place of GELUActivation there is a {'.'.join(_kind(mlp.act))}")
    head_dim = _head_dim(attention)
    wide = Group([_frozen(attention, "query_key_value"), _frozen(mlp, "dense_h_to_4h")])
    if (attention.num_heads + 2) * head_dim != wide.layers[0].outputs:
        raise Unfit(f"query_key_value has {wide.layers[0].outputs} outputs for {attention.num_heads} heads of {head_dim} and one of keys and values")
    return FalconLayer(
        _layer_norm(module.input_layernorm, config), wide, Group([_frozen(attention, "dense")]), Group([_frozen(mlp, "dense_4h_to_h")]),
        heads=attention.num_heads, head_dim=head_dim, scale=head_dim**-0.5,
    )  # fmt: skip


def _head_dim(attention: Any) -> int:
    if not attention.is_causal:
        raise Unfit("its attention looks ahead")
    width: int = attention.head_dim
    if width % 8 or width > WIDEST_HEAD:
        raise Unfit(f"its heads are {width} wide")
    return width


def _rms_norm(module: Any, config: Any) -> RmsNorm:
    _expect(module, config, "RMSNorm")
    if module.weight.requires_grad:
        raise Unfit("a norm is trained")
    return RmsNorm(module.weight, module.variance_epsilon)


def _layer_norm(module: Any, config: Any) -> LayerNorm:
    if type(module) is not nn.LayerNorm or module.weight is None or module.bias is None or module.normalized_shape != (config.hidden_size,):
        raise Unfit(f"in place of a LayerNorm with weight and bias there is a {'.'.join(_kind(module))}")
    if module.weight.requires_grad or module.bias.requires_grad:
        raise Unfit("a norm is trained")
    return LayerNorm(module.weight, module.bias, module.eps)


def _expect(module: Any, config: Any, part: str) -> None:
    """Of transformers itself: a class of the same name from elsewhere may compute something else."""
    family = config.model_type
    expected = FAMILY[family] + part
    if _kind(module) != (f"transformers.models.{family}.modeling_{family}", expected):
        raise Unfit(f"in place of {expected} there is a {'.'.join(_kind(module))}")


def _frozen(parent: Any, name: str) -> Frozen:
    """A linear layer, 4-bit or plain, alone or wrapped by peft with one LoRA adapter."""
    module: Any = getattr(parent, name)
    lora = None
    if isinstance(getattr(module, "base_layer", None), nn.Module):
        lora, module = _lora(module, name), module.base_layer
    if type(module) is not nn.Linear and _kind(module) != ("bitsandbytes.nn.modules", "Linear4bit"):
        raise Unfit(f"{name} is a {type(module).__name__}")
    weight = module.weight
    if weight.requires_grad or (module.bias is not None and module.bias.requires_grad):
        raise Unfit(f"{name} is trained whole")
    if type(module) is nn.Linear:
        if type(weight.data) is not torch.Tensor or weight.dtype not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
            raise Unfit(f"{name} is a {type(weight.data).__name__} of {_name(weight.dtype)}")
    else:
        _look_at_state(weight.quant_state, name)
    if module.in_features % SPARE:
        raise Unfit(f"{name} has {module.in_features} inputs, not a multiple of {SPARE}")
    return Frozen(module, lora, module.out_features, module.in_features)


def _look_at_state(state: Any, name: str) -> None:
    """How bitsandbytes has quantised a weight."""
    if state is None:
        raise Unfit(f"{name} is not quantised yet")
    if state.quant_type != "nf4" or state.blocksize != BLOCK:
        raise Unfit(f"{name} is in {state.quant_type} with blocks of {state.blocksize}, not nf4 with {BLOCK}")
    if getattr(state, "packing_format_for_cpu", False):
        raise Unfit(f"{name} was repacked for the CPU")


def _lora(module: Any, name: str) -> Lora | None:
    if _kind(module) not in (("peft.tuners.lora.layer", "Linear"), ("peft.tuners.lora.bnb", "Linear4bit")):
        raise Unfit(f"the adapter of {name} is a {'.'.join(_kind(module))}")
    active = [adapter for adapter in module.active_adapters if adapter in module.lora_A]
    if module.disable_adapters or module.merged:
        raise Unfit(f"the adapter of {name} is merged or disabled")
    if not active:
        return None
    if len(active) > 1:
        raise Unfit(f"{name} has {len(active)} active adapters")
    own = active[0]
    if own in module.lora_variant:
        raise Unfit(f"the adapter is of another kind ({type(module.lora_variant[own]).__name__})")
    if not isinstance(module.lora_dropout[own], nn.Identity) and module.lora_dropout[own].p > 0:
        raise Unfit("the adapter has dropout, for which each layer's input is another")
    a, b = module.lora_A[own], module.lora_B[own]
    if type(a) is not nn.Linear or type(b) is not nn.Linear:
        raise Unfit(f"{name} has an adapter of another kind")
    if a.bias is not None or b.bias is not None:
        raise Unfit("the adapter has a bias")
    return Lora(a.weight, b.weight, float(module.scaling[own]))


def _kind(module: Any) -> tuple[str, str]:
    return type(module).__module__, type(module).__name__


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


LLAMA = Names("model", "embed_tokens", "layers", "norm", _look_at_llama, _llama_layer, _rms_norm)
FALCON = Names("transformer", "word_embeddings", "h", "ln_f", _look_at_falcon, _falcon_layer, _layer_norm)
