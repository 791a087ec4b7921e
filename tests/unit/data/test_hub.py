"""Data sets of the hub: a table like a file, asked once, every failure one line."""

import logging
import types

import pytest

from halfbyte.data.files import open_source
from halfbyte.errors import DataError, MachineError
from reading import cells, refusal, said


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for load_dataset that is told what to give, and keeps what it was asked."""
    import datasets

    asked = types.SimpleNamespace(words=None, gives=datasets.Dataset.from_list([{"text": "a", "n": 1, "share": 0.5}, {"text": "b", "n": 2, "share": 1.0}]))

    def load(name, config, split, revision):
        asked.words = (name, config, split, revision)
        if isinstance(asked.gives, Exception):
            raise asked.gives
        return asked.gives

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


@pytest.mark.parametrize(("path", "words"), [
    ("hub:owner/name", ("owner/name", None, "train", None)), ("hub:name", ("name", None, "train", None)),
    ("hub:owner/name:a-b@v1.0#test", ("owner/name", "a-b", "test", "v1.0")), ("hub:owner/name#train[:10%]", ("owner/name", None, "train[:10%]", None)),
])  # fmt: skip
def test_a_dataset_of_the_hub_is_read_as_a_table(hub, path, words):
    source = open_source(path)
    assert hub.words == words
    assert [(row.cells, row.file, row.line) for row in source.rows()] == [({"text": "a", "n": "1"}, path, 1), ({"text": "b", "n": "2"}, path, 2)]
    assert (source.columns, source.types, source.files) == (["text", "n", "share"], {"share": "double"}, [path])
    assert source.sha256 == open_source(path).sha256


def test_columns_of_the_hub_without_a_name_follow_the_rule_of_files(hub):
    import datasets

    hub.gives = datasets.Dataset.from_dict({"text": ["a", "b"], "": [0, 1], "__index_level_0__": [5, 5]})
    source = open_source("hub:owner/name")
    assert (cells(source), len(source.notes)) == ([{"text": "a"}, {"text": "b"}], 2)
    hub.gives = datasets.Dataset.from_dict({"text": ["a", "b"], "": ["yes", "no"]})
    assert said("hub:owner/name") == ": column 2 has no name, yet 2 of the first 2 rows have a value there"


def test_rows_of_the_hub_are_counted_over_all_batches(hub):
    import datasets

    before = open_source("hub:owner/name").sha256
    hub.gives = datasets.Dataset.from_dict({"n": list(range(1000))})
    source = open_source("hub:owner/name")
    assert [(row.line, row.cells["n"]) for row in source.rows()] == [(n + 1, str(n)) for n in range(1000)]
    assert source.sha256 != before


@pytest.mark.parametrize(("error", "kind"), [
    (ValueError("Unknown split 'train'. Should be one of ['test'].\nmore"), DataError), (FileNotFoundError(""), DataError),
    (ConnectionError("offline"), MachineError), (KeyError("x"), DataError),
    (type("ConnectTimeout", (Exception,), {})("slow"), MachineError),
])  # fmt: skip
def test_what_goes_wrong_on_the_hub_is_one_line(hub, error, kind):
    hub.gives = error
    message = refusal("hub:owner/name", kind).message
    assert message.startswith("hub:owner/name: ")
    assert "\n" not in message


@pytest.mark.parametrize("answer", [None, KeyError("no such data set"), ConnectionError("no route")])
def test_the_hub_is_asked_once_before_anything_is_loaded(hub, monkeypatch, caplog, answer):
    """Without a network `datasets` tried for half a minute and logged 12 lines."""
    import huggingface_hub

    asked = []

    def dataset_info(self, name, timeout):
        logging.getLogger("huggingface_hub.utils").warning("a try")
        asked.append((name, timeout))
        if answer:
            raise answer

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    level = logging.getLogger("huggingface_hub").level
    if isinstance(answer, ConnectionError):
        error = refusal("hub:owner/name", MachineError)
        assert error.message == "hub:owner/name: the hub cannot be reached: no route"
        assert "HF_HUB_OFFLINE=1" in error.hint
        assert hub.words is None
    else:
        assert open_source("hub:owner/name").columns == ["text", "n", "share"]
    assert asked == [("owner/name", 3)]
    assert (caplog.messages, logging.getLogger("huggingface_hub").level) == ([], level)


def test_a_folder_is_never_taken_for_a_dataset(hub, tmp_path, monkeypatch):
    """load_dataset("owner/name") reads a folder of that name where there is one."""
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert said("hub:owner/name") == ": owner/name is also a folder here, and `datasets` would read that"
    assert hub.words is None


def test_a_name_that_is_none_is_refused(hub):
    assert said("hub:a/b/c") == ": is no name of a dataset"
    assert hub.words is None
