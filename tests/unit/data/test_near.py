"""Near-duplicates are found whatever surrounds them, strangers stay apart, and neither length nor number of texts makes it slow or large."""

import random
from pathlib import Path

import numpy as np
import pytest

from halfbyte.data import near
from halfbyte.data.near import Signatures, connected, equal_keys, jaccard, least_hashes
from halfbyte.errors import DataError

WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll", "ledge", "marsh", "north", "ocean", "shore"]


def random_texts(count: int, words: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=words)) + f" {draw.random()}" for _ in range(count)]


def components(texts: list[str]) -> list[int]:
    with Signatures() as signatures:
        signatures.append(texts)
        return connected(len(texts), signatures.pairs()).tolist()


def test_jaccard_is_what_the_definition_says():
    assert jaccard("abcdef", "abcdeg") == 1 / 3  # abcde of abcde, bcdef, bcdeg
    assert jaccard("Über  die\nBRÜCKE", "über die brücke") == 1
    assert jaccard("ﬁne texts", "fine texts") == 1  # NFKC takes the ligature apart
    assert (jaccard("ab", "AB "), jaccard("ab", "abc"), jaccard("", " ")) == (1, 0, 1)


@pytest.mark.parametrize("words", [3, 20, 200])
def test_sketches_estimate_the_jaccard_index(words):
    """Within four standard errors, on average within a third of one: a biased hash would show in the mean."""
    draw, pairs = random.Random(words), []
    for text in random_texts(200, words):
        parts = text.split(" ")
        parts[draw.randrange(len(parts))] = "another"
        pairs.append((text, " ".join(parts)))
    first, second = least_hashes([a for a, _ in pairs]), least_hashes([b for _, b in pairs])
    errors = (first == second).mean(axis=1) - [jaccard(a, b) for a, b in pairs]
    worst_error = 0.5 / near.PERMUTATIONS**0.5  # of a share: largest at one half
    assert abs(errors).max() < 4 * worst_error
    assert abs(errors.mean()) < worst_error / 3


def test_a_text_is_the_same_in_any_company(monkeypatch):
    """Batches, and the pieces that a long text is cut into, lose no shingle at a border and make none."""
    texts = ["", "a", "abcd", "abcde", *random_texts(5, 300), "x" * 1000, "日本語のテキスト", "🙂 smile"]
    alone = np.concatenate([least_hashes([text]) for text in texts])
    assert np.array_equal(least_hashes(texts), alone)
    monkeypatch.setattr(near, "CHARACTERS_AT_ONCE", 7)
    assert np.array_equal(least_hashes(texts), alone)


def test_a_shingle_counts_once_wherever_it_stands():
    assert np.array_equal(least_hashes(["abcdeabcdeabcde"]), least_hashes(["abcdeabcde"]))
    text = "every shingle of this text, hashed alone"
    shingles = [text[at : at + near.SHINGLE] for at in range(len(text) - near.SHINGLE + 1)]
    whole = [shingle for shingle in shingles if shingle == shingle.strip()]  # the others lose a blank when they stand alone
    assert len(whole) < len(shingles)
    assert (least_hashes([text])[0] <= least_hashes(whole).min(axis=0)).all()
    assert np.array_equal(least_hashes(["unbroken"])[0], least_hashes(["unbro", "nbrok", "broke", "roken"]).min(axis=0))


def test_a_lone_surrogate_is_a_character():
    """JSON may hold half of a surrogate pair, which UTF-32 refuses: it must not end the run."""
    assert components(["broken \ud83d emoji in the text", "broken \ud83d emoji in the text!", "nothing of the kind"]) == [0, 0, 2]


def test_edited_copies_are_found_and_strangers_stay_apart():
    texts = random_texts(400, 60)
    copies = [text.replace(" ", "  ", 3).upper() + " Indeed." for text in texts]
    assert min(jaccard(a, b) for a, b in zip(texts, copies)) >= 0.8
    assert components(texts + copies) == [*range(400)] * 2


def test_short_texts_are_duplicates_only_when_equal():
    assert components(["yes", "no", "Yes ", "yes!", "", "no"]) == [0, 1, 0, 3, 4, 1]


def test_every_edge_of_pairs_is_between_texts_that_are_alike():
    draw, texts = random.Random(3), random_texts(50, 40)
    for text in texts[:50]:
        parts = text.split(" ")
        for _ in range(12):
            parts[draw.randrange(len(parts))] = draw.choice(WORDS)
            texts.append(" ".join(parts))
    with Signatures() as signatures:
        signatures.append(texts)
        edges = signatures.pairs()
    assert edges.dtype == np.int64
    assert (edges[:, 0] < edges[:, 1]).all()
    assert len(edges) > 200
    assert min(jaccard(texts[i], texts[j]) for i, j in edges.tolist()) > 0.5


