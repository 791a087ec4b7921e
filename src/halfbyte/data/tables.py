"""Parquet files and datasets of the hub -> rows. Texts, whole numbers, truth values and lists or structs of them become cells.

What cannot become text without a loss (a float, bytes, a date) has no cell; its column is named with its type instead.
"""

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice, repeat
from typing import IO, TYPE_CHECKING, Any, BinaryIO, TypeAlias

from halfbyte.data.formats import TRIED_ROWS, counting_lost, look_at_unnamed, note_unnamed
from halfbyte.data.rows import DEEPEST, LARGEST_CELL, TOO_LARGE, Part, Problems, Row, check_names
from halfbyte.data.streams import File, reading, refuse_changed
from halfbyte.errors import DataError, MachineError
from halfbyte.recipe.plan import Decision

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    Table: TypeAlias = pyarrow.RecordBatch | pyarrow.Table

# Few, so that a batch of large texts is small too; a batch that still is larger than this goes on row by row.
BATCH_ROWS, BATCH_BYTES = 256, 50_000_000
# A file packed by gzip is unpacked to a temporary file, for Parquet is read from its end.
LARGEST_UNPACKED = 16_000_000_000
# Text shrinks to a tenth; a group of rows that unpacks to more than this and a thousand times its size is made to fill memory.
BOMB_BYTES, BOMB_RATIO = 1_000_000_000, 1000
# A small file is looked through once before it is used, equal texts held once, for what they add up to is not written in it.
SMALL_FILE, LOOKED_AT_ROWS = 10_000_000, 16_384
# What pandas calls the numbers of rows.
INDEX = re.compile(r"__index_level_\d+__")
# Seconds that the hub has to answer a first small question.
HUB_ANSWERS_S = 3
HUB = re.compile(r"hub:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^@#]+))?(?:@(?P<revision>[^#]+))?(?:#(?P<split>.+))?")


# Parquet


def look_at_parquet(file: File) -> Part:
    """Raises DataError for a file that is damaged, encrypted, or made to fill memory."""
    with _opened(file) as parquet:
        schema = parquet.schema_arrow
        _refuse_bomb(file.path, parquet)
        leaves = [parquet.schema.column(place) for place in range(len(parquet.schema))]
    if file.stamp[0] < SMALL_FILE:
        readable = [field.name for field in schema if _becomes_text(field.type)]
        for _ in _measured(file, readable, LOOKED_AT_ROWS, [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]):
            pass
    columns, types, notes = _columns(schema, file.path, partial(_batches, file))
    return Part(file.path, columns, partial(_parquet_rows, file, columns, types), file.sha256, file.decisions, file.notes + notes, types)


def _parquet_rows(file: File, columns: list[str], types: dict[str, str], problems: Problems) -> Iterator[Row]:
    wanted = [name for name in columns if name not in types]
    number = 1
    for batch in _batches(file, wanted):
        yield from _rows_of(batch, wanted, file.path, number, problems)
        number += batch.num_rows


def _batches(file: File, wanted: list[str]) -> Iterator["pyarrow.RecordBatch"]:
    for batch, unpacked in _measured(file, wanted, BATCH_ROWS):
        step = BATCH_ROWS if unpacked < BATCH_BYTES else 1
        yield from (batch.slice(start, step) for start in range(0, batch.num_rows, step))


def _measured(file: File, wanted: list[str], rows: int, once: list[str] | None = None) -> Iterator[tuple["pyarrow.RecordBatch", int]]:
    """Batches, and what they unpack to. `once`: paths of texts of which equal ones are held once.

    Raises DataError where rows unpack to memory that no honest file of this size needs: one long cell, written once, may stand in every row.
    """
    size, number, total = file.stamp[0], 0, 0
    with _opened(file, once) as parquet:
        # pyarrow joins no batch over two row groups where texts inside lists are held once.
        for group in range(parquet.num_row_groups):
            for batch in parquet.iter_batches(rows, row_groups=[group], columns=wanted, use_threads=not once):
                unpacked = sum(map(_unpacked_bytes, batch.columns))
                number, total = number + batch.num_rows, total + unpacked
                if total > BOMB_BYTES and total > BOMB_RATIO * size:
                    said = f"the first {number} rows unpack from {size / 1e6:.3g} MB to {total / 1e9:.1f} GB"
                    raise DataError(f"{file.path}: {said}", hint="export it from its source")
                yield batch, unpacked


