"""What answers recite: the longest stretch that stands in a training row, as a search of every stretch finds it."""

import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.data.pack import PackedRows, best_fit
from halfbyte.data.store import RowWriter, StoredRows
from halfbyte.data.tokens import Tokens
from halfbyte.evaluate import overlap
from halfbyte.evaluate.overlap import Fingerprints, Overlap, Recital, longest_overlaps, recitals
from toy_tokenizers import tokenizer_of


def row(ids, line=1):
    return Tokens(list(ids), [False] + [True] * (len(ids) - 1), "tale.txt", line)


def stands_in(stretch, ids):
    return any(ids[place : place + len(stretch)] == stretch for place in range(len(ids) - len(stretch) + 1))


def longest_by_search(answer, rows):
    """The definition: every stretch of the answer in every row."""
    return max((end - start for start in range(len(answer)) for end in range(start + 1, len(answer) + 1)
                if any(stands_in(answer[start:end], item.ids) for item in rows)), default=0)  # fmt: skip


def check(answers, rows):
    found = longest_overlaps(answers, rows)
    assert len(found) == len(answers)
    for answer, one in zip(answers, found):
        assert one.tokens == longest_by_search(answer, rows)
        if one.tokens:
            assert stands_in(answer[one.start : one.start + one.tokens], rows[one.row].ids)
        else:
            assert (one.start, one.row) == (0, -1)


FEW_IDS = st.lists(st.integers(0, 3), max_size=25)


