"""Which weights a base has, to the last byte: sha256 of each file.

Hashing 15 GB takes ten to twenty seconds, so a hash is kept beside what the system says of its file (size, inode and the times of its last change and
of its last change of anything, which no program can set), and counted anew when any of it differs.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from halfbyte.model.base import Base
from halfbyte.runs.disk import write_whole

WEIGHTS = "*.safetensors"
# Smaller ones are hashed as fast as they are looked up, and a lookup could be stale.
WORTH_KEEPING_BYTES = 100_000_000


def base_identity(base: Base, cache: Path) -> dict[str, object]:
    """Of a folder the hashes of config.json and of every weight file; of a hub name its commit, which stands for both."""
    if base.revision is not None or not Path(base.place).is_dir():
        return {"commit": base.fingerprint}
    folder = Path(base.place)
    return {"config": hash_file(folder / "config.json"), "weights": hash_files(sorted(folder.glob(WEIGHTS)), cache)}


def hash_file(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_files(files: list[Path], cache: Path) -> dict[str, str]:
    """Name -> sha256; several at a time, for hashing leaves Python's lock."""
    kept = _recall(cache)
    stamps = {file: _stamp(file) for file in files}
    unknown = [file for file in files if stamps[file] not in kept]
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        found = dict(zip(unknown, pool.map(hash_file, unknown), strict=True))
    fresh = {stamps[file]: digest for file, digest in found.items() if file.stat().st_size >= WORTH_KEEPING_BYTES and _stamp(file) == stamps[file]}
    if fresh:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_whole(cache, json.dumps({**kept, **fresh}, indent=1) + "\n")
    return {file.name: found.get(file) or kept[stamps[file]] for file in files}


def _stamp(file: Path) -> str:
    seen = file.stat()
    return f"{file.resolve()} {seen.st_dev} {seen.st_ino} {seen.st_size} {seen.st_mtime_ns} {seen.st_ctime_ns}"


def _recall(cache: Path) -> dict[str, str]:
    """What is damaged is counted anew."""
    try:
        kept = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