def test_a_text_is_found_behind_a_thousand_copies_of_another():
    text = random_texts(1, 60)[0]
    texts = [text] * 1000 + [text + " one"] * 1000 + [text + " two more"]
    assert set(components(texts)) == {0}


def test_equal_texts_take_one_comparison_each(monkeypatch):
    """A bucket of all rows must stay linear: a file with one text a hundred thousand times is not a hundred thousand squared."""
    compared = []
    count_nonzero = np.count_nonzero
    monkeypatch.setattr(np, "count_nonzero", lambda array, **rest: compared.append(len(array)) or count_nonzero(array, **rest))
    assert set(components(["one and the same text"] * 20_000)) == {0}
    assert sum(compared) < 2 * 20_000


def test_each_band_brings_every_copy_until_it_is_joined():
    """All quarters of the keys are searched, and copies that are joined stand between no other texts: the second time there is one of each."""
    texts = random_texts(100, 30) * 3
    with Signatures() as signatures:
        signatures.append(texts)
        for band in (0, near.BANDS - 1):
            apart, joined = (
                np.sort(np.concatenate([rows for rows, _ in signatures._candidates(band, parents)])) for parents in (np.arange(300), np.arange(300) % 100)
            )
            assert apart.tolist() == [*range(300)]
            assert sorted(joined % 100) == [*range(100)]


def test_texts_across_the_borders_of_chunks_are_compared(monkeypatch):
    monkeypatch.setattr(near, "ROWS_AT_ONCE", 1)
    monkeypatch.setattr(near, "TEXTS_AT_ONCE", 3)
    texts = random_texts(40, 60)
    assert components(texts + texts[::-1]) == [*range(40), *reversed(range(40))]


def test_texts_can_be_appended_after_a_search():
    texts = random_texts(30, 60)
    with Signatures() as signatures:
        signatures.append(texts)
        assert len(signatures.pairs()) == 0
        signatures.append(texts)
        assert len(signatures) == 60
        assert sorted(signatures.pairs().tolist()) == [[i, i + 30] for i in range(30)]


def test_no_texts_have_no_pairs():
    with Signatures() as signatures:
        signatures.append([])
        assert signatures.pairs().shape == (0, 2)
    assert connected(0).tolist() == []


def test_no_file_of_signatures_can_be_seen_or_is_left(tmp_path):
    with Signatures(tmp_path) as signatures:
        signatures.append(["a text"])
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a device of Linux")
def test_a_full_disk_is_an_error_with_its_mend():
    """array.tofile wrote a small array to a full disk and raised nothing."""
    with Signatures() as signatures, open("/dev/full", "wb", buffering=0) as full:
        signatures._sketches = full
        with pytest.raises(DataError, match="cannot keep the signature of text 1") as raised:
            signatures.append(["a text"])
    assert "TMPDIR" in raised.value.hint


def test_what_a_file_does_not_take_at_once_is_written_again():
    class Sluggish:
        held = b""

        def write(self, part: memoryview) -> int:
            self.held += part[:3]
            return len(part[:3])

    numbers, file = np.arange(10, dtype=np.uint32), Sluggish()
    near._write(file, numbers)
    assert file.held == numbers.tobytes()


@pytest.mark.parametrize("seed", range(5))
def test_components_are_those_of_a_plain_search(seed):
    draw = np.random.default_rng(seed)
    first, second = draw.integers(0, 300, (2, 150, 2))
    neighbours = {item: set() for item in range(300)}
    for i, j in [*first.tolist(), *second.tolist()]:
        neighbours[i].add(j)
        neighbours[j].add(i)
    expected = [-1] * 300
    for start in range(300):
        waiting = [start] if expected[start] < 0 else []
        while waiting:
            item = waiting.pop()
            if expected[item] < 0:
                expected[item] = start
                waiting += neighbours[item]
    assert connected(300, first, second).tolist() == expected


@pytest.mark.parametrize("order", ["up", "down", "mixed"])
def test_a_long_chain_is_followed_in_few_rounds(order):
    """Link by link, a chain of a million would take a million rounds; so would recursion, or end in a RecursionError."""
    items = np.arange(1_000_000)
    items = {"up": items, "down": items[::-1], "mixed": np.random.default_rng(0).permutation(items)}[order]
    assert not connected(len(items), np.stack([items[:-1], items[1:]], axis=1)).any()


def test_equal_keys_join_and_no_key_joins_nothing():
    keys = np.array([7, 0, 9, 7, 0, 2**64 - 1, 7, 2**64 - 1], np.uint64)
    assert equal_keys(keys).tolist() == [[0, 3], [3, 6], [5, 7]]
    assert connected(8, equal_keys(keys)).tolist() == [0, 1, 2, 0, 4, 5, 0, 5]
    assert equal_keys(np.empty(0, np.uint64)).shape == (0, 2)
