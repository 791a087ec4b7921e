"""Number formats: their names in the recipe, and the context in which a model computes."""

import torch

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def compute_in(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Adapters are float32; inside, their products are computed in the base's 16-bit type. In float32 it does nothing."""
    return torch.autocast(device.type, dtype=dtype if dtype != torch.float32 else torch.bfloat16, enabled=dtype != torch.float32)
