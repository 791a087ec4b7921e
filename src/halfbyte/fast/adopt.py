"""Finds, in a model that transformers, bitsandbytes and peft have loaded, what the fast blocks compute with; or says why they cannot.

Nothing of the model is changed or replaced. Every part is called by its name, and each number that the blocks take for granted is looked at:
a model of a known type with an unknown setting is refused like an unknown type.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from halfbyte.fast.head import Head
from halfbyte.fast.layer import Layer, Norm
from halfbyte.fast.linear import Frozen, Group, Lora

FAMILY = ("llama", "mistral", "qwen2", "qwen3")
"""transformers' model types whose layers are x + attention(norm(x)), then + mlp(norm(x)) with silu, rotary halves and grouped queries."""
LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")


class Unfit(Exception):
    """Why the plain path it is, in the words of the plan."""


@dataclass(frozen=True)
class Adopted:
    embedding: nn.Embedding
    rotary: nn.Module
    layers: tuple[Layer, ...]
    head: Head
    dtype: torch.dtype


def adopt(model: nn.Module, dtype: torch.dtype) -> Adopted:
    """model: a PeftModel around a causal language model, in the types that it trains in; `dtype`: what it computes in. Raises Unfit."""
    if dtype == torch.float16:
        raise Unfit("float16 needs loss scaling, which they do not have")
    causal: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = causal.config
    if config.model_type not in FAMILY:
        raise Unfit(f"they are for {', '.join(FAMILY)}, and this base is of type {config.model_type}")
    _look_at(config)
    decoder = causal.model
    layers = tuple(_layer(layer, config) for layer in decoder.layers)
    head = causal.lm_head
    if type(head) is not nn.Linear or head.bias is not None or head.weight.requires_grad:
        raise Unfit("the head is trained, in 4 bits or of another kind")
    if type(decoder.embed_tokens) is not nn.Embedding or decoder.embed_tokens.weight.requires_grad:
        raise Unfit("the embedding is trained or of another kind")
    known = {id(matrix) for layer in layers for group in layer.groups for matrix in group.matrices()}
    if not known:
        raise Unfit("no adapter is there")
    others = [name for name, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) not in known]
    if others:
        raise Unfit(f"{others[0]} is trained, which they do not know")
    return Adopted(decoder.embed_tokens, decoder.rotary_emb, layers, Head(_norm(decoder.norm), head.weight), dtype)


def _look_at(config: Any) -> None:
    if config.hidden_act != "silu":
        raise Unfit(f"the base's activation is {config.hidden_act}, not silu")
    if getattr(config, "attention_dropout", 0.0):
        raise Unfit("the base drops attention out")
    if getattr(config, "mlp_bias", False):
        raise Unfit("the base's MLP has biases")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise Unfit("only a part of each head is rotated")
    if rope.get("rope_type", "default") in ("dynamic", "longrope"):
        raise Unfit(f"its positions are of kind {rope['rope_type']}, which depends on the length of the row")
    if getattr(config, "pretraining_tp", 1) != 1:
        raise Unfit("pretraining_tp is not 1")


def _layer(module: Any, config: Any) -> Layer:
    if type(module).__name__ not in LAYERS:
        raise Unfit(f"a layer is a {type(module).__name__}")
    if getattr(module, "_forward_hooks", None):
        raise Unfit("a layer has hooks")
    attention, mlp = module.self_attn, module.mlp
    head_dim = attention.head_dim
    if head_dim % 8 or head_dim > 256:
        raise Unfit(f"its heads are {head_dim} wide")
    qkv = Group([_frozen(attention, name) for name in ("q_proj", "k_proj", "v_proj")])
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return Layer(
        input_norm=_norm(module.input_layernorm), middle_norm=_norm(module.post_attention_layernorm),
        qkv=qkv, o=Group([_frozen(attention, "o_proj")]), gate_up=Group([_frozen(mlp, "gate_proj"), _frozen(mlp, "up_proj")]),
        down=Group([_frozen(mlp, "down_proj")]), heads=qkv.layers[0].outputs // head_dim, kv_heads=qkv.layers[1].outputs // head_dim,
        head_dim=head_dim, scale=attention.scaling, window=_window(attention, config),
        q_norm=_norm(q_norm) if q_norm is not None else None, k_norm=_norm(k_norm) if k_norm is not None else None,
    )  # fmt: skip


def _window(attention: Any, config: Any) -> int | None:
    """Mistral's is the config's, Qwen's the layer's own; a Llama has none."""
    window = getattr(attention, "sliding_window", None) if config.model_type.startswith("qwen") else getattr(config, "sliding_window", None)
    return window if config.model_type != "llama" else None


def _norm(module: Any) -> Norm:
    if type(module).__name__ not in NORMS or module.weight.requires_grad:
        raise Unfit(f"a norm is a {type(module).__name__}, or is trained")
    return Norm(module.weight, module.variance_epsilon)


def _frozen(parent: Any, name: str) -> Frozen:
    """A linear layer, 4-bit or plain, alone or wrapped by peft with one LoRA adapter."""
    module: Any = getattr(parent, name)
    lora = None
    if hasattr(module, "base_layer"):
        lora, module = _lora(module, name), module.base_layer
    kind = type(module).__name__
    if kind not in ("Linear", "Linear4bit"):
        raise Unfit(f"{name} is a {kind}")
    state = getattr(module.weight, "quant_state", None)
    if state is not None and (state.quant_type != "nf4" or state.blocksize != 64):
        raise Unfit(f"{name} is in {state.quant_type} with blocks of {state.blocksize}, not nf4 with 64")
    if kind == "Linear4bit" and state is None:
        raise Unfit(f"{name} is not quantised yet")
    if module.in_features % 64:
        raise Unfit(f"{name} has {module.in_features} inputs, not a multiple of 64")
    if module.weight.requires_grad or (module.bias is not None and module.bias.requires_grad):
        raise Unfit(f"{name} is trained whole")
    return Frozen(module, lora, module.out_features, module.in_features)


def _lora(module: Any, name: str) -> Lora:
    active = list(module.active_adapters)
    if len(active) != 1 or module.disable_adapters or module.merged:
        raise Unfit(f"{name} has {len(active)} active adapters, or a merged or disabled one")
    own = active[0]
    if module.lora_variant:
        raise Unfit(f"the adapter is of another kind ({type(module.lora_variant[own]).__name__})")
    if not isinstance(module.lora_dropout[own], nn.Identity) and module.lora_dropout[own].p > 0:
        raise Unfit("the adapter has dropout, for which each layer's input is another")
    if module.lora_bias[own]:
        raise Unfit("the adapter has a bias")
    if type(module.lora_A[own]) is not nn.Linear or type(module.lora_B[own]) is not nn.Linear:
        raise Unfit(f"{name} has an adapter of another kind")
    return Lora(module.lora_A[own].weight, module.lora_B[own].weight, module.scaling[own])
