"""The neutral text: documents enough to be drawn, each in blocks of its own, every character of it."""

import re

import pytest

from halfbyte.data.tokens import Encoder
from halfbyte.errors import DataError
from halfbyte.evaluate.bits_per_byte import row_bytes, token_bytes
from halfbyte.evaluate.neutral import NEUTRAL_TEXT, neutral_rows, split_documents
from toy_tokenizers import tokenizer_of

LONG = "a line of forty characters, or nearly so\n" * 6


def test_the_text_that_ships_has_documents_enough():
    text = NEUTRAL_TEXT.read_text(encoding="utf-8")
    documents = split_documents(text)
    assert len(documents) >= 12
    assert 6_000 <= len(text.encode()) <= 12_000
    assert all(300 <= len(document) <= 1200 for _, document in documents)
    assert re.sub(r"\s+", " ", " ".join(document for _, document in documents)) == re.sub(r"\s+", " ", text).strip()
    lines = text.splitlines()
    assert all(document.startswith(lines[line - 1]) for line, document in documents)


@pytest.mark.parametrize("kind", ["embedded", "bare", "llama"])
def test_its_rows_hold_all_of_it(kind):
    tokenizer = tokenizer_of(kind)
    rows = neutral_rows(tokenizer, 64)
    documents = split_documents(NEUTRAL_TEXT.read_text(encoding="utf-8"))
    assert {row.line for row in rows} == {line for line, _ in documents}
    assert {row.file for row in rows} == {"neutral.txt"}
    assert max(len(row.ids) for row in rows) <= 64
    unsupervised = 0 if Encoder(tokenizer).begin else len(documents)  # of each the first id, a letter
    assert row_bytes(rows, token_bytes(tokenizer)).sum() == sum(len(document.encode()) for _, document in documents) - unsupervised
    assert tokenizer.eos_token_id not in {token for row in rows for token in row.ids}


@pytest.mark.parametrize(("text", "found"), [
    (LONG + "\n" + LONG, [1, 8]),
    (LONG + "\n" + LONG + "\n \n\n" + LONG, [1, 17]),  # two blank lines or more somewhere: only they part
    ("\n\n\nA title\n\n" + LONG + "\n\n" + LONG + "\n\n", [4, 14]),
    ("A title\n\n" + LONG + "\n" + LONG + "\nThe end", [1, 10, 17]),
    ("short", [1]),
])  # fmt: skip
def test_documents_of_a_file_of_one_s_own(text, found):
    documents = split_documents(text)
    assert [line for line, _ in documents] == found
    assert all(text.splitlines()[line - 1].strip() == document.splitlines()[0] for line, document in documents)


def test_a_file_of_one_s_own_is_read_as_data_are(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_bytes("\u00e9t\u00e9 ".encode("cp1252") * 100)
    rows = neutral_rows(tokenizer_of("bytes"), 32, str(file))
    assert {row.file for row in rows} == {"mine.txt"}
    with pytest.raises(DataError, match="nowhere"):
        neutral_rows(tokenizer_of("bytes"), 32, str(tmp_path / "nowhere.txt"))
    file.write_text(" \n")
    with pytest.raises(DataError, match="empty"):
        neutral_rows(tokenizer_of("bytes"), 32, str(file))
