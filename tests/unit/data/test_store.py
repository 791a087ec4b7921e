"""Rows on disk: what is written is what is read, and a key stands for exactly one set of rows."""

import json
import multiprocessing
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from halfbyte.data import store
from halfbyte.data.batches import labels_hash
from halfbyte.data.store import META, PARTS, RowWriter, StoredRows, cache_key, find_or_build, tokenizer_hash
from halfbyte.data.tokens import Tokens
from halfbyte.errors import DataError, MachineError
from halfbyte.runs.cache import cache_folder
from toys import make_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prepared"


def rows_of(count: int, seed: int = 0, largest: int = 60_000) -> list[Tokens]:
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        length = int(draw.integers(1, 40))
        trained = (draw.random(length) < 0.5).tolist()
        rows.append(Tokens(draw.integers(0, largest, length).tolist(), trained, f"file{number % 3}.csv", int(draw.integers(1, 2**40))))
    return rows


def written(rows: list[Tokens], file: Path, largest: int = 65_535) -> tuple[StoredRows, dict]:
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = RowWriter(file, largest)
    for start in range(0, len(rows), 7):
        writer.append(rows[start : start + 7])
    sums = writer.close()
    return StoredRows(file, sums["files"]), sums


# Rows


@pytest.mark.parametrize("largest", [65_535, 65_536, 250_000])
def test_rows_come_back_as_they_were_written(tmp_path, monkeypatch, largest):
    """In batches of any size, and with a vocabulary beyond 16 bits."""
    monkeypatch.setattr(store, "TOKENS_A_BATCH", 300)
    rows = rows_of(200, largest=largest + 1)
    rows[5] = Tokens([largest], [True], "file0.csv", 1)
    stored, sums = written(rows, tmp_path / "rows.arrow", largest)
    assert len(stored.batches) > 5
    assert list(stored) == rows
    assert [stored[place] for place in (-1, 0, 100)] == [rows[-1], rows[0], rows[100]]
    assert stored[3:50:7] == rows[3:50:7]
    assert stored.lengths.tolist() == [len(row.ids) for row in rows]
    assert (sums["rows"], sums["tokens"], sums["supervised"]) == (200, sum(len(row.ids) for row in rows), sum(row.supervised for row in rows))
    assert sums["labels"] == labels_hash(rows)
    with pytest.raises(IndexError):
        stored[200]


def test_no_rows_are_no_rows(tmp_path):
    stored, sums = written([], tmp_path / "rows.arrow")
    assert (len(stored), list(stored), stored.lengths.tolist(), sums["rows"]) == (0, [], [], 0)


def test_another_order_has_the_same_labels_and_another_fingerprint(tmp_path):
    rows = rows_of(20)
    sums = [written(order, tmp_path / f"{name}.arrow")[1] for name, order in (("a", rows), ("b", rows[::-1]), ("c", rows))]
    assert sums[0]["labels"] == sums[1]["labels"]
    assert sums[0]["order"] != sums[1]["order"]
    assert sums[0]["order"] == sums[2]["order"]


def test_few_tokens_are_held_in_memory(tmp_path, monkeypatch):
    """Guards against batches by rows: 2,000 rows of 4,096 tokens are 360 MB of Python numbers."""
    monkeypatch.setattr(store, "TOKENS_A_BATCH", 1000)
    writer = RowWriter(tmp_path / "rows.arrow", 10)
    for _ in range(100):
        writer.append([Tokens([1] * 400, [True] * 400, "a", 1)])
        assert writer.tokens_held < 1000
    assert writer.close()["tokens"] == 40_000


# The key


def test_a_key_is_of_everything_that_rows_depend_on(tmp_path, monkeypatch):
    """CORRECTNESS 1.24: a cache keyed by less goes on serving yesterday's rows."""
    parts = {"sources": [[0, "abc", ["a.csv"]]], "section": {"max_length": 512}, "seed": 0, "template": {"kind": "chat"}, "tokenizer": "t"}
    key = cache_key(**parts)
    assert cache_key(**dict(reversed(parts.items()))) == key
    changed = [{**parts, name: [value]} for name, value in parts.items()]
    assert len({key, *(cache_key(**one) for one in changed)}) == 6
    code = shutil.copytree(Path(store.__file__).parent, tmp_path / "data")
    monkeypatch.setattr(store, "__file__", str(code / "store.py"))
    assert cache_key(**parts) == key
    pack = code / "fit.py"
    pack.write_text(pack.read_text().replace("FEWEST_PROMPT_TOKENS = 8", "FEWEST_PROMPT_TOKENS = 9"))
    other = cache_key(**parts)
    assert other != key
    monkeypatch.setattr(store, "version", lambda name: "0")
    assert cache_key(**parts) not in (key, other)


