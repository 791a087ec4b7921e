"""run.json: written whole, known when it is damaged, and differences that say what is not what it was."""

import json

import pytest

from halfbyte.errors import IntegrityError
from halfbyte.runs.manifest import MANIFEST, differences, plan_digest, read_manifest, recipe_differences, write_manifest

CONTENT = {"id": "a", "recipe": {"seed": 0, "train": {"learning_rate": 0.1}}, "inputs": {"base": {"weights": {"model.safetensors": "0" * 64}}}}


def test_what_is_written_is_read(tmp_path):
    write_manifest(tmp_path, CONTENT)
    read = read_manifest(tmp_path)
    assert {key: value for key, value in read.items() if key != "sha256"} == CONTENT
    write_manifest(tmp_path, {**read, "metrics": {}})
    assert read_manifest(tmp_path)["metrics"] == {}
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_every_changed_letter_is_seen(tmp_path):
    """One bit of each byte in turn."""
    write_manifest(tmp_path, CONTENT)
    file = tmp_path / MANIFEST
    before = file.read_bytes()
    for place in range(len(before)):
        file.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
        try:
            read = read_manifest(tmp_path)
        except IntegrityError:
            continue
        pytest.fail(f"byte {place} of {before!r} was changed, and {read} was read")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"id": 1}', '"x"'])
def test_what_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(IntegrityError, match="is not what was written"):
        read_manifest(tmp_path)


def test_a_manifest_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(IntegrityError, match="is missing"):
        read_manifest(tmp_path)


def test_differences_are_named_as_a_person_would():
    now = json.loads(json.dumps(CONTENT))
    now["recipe"]["train"]["learning_rate"] = 1.0
    now["inputs"]["base"]["weights"]["model.safetensors"] = "1" * 64
    now["place"] = {"threads": 2}
    assert [str(found) for found in differences(CONTENT, now)] == [
        "train.learning_rate: 0.1 -> 1.0", "base weights model.safetensors: other content (sha256 000000000000 -> 111111111111)",
        'place: {"threads": 2}, which the run did not have',
    ]  # fmt: skip
    assert differences(CONTENT, CONTENT) == []


def test_where_files_are_is_no_difference_of_recipes():
    before = {"base": "a", "name": "x", "data": {"path": "a.txt", "max_length": 8}, "train": {"keep_checkpoints": 2}}
    now = {"base": "b", "name": "y", "data": {"path": "b.txt", "max_length": 9}, "train": {"keep_checkpoints": 3}}
    assert [found.what for found in recipe_differences(before, now)] == ["recipe.data.max_length"]


def test_how_memory_is_used_is_no_part_of_what_the_plan_settles():
    assert plan_digest({"precision": "float32", "computing": 1}) == plan_digest({"precision": "float32", "computing": 2})
    assert plan_digest({"precision": "float32"}) != plan_digest({"precision": "bfloat16"})
