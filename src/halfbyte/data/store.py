"""Rows of tokens on disk: Arrow files that are mapped, not loaded, so that millions of rows train in little memory.

A prepared data set is a folder: train.arrow, validation.arrow, test.arrow, the records of the held-out rows (held_out.py) and
meta.json, written last. Its name is the hash of all that its rows depend on: the data's bytes, the recipe's section, seed, template,
tokenizer and this code (a cache keyed by less goes on serving rows of yesterday's template: huggingface/datasets#3297). A folder
that is not what was written is written again.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from halfbyte.data.batches import IGNORE, LabelSum
from halfbyte.data.tokens import Tokens
from halfbyte.errors import MachineError
from halfbyte.runs.cache import cache_folder

# Of one batch of rows, which is held in memory until it is written.
TOKENS_A_BATCH = 1_000_000
META = "meta.json"
PARTS = ("train", "validation", "test")
# The libraries that decide how a file becomes text, and text ids.
LIBRARIES = ("pyarrow", "phonenumbers", "jinja2", "tokenizers", "transformers")


class RowWriter:
    """Writes rows, each of one document, to an Arrow file as they come, and keeps their sums."""

    def __init__(self, file: Path, largest_id: int) -> None:
        ids = pa.uint16() if largest_id < 2**16 else pa.uint32()
        self.schema = pa.schema([
            ("ids", pa.large_list(ids)), ("trained", pa.large_list(pa.bool_())), ("file", pa.int32()), ("line", pa.int64()),
        ])  # fmt: skip
        self.numbers = ids.to_pandas_dtype()
        self.folder = file.parent
        with writing(self.folder):
            self.sink = pa.OSFile(str(file), "wb")
            self.writer = pa.ipc.new_file(self.sink, self.schema)
        self.held: list[tuple[np.ndarray, np.ndarray, int, int]] = []
        self.tokens_held = 0
        self.files: dict[str, int] = {}
        self.rows = self.tokens = self.supervised = 0
        self.labels = LabelSum()
        self.order = hashlib.sha256()

    def append(self, rows: Sequence[Tokens]) -> None:
        for row in rows:
            ids, trained = np.array(row.ids, self.numbers), np.array(row.trained, bool)
            labels = np.where(trained, ids.astype(np.int64), IGNORE)
            labels[:1] = IGNORE
            self.rows += 1
            self.tokens_held += len(ids)
            self.supervised += int(np.count_nonzero(trained[1:]))
            self.labels.add(ids, labels)
            self.order.update(self.labels.hex.encode())  # a sum so far at each row: another order, another hash
            self.held.append((ids, trained, self.files.setdefault(row.file, len(self.files)), row.line))
        if self.tokens_held >= TOKENS_A_BATCH:
            self._flush()

    def close(self) -> dict[str, Any]:
        """The sums, for meta.json."""
        self._flush()
        with writing(self.folder):
            self.writer.close()
            self.sink.close()
        return {
            "rows": self.rows, "tokens": self.tokens, "supervised": self.supervised, "labels": self.labels.hex, "order": self.order.hexdigest(),
            "files": list(self.files),
        }  # fmt: skip

    def _flush(self) -> None:
        if not self.held:
            return
        ids, trained, files, lines = zip(*self.held, strict=True)
        offsets = np.cumsum([0, *map(len, ids)])
        columns = [
            pa.LargeListArray.from_arrays(offsets, pa.array(np.concatenate(ids))), pa.LargeListArray.from_arrays(offsets, pa.array(np.concatenate(trained))),
            pa.array(files, pa.int32()), pa.array(lines, pa.int64()),
        ]  # fmt: skip
        with writing(self.folder):
            self.writer.write_batch(pa.record_batch(columns, schema=self.schema))
        self.tokens += self.tokens_held
        self.held, self.tokens_held = [], 0


class _Columns(NamedTuple):
    """One batch of an Arrow file, as views of it. Row r holds ids[offsets[r]:offsets[r + 1]]."""

    offsets: np.ndarray
    ids: np.ndarray
    trained: pa.BooleanArray
    files: np.ndarray
    lines: np.ndarray


class StoredRows(Sequence[Tokens]):
    """The rows of an Arrow file, mapped into memory; each is made when it is asked for."""

    def __init__(self, file: Path, files: list[str]) -> None:
        self.files = files
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        self.batches = [_columns(reader.get_batch(number)) for number in range(reader.num_record_batches)]
        self.starts = np.cumsum([0, *(len(batch.lines) for batch in self.batches)])
        self.lengths = np.concatenate([np.zeros(0, np.int64), *(np.diff(batch.offsets) for batch in self.batches)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        number = int(np.searchsorted(self.starts, place, side="right")) - 1
        batch, row = self.batches[number], place - int(self.starts[number])
        start, end = int(batch.offsets[row]), int(batch.offsets[row + 1])
        return Tokens(batch.ids[start:end].tolist(), batch.trained[start:end].to_pylist(), self.files[int(batch.files[row])], int(batch.lines[row]))


def _columns(batch: pa.RecordBatch) -> _Columns:
    ids, trained, files, lines = batch.columns
    return _Columns(ids.offsets.to_numpy(), ids.values.to_numpy(), trained.values, files.to_numpy(), lines.to_numpy())


def cache_key(**parts: Any) -> str:
    """Hash of all that the rows depend on; `parts` are JSON values. The code of this room and its libraries are part of it."""
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        code.update(file.name.encode() + b"\0" + file.read_bytes())
    known = {**parts, "code": code.hexdigest(), "libraries": {name: version(name) for name in LIBRARIES}}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:32]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Vocabulary, merges, special tokens and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    said = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    marks = json.dumps({name: str(mark) for name, mark in tokenizer.special_tokens_map.items()}, sort_keys=True)
    settings = json.dumps({name: str(value) for name, value in tokenizer.init_kwargs.items() if name != "name_or_path"}, sort_keys=True)
    return hashlib.sha256("\0".join([said, marks, settings, str(tokenizer.chat_template)]).encode("utf-8", "surrogatepass")).hexdigest()


def find_or_build(key: str, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The meta data of a prepared data set: found, or made by `build`, which fills a folder and returns them.

    One process builds and others wait for it; a folder takes its place whole or not at all. Raises MachineError when the disk refuses.
    """
    meta = _find(key)
    if meta is not None:
        return meta
    above = cache_folder() / "prepared"
    with writing(above):
        above.mkdir(parents=True, exist_ok=True)
    with _alone(above / f"{key}.lock"):
        return _find(key) or _build(above / key, build)


