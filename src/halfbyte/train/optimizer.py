"""The optimizer by name, and the learning rate of each step in closed form."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from halfbyte.errors import MachineError


def make_optimizer(name: str, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW with torch's default betas and epsilon. The paged and 8-bit kinds are bitsandbytes' and need a GPU."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if name == "adamw_torch":
        # Fused: one kernel, and no temporary copy of the adapter; only on a GPU, where it gives the same numbers to rounding.
        return torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay, fused=bool(trained) and trained[0].is_cuda)
    try:
        from bitsandbytes import optim
    except (ImportError, OSError, RuntimeError) as error:
        raise MachineError(f"bitsandbytes cannot be loaded: {error}", hint="use train.optimizer=adamw_torch") from error
    kinds = {"paged_adamw_32bit": optim.PagedAdamW32bit, "paged_adamw_8bit": optim.PagedAdamW8bit, "adamw_8bit": optim.AdamW8bit}
    return kinds[name](trained, lr=learning_rate, weight_decay=weight_decay)


def learning_rate_at(step: int, peak: float, schedule: str, warmup_steps: int, total_steps: int) -> float:
    """Rate of optimizer step 1..total_steps: linear up to the peak, then constant, or down to (nearly) zero."""
    if step <= warmup_steps:
        return peak * step / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - 1 - warmup_steps) / max(1, total_steps - warmup_steps)  # 0 at the first full step, below 1 at the last
    progress = min(1.0, progress)
    return peak * (1 - progress) if schedule == "linear" else peak * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
