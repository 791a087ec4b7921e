"""The bytes of a text's ids are the bytes of the text, for every kind of tokenizer."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.data.pack import cut_blocks
from halfbyte.data.render import Example, Piece
from halfbyte.data.tokens import Encoder, Tokens
from halfbyte.evaluate import bits_per_byte as module
from halfbyte.evaluate.bits_per_byte import bits_per_byte, row_bytes, token_bytes
from halfbyte.evaluate.loss import RowLosses
from halfbyte.evaluate.windows import sliding_windows
from toy_tokenizers import BYTE_LEVEL, KINDS, random_texts, tokenizer_of

# SentencePiece cannot tell a blank from U+2581 or whether the blank that a text begins with is its own: the ids are the same.
AMBIGUOUS = "\u2581"
TEXTS = ["the lamp and the sea", "x", "\u65e5\u672c", "\U0001f600\u200d\U0001f525 don't", "a  b\n\nc\t7", "</s> <s> [INST]"]


def text_tokens(encoder, text, line=1):
    ids = encoder.text(text, begins=True)
    return Tokens(ids, [False] * len(encoder.begin) + [True] * (len(ids) - len(encoder.begin)), "a.txt", line)


def counted(kind, texts, max_length=None):
    """Bytes of each text, in blocks if `max_length`."""
    tokenizer = tokenizer_of(kind)
    encoder, per_id = Encoder(tokenizer), token_bytes(tokenizer)
    rows = [text_tokens(encoder, text, line) for line, text in enumerate(texts, 1)]
    if max_length is None:
        # Without a begin mark the first id is not supervised, so that what it adds is put back.
        return row_bytes(rows, per_id) + [0 if encoder.begin else per_id.first[row.ids[0]] for row in rows]
    blocks = cut_blocks(rows, encoder.begin, encoder.end_id, max_length)
    bare = np.array([0 if encoder.begin else per_id.first[row.ids[0]] for row in rows])
    found = row_bytes(blocks, per_id)
    return bare + [found[[block.line == row.line for block in blocks]].sum() for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_they_add_up_to_the_text(kind):
    texts = TEXTS + [text for text in random_texts(200, seed=3) if kind in BYTE_LEVEL or (AMBIGUOUS not in text and not text.startswith(" "))]
    assert list(counted(kind, texts)) == [len(text.encode()) for text in texts]
    assert list(counted(kind, texts, 8)) == [len(text.encode()) for text in texts]


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1))
def test_any_text_on_the_embedded_base(text):
    text = text.encode("utf-8", "replace").decode()
    assert list(counted("embedded", [text])) == [len(text.encode())]


@pytest.mark.parametrize("kind", KINDS)
def test_windows_add_up_to_the_text_too(kind):
    tokenizer = tokenizer_of(kind)
    encoder, per_id = Encoder(tokenizer), token_bytes(tokenizer)
    text = "the keeper lit the lamp \u65e5\u672c and the sea was quiet " * 5 + "."
    row = text_tokens(encoder, text)
    windows, _ = sliding_windows(cut_blocks([row], encoder.begin, encoder.end_id, 16), encoder.begin, 12, 5)
    assert row_bytes(windows, per_id).sum() == len(text.encode()) - (0 if encoder.begin else per_id.anywhere[row.ids[0]])


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_has_its_own_bytes(kind):
    """It stands behind a prompt, where no blank is added, and its end mark is no text."""
    tokenizer = tokenizer_of(kind)
    pieces = [Piece("who comes there?", trained=False, literal=True), Piece("an old man\u00e9", trained=True, literal=True)]
    row = Encoder(tokenizer).encode([Example(pieces, "a.csv", 1)])[0]
    ended = Tokens([*row.ids, tokenizer.eos_token_id], [*row.trained, True], "a.csv", 1)
    assert list(row_bytes([row, ended], token_bytes(tokenizer))) == [12, 12]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_of_no_known_kind_is_decoded(kind, monkeypatch):
    """To the byte but where an id is a part of a character."""
    tokenizer = tokenizer_of(kind)
    known = token_bytes(tokenizer).anywhere
    monkeypatch.setattr(module, "_steps", lambda backend: [{"type": "WordPiece"}])
    decoded = token_bytes(tokenizer).anywhere
    whole = [number for number in range(len(known)) if "\ufffd" not in tokenizer.decode([number])]
    assert len(whole) > len(known) / 2
    assert list(decoded[whole]) == list(known[whole])
    assert (np.abs(decoded - known) <= 3).all()


def test_marks_have_no_bytes_and_added_words_their_own():
    tokenizer = tokenizer_of.__wrapped__("bytes")
    tokenizer.add_tokens(["lighthouse\u00e9"])
    per_id = token_bytes(tokenizer)
    assert not per_id.anywhere[tokenizer.all_special_ids].any()
    assert per_id.anywhere[tokenizer.convert_tokens_to_ids("lighthouse\u00e9")] == 12
    assert len(per_id.anywhere) == len(tokenizer)


def test_bits_are_nats_over_ln_2():
    scores = bits_per_byte(RowLosses(np.array([math.log(2) * 6, 0.0]), np.array([2, 0])), np.array([3, 0]))
    np.testing.assert_allclose(scores, [[6, 3], [0, 0]])
    nats, count = scores.sum(0)
    assert nats / count == pytest.approx(2)