def _build(folder: Path, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    part = folder.with_name(f"{folder.name}.part")
    try:
        with writing(part):
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
            part.mkdir()
        meta = build(part)
        with writing(part):
            meta["sha256"] = {file.name: _sha256(file) for file in part.iterdir()}
            (part / META).write_text(json.dumps(meta, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return {**meta, "folder": str(folder)}


def stored_rows(meta: dict[str, Any], part: str) -> StoredRows:
    return StoredRows(Path(meta["folder"]) / f"{part}.arrow", meta["parts"][part]["files"])


def _find(key: str) -> dict[str, Any] | None:
    """None where there is nothing, or not what was written."""
    folder = cache_folder() / "prepared" / key
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        kept = meta["sha256"]
        whole = {f"{part}.arrow" for part in PARTS} <= kept.keys() and all(_sha256(folder / name) == digest for name, digest in kept.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return {**meta, "folder": str(folder)} if whole else None


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Waits for the process that holds this lock; it goes with its process, however that ends."""
    with writing(file):
        lock = os.open(file, os.O_CREAT | os.O_RDWR)
    try:
        with writing(file):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise MachineError(
            f"{place}: cannot be written: {why}", hint="make room or give the right to write there, or set HALFBYTE_CACHE to another folder"
        ) from error
