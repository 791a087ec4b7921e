"""Toys for the fast path: models with an adapter whose every number differs, batches with every kind of row, and what autograd makes of them."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F

from halfbyte.data.batches import IGNORE, Batch
from halfbyte.fast.decoder import FastDecoder
from halfbyte.model.load import falcon_linears_are_linears
from halfbyte.train.step import batch_logits
from toys import VOCABULARY, make_model

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FALCON_LINEARS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
SHAPE = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


def made(kind: str, dtype: torch.dtype, changes: dict[str, Any]) -> Any:
    """A frozen model, its linear layers of the class that halfbyte loads them in."""
    shape = {name: value for name, value in {**SHAPE, **changes}.items() if kind != "falcon" or name not in ("intermediate_size", "num_key_value_heads")}
    with falcon_linears_are_linears():
        return make_model(kind, **shape).to(dtype).requires_grad_(False)


def adapted(
    kind: str, targets: Sequence[str] | str | None = None, lora: dict[str, Any] | None = None, dtype: torch.dtype = torch.float64, **changes: Any
) -> Any:
    """A PeftModel of `dtype`, its norms, biases and adapters at random; `changes` are the config's, `lora` LoraConfig's. An adapter on all linear layers
    where no `targets` are given."""
    model = made(kind, dtype, changes)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
    return with_adapter(model, targets, lora).to(dtype)


def four_bit(
    kind: str, double_quant: bool = True, storage: torch.dtype = torch.uint8, quant_type: str = "nf4", dtype: torch.dtype = torch.float32,
    device: str = "cpu", lora: dict[str, Any] | None = None, **changes: Any,
) -> Any:  # fmt: skip
    """A PeftModel whose linear layers are bitsandbytes' own, made from weights of `dtype`, which they also compute in."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    model = made(kind, dtype, changes)
    for parent in list(model.base_model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is torch.nn.Linear:
                linear = Linear4bit(module.in_features, module.out_features, compute_dtype=dtype, quant_type=quant_type, quant_storage=storage)
                linear.weight = Params4bit(
                    module.weight.data, requires_grad=False, compress_statistics=double_quant, quant_type=quant_type, quant_storage=storage, module=linear
                )
                linear.bias = module.bias
                setattr(parent, name, linear.to(device))
    return with_adapter(model.to(device), lora=lora)


def with_adapter(model: Any, targets: Sequence[str] | str | None = None, lora: dict[str, Any] | None = None) -> Any:
    from peft import LoraConfig, get_peft_model

    all_linear = FALCON_LINEARS if model.config.model_type == "falcon" else LINEARS
    targets = targets if isinstance(targets, str) else list(targets or all_linear)
    model = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": targets, "task_type": "CAUSAL_LM", **(lora or {})}))
    redraw(model)
    return model


def redraw(model: Any, seed: int = 1) -> None:
    """Other adapters, in place, as after an optimizer step."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def batch_of(rows: Sequence[Sequence[int]], packed: bool = False, share: float = 0.6, seed: int = 3) -> Batch:
    """`rows`: lengths of each row's documents, one or, where `packed`, several. Rows are filled up to the longest; of the tokens a share is supervised."""
    generator = torch.Generator().manual_seed(seed)
    lengths = tuple(map(sum, rows))
    shape = len(rows), max(lengths)
    ids = torch.randint(3, VOCABULARY, shape, generator=generator)
    labels = torch.where(torch.rand(shape, generator=generator) < share, ids, IGNORE)
    positions, documents = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        ids[number, length:], labels[number, length:] = 2, IGNORE
        for document, (start, end) in enumerate(pairwise(accumulate(row, initial=0))):
            positions[number, start:end], documents[number, start:end] = torch.arange(end - start), document
            labels[number, start] = IGNORE
    return Batch(ids, labels, lengths, positions if packed else None, documents if packed else None)


def by_autograd(model: Any, batches: Sequence[Batch], scale: float, dtype: torch.dtype = torch.float32) -> tuple[float, dict[str, torch.Tensor]]:
    """What the plain path computes (train/step.py): the sum of all losses and the gradient of each trained matrix, times `scale`.

    `dtype` float32 computes in the model's own type. Leaves the model without gradients.
    """
    device = next(model.parameters()).device
    model.zero_grad()
    total = 0.0
    for batch in batches:
        batch = batch.to(device)
        logits = batch_logits(model, batch, dtype)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        loss = scale * F.cross_entropy(wide[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum")
        loss.backward()
        total += float(loss.detach())
    gradients = {name: parameter.grad.clone() for name, parameter in trained(model).items()}
    model.zero_grad()
    return total, gradients


def by_hand(model: Any, batches: Sequence[Batch], scale: float, **how: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """The same by FastDecoder, in the type of the model's embedding."""
    decoder = FastDecoder(model, model.get_input_embeddings().weight.dtype, **how)
    total = sum(float(decoder.accumulate(batch, scale)) for batch in batches)
    gradients = {name: parameter.grad.clone() for name, parameter in trained(model).items()}
    model.zero_grad()
    return total, gradients


def farthest(gradients: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest difference of any number, in parts of the largest number of its matrix."""
    assert gradients.keys() == expected.keys()
    return max(float((gradients[name].double() - one.double()).abs().max() / one.double().abs().max().clamp(min=1e-30)) for name, one in expected.items())