def test_a_tokenizer_is_told_from_another():
    made = [make_tokenizer(), make_tokenizer(bos=False), make_tokenizer(chat=False), make_tokenizer()]
    made[3].eos_token = "<pad>"
    more = make_tokenizer()
    more.add_tokens(["<new>"])
    assert len({tokenizer_hash(tokenizer) for tokenizer in (*made, more)}) == 5
    assert tokenizer_hash(make_tokenizer()) == tokenizer_hash(made[0])


def test_the_folder_is_the_one_that_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x"
    monkeypatch.delenv("HALFBYTE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "y"))
    assert cache_folder() == tmp_path / "y" / "halfbyte"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "halfbyte"


# Found or built


def fill(folder: Path, word: str = "first") -> dict:
    for part in PARTS:
        (folder / f"{part}.arrow").write_text(f"{word} {part}")
    return {"word": word}


def test_what_was_built_is_found_again(cache):
    made = find_or_build("key", fill)
    assert made["word"] == "first"
    assert Path(made["folder"]) == cache / "key"
    assert find_or_build("key", lambda folder: pytest.fail("built again")) == made
    assert find_or_build("other", lambda folder: fill(folder, "second"))["word"] == "second"
    assert sorted(path.name for path in cache.iterdir() if path.is_dir()) == ["key", "other"]


@pytest.mark.parametrize("damage", [
    lambda folder: (folder / META).unlink(),
    lambda folder: (folder / META).write_text((folder / META).read_text()[:-9]),
    lambda folder: (folder / META).write_text("{}"),
    lambda folder: (folder / META).write_text("[]"),
    lambda folder: (folder / META).write_text('{"sha256": {}}'),
    lambda folder: (folder / META).write_bytes(b"\xff\xfe"),
    lambda folder: (folder / "train.arrow").unlink(),
    lambda folder: (folder / "test.arrow").write_text("first tesT"),
    lambda folder: (folder / "train.arrow").write_text("first"),
    shutil.rmtree,
], ids=["no meta", "cut meta", "empty meta", "list", "no hashes", "no text", "no rows", "a flipped byte", "cut rows", "nothing"])  # fmt: skip
def test_what_is_not_whole_is_built_again(cache, damage):
    """Guards against a crash, or a changed byte of the same size, that goes on training quietly."""
    find_or_build("key", fill)
    damage(cache / "key")
    assert find_or_build("key", lambda folder: fill(folder, "second"))["word"] == "second"
    assert find_or_build("key", lambda folder: pytest.fail("built again"))["word"] == "second"
    assert (cache / "key" / "train.arrow").read_text() == "second train"


def test_a_build_that_fails_leaves_nothing(cache):
    def fail(folder: Path) -> dict:
        fill(folder)
        raise DataError("a.csv:3: bad")

    with pytest.raises(DataError, match="bad"):
        find_or_build("key", fail)
    assert [path for path in cache.iterdir() if path.is_dir()] == []
    assert find_or_build("key", fill)["word"] == "first"


def test_what_a_killed_process_left_is_cleared_away(cache):
    (cache / "key.part").mkdir(parents=True)
    (cache / "key.part" / "train.arrow").write_text("half")
    (cache / "key.part" / "more").write_text("x")
    assert sorted(find_or_build("key", fill)["sha256"]) == [f"{part}.arrow" for part in sorted(PARTS)]
    assert not (cache / "key.part").exists()


def slowly(queue: multiprocessing.Queue) -> None:
    def build(folder: Path) -> dict:
        queue.put("built")
        time.sleep(0.5)
        return fill(folder)

    queue.put(find_or_build("key", build)["word"])


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_two_processes_at_once_build_once_and_find_the_same():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=slowly, args=(queue,)) for _ in range(3)]
    for process in processes:
        process.start()
    said = sorted(queue.get(timeout=20) for _ in range(4))
    for process in processes:
        process.join(20)
    assert said == ["built", "first", "first", "first"]


def test_a_cache_that_cannot_be_written_is_the_machine_s(tmp_path, monkeypatch):
    """One line and exit code 3; no traceback."""
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "file"))
    with pytest.raises(MachineError, match="file/prepared: cannot be written: Not a directory") as caught:
        find_or_build("key", fill)
    assert caught.value.exit_code == 3
    assert "set HALFBYTE_CACHE" in caught.value.hint


def test_a_full_disk_is_the_machine_s(cache):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    writer = RowWriter(Path("/dev/full"), 10)
    with pytest.raises(MachineError, match="cannot be written"):
        writer.append([Tokens([1] * 2_000_000, [True] * 2_000_000, "a", 1)])


def test_an_error_of_the_data_is_not_blamed_on_the_disk(cache):
    """Guards against an unreadable source told as a cache that cannot be written."""
    with pytest.raises(FileNotFoundError):
        find_or_build("key", lambda folder: (folder / "no such file").read_text())


def test_the_meta_data_are_readable_text(cache):
    find_or_build("key", fill)
    assert json.loads((cache / "key" / META).read_text(encoding="utf-8"))["word"] == "first"
