"""Every id of a text is scored exactly once, whatever the stride, with all the context that a window holds."""

from collections import Counter

import numpy as np
import pytest

from halfbyte.data.batches import row_lengths
from halfbyte.data.pack import cut_blocks
from halfbyte.data.store import RowWriter, StoredRows
from halfbyte.data.tokens import Tokens
from halfbyte.errors import RecipeError
from halfbyte.evaluate.windows import sliding_windows

END = 1
# Lengths of texts around those of a block and a window.
SIZES = [1, 2, 6, 7, 8, 13, 14, 15, 49, 50, 51]


def texts(sizes, begin, line=None):
    """Every id is another, so that it is seen where each one goes."""
    made, next_id = [], 100
    for number, size in enumerate(sizes):
        ids = [*begin, *range(next_id, next_id + size)]
        made.append(Tokens(ids, [True] * len(ids), "a.txt", line or number + 1))
        next_id += size
    return made


def scored(windows):
    return [token for window in windows for token, trained in zip(window.ids[1:], window.trained[1:], strict=True) if trained]


@pytest.mark.parametrize("begin", [[0], []], ids=["begin mark", "none"])
@pytest.mark.parametrize("stride", [1, 3, 7])
@pytest.mark.parametrize("window", [8, 5, 20])
def test_every_id_is_scored_once_in_its_own_document(begin, stride, window):
    stride = min(stride, window - 1)
    source = texts(SIZES, begin)
    blocks = cut_blocks(source, begin, END, 8)
    windows, documents = sliding_windows(blocks, begin, window, stride)
    assert Counter(scored(windows)) == Counter(scored(blocks))
    assert len(windows) == len(documents)
    for number in np.unique(documents):
        whole = [token for token in scored([windows[place] for place in np.flatnonzero(documents == number)]) if token != END]
        owner = next(text for text in source if whole and whole[-1] in text.ids) if whole else None
        assert owner is None or owner.ids[-len(whole) :] == whole  # in order, of one text, none missing
    assert documents[-1] + 1 == sum(1 for size in SIZES if begin or size + 1 > 1)
    assert list(windows.lengths) == [len(window.ids) for window in windows]
    assert windows.lengths.max() <= window


@pytest.mark.parametrize("begin", [[0], []], ids=["begin mark", "none"])
def test_a_window_holds_what_stands_before_it(begin):
    """Ids of a text are consecutive numbers, so a window is consecutive too; all but the first have a stride of new ids at most."""
    blocks = cut_blocks(texts([50], begin), begin, None, 8)
    windows, _ = sliding_windows(blocks, begin, 8, 3)
    for number, window in enumerate(windows):
        own = window.ids[len(begin) :]
        assert own == list(range(own[0], own[0] + len(own)))
        assert window.ids[: len(begin)] == begin
        assert sum(window.trained) == 7 if number == 0 else 1 <= sum(window.trained) <= 3
        assert window.trained == sorted(window.trained)  # context first, then what is scored
        assert not window.trained[0]


@pytest.mark.parametrize("begin", [[0], []], ids=["begin mark", "none"])
@pytest.mark.parametrize("sizes", [[50], SIZES, []])
def test_with_the_stride_of_a_block_windows_are_the_blocks(begin, sizes):
    blocks = cut_blocks(texts(sizes, begin), begin, END, 8)
    windows, documents = sliding_windows(blocks, begin, 8, 7)
    assert list(windows) == blocks
    assert len(documents) == len(blocks)


def test_texts_that_share_a_line_stay_apart():
    """JSON on one line. Joined, a text would be scored with a stranger's words before it."""
    blocks = cut_blocks(texts([3, 5, 21, 4], [0], line=1), [0], END, 8)
    _, documents = sliding_windows(blocks, [0], 8, 2)
    assert documents[-1] == 3
    bare = cut_blocks(texts([7, 7, 15], [], line=1), [], END, 8)  # blocks as long as any: what they begin with tells
    _, documents = sliding_windows(bare, [], 8, 7)
    assert documents.tolist() == [0, 1, 2, 2, 2]


def test_rows_on_disk_are_read_as_they_are_asked_for(tmp_path):
    blocks = cut_blocks(texts([5000], [0]), [0], END, 64)
    writer = RowWriter(tmp_path / "test.arrow", 10_000)
    writer.append(blocks)
    meta = writer.close()
    stored = StoredRows(tmp_path / "test.arrow", meta["files"])
    asked = []

    class Counted(StoredRows):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    windows, _ = sliding_windows(Counted(tmp_path / "test.arrow", meta["files"]), [0], 64, 16)
    assert list(windows) == list(sliding_windows(blocks, [0], 64, 16)[0])
    asked.clear()
    row_lengths(windows)
    assert not asked
    windows[200]
    assert len(asked) <= 3
    assert Counter(scored(windows)) == Counter(scored(stored))
    assert windows[3:5] == [windows[3], windows[4]]
    assert windows[-1] == windows[len(windows) - 1]
    with pytest.raises(IndexError):
        windows[len(windows)]


@pytest.mark.parametrize("stride", [0, -1, 8])
def test_a_stride_that_leaves_ids_out_is_refused(stride):
    with pytest.raises(RecipeError, match="room for 7"):
        sliding_windows([], [0], 8, stride)
