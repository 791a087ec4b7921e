"""All planted faults. They were written without a look at the proofs that are to find them."""

from planted_faults import in_models, in_rows, in_steps, in_use
from planted_faults.planting import FAULTS, Fault

__all__ = ["FAULTS", "Fault", "in_models", "in_rows", "in_steps", "in_use"]
