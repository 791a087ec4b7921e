"""Bits per byte: the loss in bits over the bytes of UTF-8 that were predicted, which models of different tokenizers can be compared by.

    bits per byte = nats / ln 2 / bytes

A token's bytes are read from its spelling: byte-level vocabularies write each byte as one character, SentencePiece writes a blank
as U+2581 and a byte that has no token of its own as <0xE6>. Marks (begin, end, turns) are no text: they are predicted, but add no bytes.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from halfbyte.data.tokens import Encoder, Tokens
from halfbyte.evaluate.loss import RowLosses

BLANK = "\u2581"
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# How byte-level vocabularies write the 256 bytes (GPT-2, encoder.py): printable ones as themselves, the others from U+0100 on.
PRINTABLE = {chr(byte) for byte in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))}
BYTE_ALPHABET = PRINTABLE | {chr(0x100 + number) for number in range(256 - len(PRINTABLE))}


@dataclass(frozen=True)
class TokenBytes:
    """Bytes of UTF-8 that each id adds to a text, and that it adds where it begins one: SentencePiece puts a blank there that is not in the text."""

    anywhere: np.ndarray  # (V,) int64
    first: np.ndarray  # (V,) int64


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> TokenBytes:
    """Sums over a text's ids are len(text.encode()), unless the tokenizer changes the text (lower case, unknown characters)."""
    spelled = {number: name for name, number in tokenizer.get_vocab().items()}
    spelled |= {number: mark.content for number, mark in tokenizer.added_tokens_decoder.items()}
    anywhere = np.zeros(max(spelled) + 1, np.int64)
    learned = sorted(set(spelled) - set(tokenizer.added_tokens_decoder) - set(tokenizer.all_special_ids))
    anywhere[learned] = _learned_bytes(tokenizer, learned, [spelled[number] for number in learned])
    for number, mark in tokenizer.added_tokens_decoder.items():
        anywhere[number] = 0 if mark.special or number in tokenizer.all_special_ids else len(mark.content.encode())
    first = anywhere.copy()
    if Encoder(tokenizer).anchors:  # it puts a blank before a text that stands alone
        with_blank = [number for number in learned if spelled[number].startswith((BLANK, "\u0120"))]
        first[with_blank] -= 1
    return TokenBytes(anywhere, first)


def row_bytes(rows: Sequence[Tokens], per_id: TokenBytes) -> np.ndarray:
    """(N,) int64: bytes that the supervised ids of each row add. The first row of a file and line begins its text."""
    counted = np.zeros(len(rows), np.int64)
    before = None
    for number, row in enumerate(rows):
        trained = np.array(row.trained, bool)
        trained[:1] = False  # nothing comes before it that could predict it
        ids = np.array(row.ids, np.int64)
        counted[number] = per_id.anywhere[ids[trained]].sum()
        # Behind a begin mark, which adds nothing, stands the text's first id.
        if (row.file, row.line) != before and len(ids) > 1 and trained[1] and not per_id.anywhere[ids[0]]:
            counted[number] += per_id.first[ids[1]] - per_id.anywhere[ids[1]]
        before = (row.file, row.line)
    return counted


def bits_per_byte(losses: RowLosses, counted: np.ndarray) -> np.ndarray:
    """(N, 2) float64: bits and bytes of each row; summed over rows, their ratio is the bits per byte."""
    return np.stack([losses.loss / math.log(2), counted.astype(np.float64)], axis=1)


def _learned_bytes(tokenizer: PreTrainedTokenizerBase, ids: list[int], names: list[str]) -> list[int]:
    """Of each id of the learned vocabulary."""
    decoders = list(_steps(tokenizer.backend_tokenizer.to_str())) if tokenizer.is_fast else []
    if any(step["type"] == "ByteLevel" for step in decoders) or (not decoders and set(names) >= BYTE_ALPHABET):
        return [sum(1 if letter in BYTE_ALPHABET else len(letter.encode()) for letter in name) for name in names]
    if any(step["type"] == "Metaspace" or (step["type"] == "Replace" and step["pattern"] == {"String": BLANK}) for step in decoders):
        return [1 if BYTE.fullmatch(name) else len(name.replace(BLANK, " ").encode()) for name in names]
    return _decoded_bytes(tokenizer, ids)


def _decoded_bytes(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """What an id adds to the text when it stands behind another. U+FFFD stands for the byte of a character that is not whole."""
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    shown = len(_text_bytes(tokenizer, anchor))
    return [len(_text_bytes(tokenizer, [*anchor, number])) - shown for number in ids]


def _text_bytes(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> bytes:
    said = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(said, str)
    return said.replace("\ufffd", "?").encode()


def _steps(backend: str) -> Iterator[dict[str, Any]]:
    """The decoder of a tokenizer of the `tokenizers` library, step by step."""
    decoder = json.loads(backend)["decoder"]
    if decoder is not None:
        yield from decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
