"""What `base` names: each wrong one is refused with its mend, within seconds, before anything is loaded."""

import json
import socket
import time
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors as hub

from halfbyte.errors import MachineError, ModelError
from halfbyte.model import base as bases
from halfbyte.model.base import EMBEDDED_FOLDER, find_base
from halfbyte.model.load import choose_quant
from halfbyte.recipe.schema import NF4


def folder_with(tmp_path, **config):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral", "vocab_size": 320, **config}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    return str(tmp_path)


def test_embedded_and_a_folder(toy_base):
    assert find_base("embedded").place == str(EMBEDDED_FOLDER)
    folder = toy_base()
    found = find_base(str(folder))
    assert (found.place, found.revision, found.quantization) == (str(folder), None, None)
    assert found.config["model_type"] == "mistral"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "nowhere", "a/b/c"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(ModelError, match="there is no folder") as raised:
        find_base(name)
    assert "owner/name" in raised.value.hint


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match=r"expected config\.json"):
        find_base(str(tmp_path))


@pytest.mark.parametrize(("text", "words"), [("{", "not JSON"), ("[]", "no settings"), ('"x"', "no settings")])
def test_a_config_that_is_none(tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=words):
        find_base(str(tmp_path))


def test_pickled_weights_are_refused(tmp_path):
    name = folder_with(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only \.bin weights") as raised:
        find_base(name)
    assert "safetensors" in raised.value.hint


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "hqq"])
def test_a_base_quantised_by_others_is_refused_with_its_mend(tmp_path, method):
    with pytest.raises(ModelError, match=f"quantised by {method.upper()}") as raised:
        find_base(folder_with(tmp_path, quantization_config={"quant_method": method, "bits": 4}))
    assert "unquantised" in raised.value.hint


def test_a_base_in_8_bits_is_refused(tmp_path):
    base = find_base(folder_with(tmp_path, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}))
    with pytest.raises(ModelError, match="8 bits"):
        choose_quant(NF4(), base)


@pytest.mark.parametrize(
    "config", [{"is_encoder_decoder": True, "model_type": "t5"}, {"architectures": ["BertForMaskedLM"]}, {"architectures": ["MistralModel"]}]
)
def test_a_model_that_does_not_write_from_left_to_right_is_refused(tmp_path, config):
    """transformers loads a BERT as a causal model without a word; it would look at the token that it is asked for."""
    with pytest.raises(ModelError, match=r"encoder-decoder|does not write text"):
        find_base(folder_with(tmp_path, **config))


@pytest.fixture
def online(monkeypatch):
    """Not offline by setting. No test opens a connection: each puts something in its place."""
    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_offline_by_setting_is_told_at_once(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    began = time.monotonic()
    with pytest.raises(MachineError, match="HF_HUB_OFFLINE is set"):
        find_base("mistralai/Mistral-7B-v0.1")
    assert time.monotonic() - began < 6


def test_a_closed_network_is_told_at_once(monkeypatch, online):
    def refuse(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    began = time.monotonic()
    with pytest.raises(MachineError, match="Network is unreachable") as raised:
        find_base("mistralai/Mistral-7B-v0.1")
    assert time.monotonic() - began < 6
    assert "embedded" in raised.value.hint


def test_a_network_that_swallows_packets_is_told_in_time(monkeypatch, online):
    """Guards against the time limit of create_connection, which holds for each address of the hub and not for the look-up of its name."""

    def swallow(*args, **kwargs):
        time.sleep(3)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", swallow)
    monkeypatch.setattr(bases, "HUB_PATIENCE_SECONDS", 0.2)
    began = time.monotonic()
    with pytest.raises(MachineError, match="no answer within"):
        find_base("mistralai/Mistral-7B-v0.1")
    assert time.monotonic() - began < 2


def test_a_name_that_the_hub_cannot_have():
    with pytest.raises(ModelError, match="neither a folder nor a hub name"):
        find_base("owner/na me")


def answer(status):
    return SimpleNamespace(status_code=status, headers={}, request=None, url="", text="")


@pytest.mark.parametrize(("error", "kind", "words"), [
    (hub.GatedRepoError("x", response=answer(403)), ModelError, "is gated"),
    (hub.RepositoryNotFoundError("x", response=answer(404)), ModelError, "there is no owner/name"),
    (hub.RevisionNotFoundError("x", response=answer(404)), ModelError, "no revision v9"),
    (hub.RemoteEntryNotFoundError("x", response=answer(404)), ModelError, r"no config\.json"),
    (hub.LocalEntryNotFoundError("x"), MachineError, "cannot be reached"),
    (hub.HfHubHTTPError("x", response=answer(503)), MachineError, "answers 503"),
])  # fmt: skip
def test_what_the_hub_answers_is_said_in_words(monkeypatch, online, error, kind, words):
    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr(bases, "_check_hub_answers", lambda name: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *args, **kwargs: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(kind, match=words):
        find_base("owner/name@v9")


def test_a_cached_hub_model_needs_no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder_with(tmp_path)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: str(tmp_path / "config.json"))
    base = find_base("owner/name@abc")
    assert (base.name, base.place, base.revision) == ("owner/name@abc", "owner/name", "abc")


def test_a_branch_of_the_hub_is_pinned_to_its_commit(monkeypatch, tmp_path):
    """So that a run that is resumed after the branch moved on still has the weights that it was started with."""
    commit = "0123456789abcdef" * 2 + "01234567"
    (tmp_path / commit).mkdir()
    folder_with(tmp_path / commit)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: str(tmp_path / commit / "config.json"))
    base = find_base("owner/name")
    assert (base.revision, base.fingerprint) == (commit, f"owner/name@{commit}")


@pytest.mark.parametrize("change", ["config.json", "first byte", "last byte", "one more file", "shorter"])
def test_another_model_in_the_folder_has_another_fingerprint(toy_base, tmp_path, change):
    folder = toy_base()
    first = find_base(str(folder)).fingerprint
    assert find_base(str(folder)).fingerprint == first
    weights = folder / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    if change == "config.json":
        config = json.loads((folder / change).read_text())
        (folder / change).write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    elif change == "one more file":
        (folder / "model-2.safetensors").write_bytes(b"")
    else:
        raw[100 if change == "first byte" else -1] ^= 1
        weights.write_bytes(raw[:-1] if change == "shorter" else raw)
    assert find_base(str(folder)).fingerprint != first
