"""Weight files as they lie on the disk: whether each is as long as its own header says, and its tensors stand side by side in it.

A download that broke off, a disk that was full and a Git-LFS pointer all leave a file of the right name. Reading the headers takes
milliseconds, so it is told before the data are read, not minutes later by a library in the middle of a load. Format: 8 bytes with the
length of the header, little-endian; the header, JSON; the tensors (https://github.com/huggingface/safetensors, "Format").
"""

import json
import math
from pathlib import Path
from typing import Any

from halfbyte.errors import IntegrityError, ModelError

INDEX = "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000  # of the format's own reader
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64,
    "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8,
}  # fmt: skip
AGAIN = "download it again"


def check_weight_files(folder: Path) -> None:
    """Of a base in a folder. Raises ModelError where there are none, IntegrityError with the byte where one is not whole."""
    files = sorted(folder.glob("*.safetensors"))
    if (folder / INDEX).is_file():
        files = _of_index(folder / INDEX, files)
    if not files:
        raise ModelError(f"base: no weights in {folder}: expected model.safetensors", hint="download the model whole; config.json alone is enough for --gpu")
    for file in files:
        check_weight_file(file)


def check_weight_file(file: Path) -> None:
    """Raises IntegrityError unless the file is what its header says."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        start = stream.read(64)
        if start.startswith(b"version https://git-lfs"):
            raise ModelError(f"{file}: is a Git-LFS pointer of {size} bytes, not the weights", hint="run git lfs pull in that folder")
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            says = f"its header would be {length:,} bytes long" if size >= 8 else "too short for a header"
            raise IntegrityError(f"{file}: corrupt at byte 0 (size {size:,}): {says}", hint=AGAIN)
        stream.seek(8)
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        tensors = sorted((entry["data_offsets"][0], entry["data_offsets"][1], name) for name, entry in header.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{file}: corrupt between byte 8 and {8 + length:,}: its header cannot be read", hint=AGAIN) from error
    end = 0
    for first, last, name in tensors:
        if first != end or last < first:
            what = "overlaps the tensor before it" if first < end else "begins behind a hole"
            raise IntegrityError(f"{file}: corrupt at byte {8 + length + first:,}: {name} {what}", hint=AGAIN)
        if not _fits(header[name], last - first):
            raise IntegrityError(f"{file}: corrupt at byte {8 + length + first:,}: {name} has {last - first:,} bytes, not those of its shape", hint=AGAIN)
        end = last
    if size != 8 + length + end:
        raise IntegrityError(f"{file}: corrupt at byte {min(size, 8 + length + end):,} (size {size:,}, header says {8 + length + end:,})", hint=AGAIN)


def _fits(entry: dict[str, Any], size: int) -> bool:
    """A type that is not known here is left to the loader."""
    bits = BITS.get(str(entry.get("dtype")))
    return bits is None or math.prod(entry.get("shape", [])) * bits == size * 8


def _of_index(index: Path, files: list[Path]) -> list[Path]:
    try:
        named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{index}: is no index of weights", hint=AGAIN) from error
    there = {file.name for file in files}
    if missing := [name for name in named if name not in there]:
        raise ModelError(f"{index}: {len(missing)} of {len(named)} files are not there; the first is {missing[0]}", hint="download the rest of the model")
    return [index.parent / name for name in named]