@settings(max_examples=200, deadline=None)
@given(
    answers=st.lists(FEW_IDS, max_size=6), texts=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=40), max_size=6), size=st.sampled_from([1, 7, 1000])
)
def test_it_finds_what_a_search_of_every_stretch_finds(answers, texts, size):
    """Few ids, so that stretches repeat; batches of one row, of a few, of all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "BATCH_IDS", size)
        check(answers, [row(text) for text in texts])


def test_a_planted_recital_is_found_where_it_stands():
    draw = random.Random(3)
    rows = [row(draw.choices(range(8000), k=300), line) for line in range(40)]
    answer = draw.choices(range(8000), k=20) + rows[17].ids[100:157] + draw.choices(range(8000), k=20)
    found = longest_overlaps([answer, rows[39].ids, [9999] * 5], rows)
    assert found[0].row == 17
    assert found[0].start in (19, 20)
    assert 57 <= found[0].tokens <= 59
    assert found[1] == Overlap(300, 0, 39)
    assert found[2] == Overlap(0, 0, -1)


def test_empty_and_one_token_answers():
    rows = [row([5, 6, 7]), row([8])]
    assert longest_overlaps([[], [6], [1], [8]], rows) == [Overlap(0, 0, -1), Overlap(1, 0, 0), Overlap(0, 0, -1), Overlap(1, 0, 1)]
    assert longest_overlaps([], rows) == []
    assert longest_overlaps([[5]], []) == [Overlap(0, 0, -1)]
    assert longest_overlaps([[5]], [row([])]) == [Overlap(0, 0, -1)]


def test_a_stretch_does_not_run_over_the_end_of_a_row():
    assert longest_overlaps([[1, 2, 3, 4]], [row([1, 2]), row([3, 4])]) == [Overlap(2, 0, 0)]


def test_texts_of_one_id_and_texts_that_repeat_themselves():
    """Every window is alike, so that all pairs of places match: no more than one of them may be looked at."""
    begun = time.perf_counter()
    assert longest_overlaps([[7] * 400] * 50, [row([7] * 300)] * 300) == [Overlap(300, 0, 0)] * 50
    assert time.perf_counter() - begun < 10


def test_thue_morse_texts_share_no_fingerprints():
    """The two words of 2,048 letters on which every polynomial hash modulo 2^64 agrees."""
    word = [0]
    while len(word) < 2048:
        word += [1 - letter for letter in word]
    other = [1 - letter for letter in word]
    assert Fingerprints(np.array(word)).of(2048)[0] != Fingerprints(np.array(other)).of(2048)[0]


def test_nothing_is_claimed_that_only_shares_a_fingerprint(monkeypatch):
    monkeypatch.setattr(overlap, "_mix", lambda prints: prints & np.uint64(3 << 62))
    draw = random.Random(1)
    answers, rows = [draw.choices(range(9), k=30) for _ in range(50)], [row(draw.choices(range(9), k=60)) for _ in range(2)]
    for answer, found in zip(answers, longest_overlaps(answers, rows)):
        assert stands_in(answer[found.start : found.start + found.tokens], rows[found.row].ids)


def test_rows_on_disk_are_rows(tmp_path):
    draw = random.Random(2)
    rows = [row(draw.choices(range(300), k=50), line) for line in range(30)]
    writer = RowWriter(tmp_path / "train.arrow", 300)
    writer.append(rows)
    stored = StoredRows(tmp_path / "train.arrow", writer.close()["files"])
    answers = [draw.choices(range(300), k=20) for _ in range(20)] + [rows[4].ids[3:30]]
    assert longest_overlaps(answers, stored) == longest_overlaps(answers, rows)


TALE = "It was on a dreary night of November that I beheld the accomplishment of my toils, and with an anxiety that almost amounted to agony"


@pytest.mark.parametrize("kind", ["bytes", "embedded", "blank", "llama"])
def test_a_recital_is_told_in_words(kind):
    tokenizer = tokenizer_of(kind)
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    rows = [row(ids("Nothing of the kind was ever said here."), 3), row(ids(TALE), 7)]
    said = ids("They tell me that I beheld the accomplishment of my toils, and with an unusual calm went home")
    found = recitals({"base": [ids("Blue whales hum"), []], "tuned": [ids("x"), said], "none": []}, rows, tokenizer)
    assert found["tuned"].shared == "that I beheld the accomplishment of my toils, and with an"
    assert found["tuned"].longest_words == 11
    assert found["tuned"].line == "tale.txt:7"
    inside = len(ids("that I beheld the accomplishment of my toils, and with an"))
    # The first word has a token more or less where nothing stands before it.
    assert found["tuned"].share_over_8 == pytest.approx(inside / (len(said) + len(ids("x"))), abs=2 / len(said))
    assert found["base"].share_over_8 == 0
    assert found["base"].longest_words <= 1
    assert found["none"] == Recital(0, "", "", 0)


def test_seven_words_are_a_phrase_and_eight_are_not():
    tokenizer = tokenizer_of("embedded")
    rows = [row(tokenizer(TALE)["input_ids"])]
    share = lambda text: recitals({"a": [tokenizer(text)["input_ids"]]}, rows, tokenizer)["a"]  # noqa: E731
    assert share("Calm on a dreary night of November that he").share_over_8 == 0
    assert share("Calm on a dreary night of November that he").longest_words == 7
    assert share("Calm on a dreary night of November that I").share_over_8 > 0.7


def test_a_packed_document_is_told_by_its_own_line():
    tokenizer = tokenizer_of("embedded")
    documents = [row(tokenizer("Nothing of the kind was ever said here.")["input_ids"], 3), row(tokenizer(TALE)["input_ids"], 7)]
    packed = PackedRows(documents, best_fit(np.array([len(item.ids) for item in documents]), 500))
    assert len(packed) == 1
    told = [recitals({"a": [document.ids]}, packed, tokenizer)["a"].line for document in documents]
    assert told == ["tale.txt:3", "tale.txt:7"]


def test_a_million_ids_take_seconds():
    """100 answers of 200 ids, five of them recited."""
    draw = np.random.default_rng(0)
    text = (draw.zipf(1.3, 1_000_000) % 8000).tolist()
    rows = [row(text[start : start + 500], start) for start in range(0, len(text), 500)]
    answers = [(draw.zipf(1.3, 200) % 8000).tolist() for _ in range(95)] + [rows[number].ids[100:300] for number in range(5)]
    begun = time.perf_counter()
    found = longest_overlaps(answers, rows)
    assert time.perf_counter() - begun < 10
    assert [one.tokens for one in found[95:]] == [200] * 5


def test_answers_of_nothing_recite_nothing():
    tokenizer = tokenizer_of("embedded")
    nothing = Recital(0, "", "", 0)
    assert recitals({"base": [[], []], "tuned": []}, [row(tokenizer(TALE)["input_ids"])], tokenizer) == {"base": nothing, "tuned": nothing}
    assert recitals({"base": [tokenizer(TALE)["input_ids"]]}, [], tokenizer) == {"base": nothing}
