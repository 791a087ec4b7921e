"""Hashes of a base's files: every byte counts, and one that is kept is not believed once its file was touched."""

import hashlib
import os

import pytest

from halfbyte.model import identity
from halfbyte.model.base import find_base
from halfbyte.model.identity import base_identity, hash_files


def test_every_weight_file_and_the_config_are_hashed(toy_base, tmp_path):
    folder = toy_base()
    found = base_identity(find_base(str(folder)), tmp_path / "weights.json")
    assert found["weights"] == {"model.safetensors": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()}
    assert found["config"] == hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()


@pytest.mark.parametrize("same_time", [False, True])
def test_a_kept_hash_is_counted_anew_when_a_byte_in_the_middle_changes(tmp_path, monkeypatch, same_time):
    """The fingerprint of a base looks at beginnings and ends alone. `same_time`: with the time of the change put back, as cp -p and rsync do."""
    monkeypatch.setattr(identity, "WORTH_KEEPING_BYTES", 10)
    cache, file = tmp_path / "cache" / "weights.json", tmp_path / "model.safetensors"
    file.write_bytes(bytes(1000))
    first = hash_files([file], cache)
    assert cache.is_file()
    monkeypatch.setattr(identity, "hash_file", lambda file: pytest.fail("was hashed again"))
    assert hash_files([file], cache) == first
    monkeypatch.undo()
    before = file.stat()
    with open(file, "rb+") as stream:
        stream.seek(500)
        stream.write(b"x")
    if same_time:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert hash_files([file], cache) != first


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_cache_is_no_obstacle(tmp_path, text):
    (tmp_path / "weights.json").write_text(text)
    (tmp_path / "a.safetensors").write_bytes(b"a")
    assert hash_files([tmp_path / "a.safetensors"], tmp_path / "weights.json") == {"a.safetensors": hashlib.sha256(b"a").hexdigest()}
