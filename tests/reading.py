"""What the tests of reading share: rows of a source, the refusal of a file, files of a form."""

import gzip
import json
import lzma

import pyarrow as pa
import pytest

from halfbyte.data.files import Source, open_source
from halfbyte.errors import DataError, HalfbyteError

ROWS = [{"prompt": "caf\u00e9, \u2603", "response": "two\nlines"}, {"prompt": "NA", "response": "01"}]


def cells(source: Source) -> list[dict]:
    return [row.cells for row in source.rows()]


def lines(source: Source) -> list[int]:
    return [row.line for row in source.rows()]


def refusal(path, kind: type[HalfbyteError] = DataError, **more) -> HalfbyteError:
    """The error of opening and reading it through."""
    with pytest.raises(kind) as caught:
        list(open_source(path, **more).rows())
    assert caught.value.hint
    return caught.value


def said(path: str, **more) -> str:
    """The message, less the path."""
    return refusal(path, **more).message.replace(path, "")


def jsonl(rows: list[dict], **more) -> str:
    return "".join(json.dumps(row, **more) + "\n" for row in rows)


def pack(content: bytes, packing: str) -> bytes:
    if packing == ".zst":
        return pa.compress(content, codec="zstd", asbytes=True)
    return gzip.compress(content, mtime=0) if packing == ".gz" else lzma.compress(content)


def decided(source: Source, name: str) -> list[str]:
    return [decision.value for decision in source.decisions if decision.name == name]
