"""Amounts of memory as people write them."""

import re

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def read_amount(text: str) -> int:
    """`24GB` is 24 x 10^9 bytes, `24GiB` 24 x 2^30. Raises ValueError for what is none, or nothing."""
    found = re.fullmatch(r"\s*(\d[\d_]*(?:\.\d+)?)\s*([kmgt]i?)?b\s*", text, re.IGNORECASE)
    amount = int(float(found[1].replace("_", "")) * UNITS[(found[2] or "").lower()]) if found else 0
    if not amount:
        raise ValueError(f"{text!r} is no amount of memory: write it with its unit, such as 24GB, 7.5GB or 16GiB")
    return amount