def _unpacked_bytes(column: Any) -> int:
    """With each text counted as often as it stands there; nothing is unpacked for that."""
    from pyarrow import compute, types

    if types.is_struct(column.type):
        return sum(map(_unpacked_bytes, column.flatten()))
    if types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type):
        return _unpacked_bytes(column.flatten())
    if types.is_dictionary(column.type) and (types.is_string(column.type.value_type) or types.is_large_string(column.type.value_type)):
        return compute.sum(compute.binary_length(column.dictionary).take(column.indices)).as_py() or 0
    return int(column.nbytes)


@contextmanager
def _opened(file: File, once: list[str] | None = None) -> Iterator["ParquetFile"]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    refuse_changed(file)
    with reading(file.path, file.packing) as stream, tempfile.TemporaryFile() as copy:
        if file.packing:
            _unpack(file.path, stream, copy)
        try:
            # Pages come through a small buffer: a group of rows may be larger than memory.
            source = copy if file.packing else file.path
            with ParquetFile(source, read_dictionary=once, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True) as parquet:
                yield parquet
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            first = str(error).strip().split("\n")[0]
            hint = "save it without encryption" if "ncrypt" in first else "is it cut off or damaged? download or export it again"
            raise DataError(f"{file.path}: cannot be read as Parquet: {first}", hint=hint) from error
    refuse_changed(file)


def _unpack(path: str, stream: BinaryIO, copy: IO[bytes]) -> None:
    while chunk := stream.read(1 << 20):
        copy.write(chunk)
        if copy.tell() > LARGEST_UNPACKED:
            raise DataError(f"{path}: unpacks to more than {LARGEST_UNPACKED // 10**9} GB", hint="unpack it yourself")
    copy.seek(0)


def _refuse_bomb(path: str, parquet: "ParquetFile") -> None:
    facts = parquet.metadata
    for group in range(facts.num_row_groups):
        parts = [facts.row_group(group).column(place) for place in range(facts.num_columns)]
        packed, unpacked = sum(part.total_compressed_size for part in parts), sum(part.total_uncompressed_size for part in parts)
        if unpacked > BOMB_BYTES and unpacked > BOMB_RATIO * packed:
            raise DataError(f"{path}: row group {group + 1} unpacks from {packed / 1e6:.1f} MB to {unpacked / 1e9:.1f} GB", hint="export it from its source")


# Arrow, of which both consist


def _columns(schema: "pyarrow.Schema", where: str, read: Callable[[list[str]], Iterator["Table"]]) -> tuple[list[str], dict[str, str], list[str]]:
    """All names, the types of those that cannot become text, and what is told of columns that are left out. `read`: columns by name."""
    from pyarrow import types

    index = [field.name for field in schema if INDEX.fullmatch(field.name) and types.is_integer(field.type)]
    columns = [name for name in schema.names if name not in index]
    check_names(columns, where)
    notes = [f"{where}: pandas' numbers of rows ({', '.join(index)}) left out"] if index else []
    if not all(columns):
        notes += _notes_of_unnamed(schema.names, where, read([""]))
    return [name for name in columns if name], {field.name: str(field.type) for field in schema if field.name and not _becomes_text(field.type)}, notes


def _notes_of_unnamed(columns: list[str], where: str, tables: Iterator["Table"]) -> list[str]:
    """Raises DataError for what would be lost."""
    rows = (_unnamed_cells(columns, row) for table in tables for row in zip(*(column.to_pylist() for column in table.columns), strict=True))
    head, problems = list(islice(rows, TRIED_ROWS)), Problems()
    unnamed = look_at_unnamed(columns, head, where)
    for _ in counting_lost(enumerate(chain(head, rows)), unnamed, where, problems):
        pass
    return note_unnamed(where, unnamed) + problems.notes


def _unnamed_cells(columns: list[str], row: tuple[Any, ...]) -> list[str]:
    """As wide as the table; what has a name stays empty."""
    values = iter(row)
    return ["" if name or (value := next(values)) is None else str(value) for name in columns]


def _becomes_text(kind: "pyarrow.DataType", room: int = DEEPEST) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind) or types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return room > 0 and _becomes_text(kind.value_type, room - 1)
    if types.is_struct(kind):
        return room > 0 and all(_becomes_text(field.type, room - 1) for field in kind)
    texts = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return texts or types.is_integer(kind) or types.is_boolean(kind) or types.is_null(kind)


