"""How far apart two ways to compute one thing may lie, by the type that is computed in. All tolerances of the proofs, each with its reason."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """Relative. Of `logits` the distance at a token is a share of their spread; of `gradient`, of its length; of `loss`, of what `off` says."""

    logits: float
    share: float
    """Of the tokens that must be as near as that. In 16 bits a few lie farther: a mixture of experts chooses another one at a tie."""
    gradient: float
    loss: float


TOLERANCES = {
    # A rounding is 6e-8; alone and in a batch the same sums are taken in another order, hundreds of them one behind the other: 1e-6 is usual, 1e-5
    # has been seen. A neighbour, a padded place or a factor that should not be there moves it by 1e-2 and more.
    torch.float32: Tolerance(logits=1e-3, share=1.0, gradient=1e-3, loss=1e-4),
    # A rounding is 4e-3 and 32 layers add theirs up; what should not be there moves it by the spread itself.
    torch.bfloat16: Tolerance(logits=0.15, share=0.9, gradient=0.15, loss=2e-2),
    # A rounding is 5e-4.
    torch.float16: Tolerance(logits=0.05, share=0.9, gradient=0.05, loss=5e-3),
}
# Frozen products in FP8 against the plain path in 16 bits. On the embedded base, stirred, on five sets of rows the matrix that is farthest was 0.2 to 0.3 of
# its length away (without FP8 0.04 to 0.05) and the loss 1.6 %; a matrix without its gradient is 1 away, and one with another's more. Rounding grows with
# the depth, and a base that makes too much of it is refused.
FP8 = Tolerance(logits=0.5, share=0.9, gradient=0.8, loss=0.05)
FP8_TOGETHER = 0.5
"""Of all gradients as one, whose cosine is then 0.87 at least."""
# The same numbers summed in another order, in float32 or better: a few roundings.
SAME_SUM = 1e-5
# Below, the model knows its rows by heart: 1 - p is rounded to 6e-8, which is no longer small beside it, nor are the gradients made of it.
BY_HEART = 1e-4
# The scale of an adapter is one division.
SAME_SCALE = 1e-6


def off(seen: float, truth: float, tokens: int = 1) -> float:
    """Distance of two losses, each the sum over so many tokens, as a share of their value, or of one nat a token where that is more: log p is rounded
    beside 1, however near to zero it is, and a logit in 16 bits by a tenth."""
    return abs(seen - truth) / max(abs(truth), float(tokens))
