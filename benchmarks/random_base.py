"""Random bases of well-known shapes, built straight into 4 bits on the GPU, a layer at a time: no file, no 16-bit copy of the whole.

The weights mean nothing; memory and time are those of the trained model. `config(name)` is what its config.json says.
"""

from typing import Any

import torch
from torch import nn

from halfbyte.data.batches import IGNORE, Batch

# Of each shape, what its config.json says (without what makes no difference to a training step).
CONFIGS: dict[str, dict[str, Any]] = {
    "mistral-7b": {
        "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 32768, "sliding_window": None, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    },
    "llama-8b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    },
    "llama-1b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    },
    "llama-70b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    },
    "qwen2-7b": {
        "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "use_sliding_window": False,
    },
    "qwen2-0.5b": {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "use_sliding_window": False,
    },
    "qwen3-8b": {
        "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        "use_sliding_window": False,
    },
    "falcon-7b": {
        "model_type": "falcon", "vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71, "multi_query": True,
        "parallel_attn": True, "alibi": False, "bias": False, "new_decoder_architecture": False, "max_position_embeddings": 2048,
    },
}  # fmt: skip


def config(name: str, layers: int | None = None) -> dict[str, Any]:
    """config.json of a shape, with fewer layers where asked."""
    return {**CONFIGS[name], **({"num_hidden_layers": layers} if layers else {}), "dtype": "bfloat16"}


def random_batch(vocabulary: int, rows: int, tokens: int, generator: torch.Generator, packed: int = 0) -> Batch:
    """Full rows of random ids, all but the first learned; each of `packed` documents of equal length where asked."""
    ids = torch.randint(3, vocabulary, (rows, tokens), generator=generator)
    labels = ids.clone()
    labels[:, 0] = IGNORE
    if not packed:
        return Batch(ids, labels, (tokens,) * rows)
    each = -(-tokens // packed)
    numbers = torch.arange(tokens)
    documents = numbers.div(each, rounding_mode="floor")
    return Batch(ids, labels, (tokens,) * rows, (numbers % each).repeat(rows, 1), documents.repeat(rows, 1))


RESIDUAL = ("o_proj", "down_proj")


def build_random_base(settings: dict[str, Any], device: str = "cuda", quantised: bool = True, seed: int = 0, residual: float = 1.0) -> nn.Module:
    """A frozen causal language model as halfbyte.model.load.load_base leaves it: projections in NF4 with double quantisation, the rest in bfloat16.

    residual: what the projections that write into the residual stream are multiplied by.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from halfbyte.model.load import falcon_linears_are_linears

    known = {key: value for key, value in settings.items() if key not in ("model_type", "quantization_config", "architectures", "transformers_version")}
    made = CONFIG_MAPPING[settings["model_type"]](**known)
    with torch.device("meta"), falcon_linears_are_linears():
        model = AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)
    generator = torch.Generator(device).manual_seed(seed)
    head = model.get_output_embeddings()

    def drawn(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim < 2:
            return torch.ones(tensor.shape, dtype=torch.bfloat16, device=device)
        return torch.empty(tensor.shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02, generator=generator)

    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and module is not head and quantised:
            linear = Linear4bit(
                module.in_features, module.out_features, bias=module.bias is not None, compute_dtype=torch.bfloat16, compress_statistics=True,
                quant_type="nf4", device="meta",
            )  # fmt: skip
            weight = drawn(module.weight) * (residual if path.endswith(RESIDUAL) else 1.0)
            linear.weight = Params4bit(weight.cpu() if device == "cpu" else weight, requires_grad=False, quant_type="nf4")
            linear.weight = linear.weight.to(device)
            if module.bias is not None:
                linear.bias = nn.Parameter(torch.zeros(module.out_features, dtype=torch.bfloat16, device=device), requires_grad=False)
            linear.compute_type_is_set = True
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, linear)
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta and not (module is head and settings.get("tie_word_embeddings", made.tie_word_embeddings)):
                setattr(module, name, nn.Parameter(drawn(parameter), requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:  # rotary frequencies: made anew, on the device
                module.register_buffer(name, _frequencies(made, buffer, device), persistent=False)
    model.tie_weights()
    model.requires_grad_(False)
    model.config.use_cache = False
    if quantised:  # what peft asks before it chooses its layers
        model.is_loaded_in_4bit = model.is_quantized = True
    return model


def _frequencies(made: Any, buffer: torch.Tensor, device: str) -> torch.Tensor:
    width = 2 * buffer.numel()
    theta = (getattr(made, "rope_parameters", None) or {}).get("rope_theta", 10000.0)
    return 1.0 / theta ** (torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