def _rows_of(batch: "Table", columns: list[str], name: str, first: int, problems: Problems) -> Iterator[Row]:
    """Rows are numbered from `first`."""
    values = [_values(batch.column(place), column, name, first) for place, column in enumerate(columns)]
    rows = zip(*values) if values else repeat((), batch.num_rows)
    for number, row in enumerate(rows, first):
        cells = {}
        for column, value in zip(columns, row):
            if type(value) is str and len(value) <= LARGEST_CELL:
                cells[column] = value
            elif value is not None:
                try:
                    cells[column] = _as_text(value)
                except _TooLarge:
                    problems.add(f"{name}: row {number}", f"column {column!r} holds {TOO_LARGE}", "too large", "cut such texts up")
                    break
        else:
            yield Row(cells, name, number)


def _values(column: Any, named: str, name: str, first: int) -> list[Any]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: rows {first} to {first + len(column) - 1}: column {named!r} is not UTF-8", hint="export the file again") from error


class _TooLarge(ValueError):
    """A text of more than LARGEST_CELL."""


def _as_text(value: Any) -> Any:
    if isinstance(value, str) and len(value) > LARGEST_CELL:
        raise _TooLarge
    if isinstance(value, list):
        return [_as_text(one) for one in value]
    if isinstance(value, dict):
        return {key: _as_text(one) for key, one in value.items() if one is not None}
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if value is None else str(value)


# The hub


def look_at_hub(path: str) -> Part:
    """`hub:owner/name:config@revision#split`, all but the name optional. Loads it through `datasets`, which keeps it on disk."""
    asked = HUB.fullmatch(path)
    if not asked:
        raise DataError(f"{path}: is no name of a dataset", hint="write hub:owner/name, with :config, @revision and #split behind it where needed")
    split = asked["split"] or "train"
    data = _load(path, asked["name"], asked["config"], asked["revision"], split)
    tables = data.with_format("arrow")
    columns, types, notes = _columns(data.data.schema, path, lambda names: tables.select_columns(names).iter(BATCH_ROWS))
    read = partial(_hub_rows, path, tables, columns, types)
    decision = Decision("data source", path, f"split {split!r} of the dataset {asked['name']!r}, {data.num_rows} rows")
    return Part(path, columns, read, _hash_rows(read), [decision], notes, types)


def _hub_rows(path: str, data: Any, columns: list[str], types: dict[str, str], problems: Problems) -> Iterator[Row]:
    wanted = [name for name in columns if name not in types]
    number = 1
    for table in data.select_columns(wanted).iter(BATCH_ROWS):
        yield from _rows_of(table, wanted, path, number, problems)
        number += table.num_rows


def _hash_rows(read: Any) -> str:
    """Of what the rows say, for the same rows may lie in other files on another machine."""
    found = hashlib.sha256()
    for row in read(Problems("skip")):
        found.update(json.dumps(row.cells, ensure_ascii=False).encode() + b"\n")
    return found.hexdigest()


def _load(path: str, name: str, config: str | None, revision: str | None, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MachineError(f"{path}: the package `datasets` is missing", hint="pip install datasets") from error
    if os.path.exists(name):
        raise DataError(f"{path}: {name} is also a folder here, and `datasets` would read that", hint=f"write {name} for the folder, or call from elsewhere")
    try:
        with _silent("datasets", "huggingface_hub"):
            _refuse_silence(name)
            return datasets.load_dataset(name, config, split=split, revision=revision)
    except Exception as error:
        # `datasets` reads any format by any package, and what it raises is of as many kinds.
        if _is_of_network(error):
            hint = "try again with a network, give a file, or say HF_HUB_OFFLINE=1 for a copy that was loaded before"
            raise MachineError(f"{path}: the hub cannot be reached: {_first_line(error)}", hint=hint) from error
        raise DataError(f"{path}: cannot be loaded: {_first_line(error)}", hint="look at its page on the hub for configs and splits") from error


def _refuse_silence(name: str) -> None:
    """Asks the hub once, for `datasets` asks a hub that does not answer for half a minute. What else is wrong is told when it loads."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return
    try:
        HfApi().dataset_info(name, timeout=HUB_ANSWERS_S)
    except Exception as error:
        if _is_of_network(error):
            raise


def _is_of_network(error: Exception) -> bool:
    return any(word in kind.__name__ for kind in type(error).__mro__ for word in ("Connect", "Network", "Timeout", "Offline"))


@contextmanager
def _silent(*names: str) -> Iterator[None]:
    """What these libraries log on the way stands in the error too, in one line."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _first_line(error: Exception) -> str:
    said = str(error).strip().split("\n")[0]
    return said or type(error).__name__
