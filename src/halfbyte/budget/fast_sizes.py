"""How large the fast path makes what it works on: what fast/ computes with and what the plan replays of it, in one place."""

SPARE = 64
"""Columns for the adapters of a group are rounded up to a multiple of this: bare ranks cost a tenth of the product on Hopper."""
EIGHT_BIT_SPARE = 128
"""The same of 8-bit products."""
FP8_CAPABILITY = (8, 9)
"""The first compute capability that multiplies 8-bit numbers."""
FEW = 256
"""Numbers of supervised tokens are rounded up to a multiple of this where steps are recorded."""
IN_FLIGHT = 2
"""Layers whose copies to the computer's memory may be under way while others compute."""
LARGE = ("x", "attention", "qkv", "turned", "middle", "gate_up", "wide")
"""Of what a layer keeps (fast/block.py, Saved), what may wait in the computer's memory."""
ALIGNED = 128
"""Tokens of a piece are a multiple of this."""
LOGITS, MOST_ROWS, FEWEST_ROWS = 2**26, 2048, 256
"""At a time: logits of 134 MB in 16 bits, from 2,048 rows with 32,000 words to 384 with 152,000; a product has its full speed from about 256 rows on."""


def thin_columns(rank: int) -> int:
    """Of x A' and dy sB of a group."""
    return -(-rank // SPARE) * SPARE


def pair_columns(rank: int) -> int:
    """Of 8-bit rows, for the adapter: hi, hi and lo."""
    return -(-3 * rank // EIGHT_BIT_SPARE) * EIGHT_BIT_SPARE


def pieces(tokens: int, at_once: int | None) -> list[slice]:
    """Of about equal length, as many as there must be for so many tokens in each, rounded up to a multiple of ALIGNED."""
    count = -(-tokens // (at_once or tokens))
    size = tokens if count == 1 else -(-tokens // count // ALIGNED) * ALIGNED
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def tokens_at_once(tokens: int, tight: bool) -> int:
    """That go through an MLP together, of a micro-batch of so many; tight: where memory is shorter than time. Products are slower below 1,024."""
    return min(4096, max(1024, -(-tokens // 2))) if tight else 8192


def rows_at_a_time(vocabulary: int, tight: bool = False) -> int:
    """Of logits: a multiple of 128; tight: a quarter of it."""
    part = 4 if tight else 1
    return max(FEWEST_ROWS, min(MOST_ROWS // part, LOGITS // part // vocabulary // 128 * 128))
