"""SECURITY 3.1: a base, an adapter or a checkpoint from elsewhere runs nothing, whatever its files say. Every poison here writes a marker file when it runs."""

import builtins
import importlib
import json
import pickle
import shutil
import socket
import sys

import pytest
import torch

from halfbyte import api
from halfbyte.errors import DataError, HalfbyteError, Interrupted, ModelError
from halfbyte.generate.engine import Sampling
from halfbyte.model import adapter as adapters
from halfbyte.model.base import find_base
from halfbyte.model.load import load_base, load_tokenizer
from halfbyte.recipe.load import parse_recipe
from halfbyte.recipe.schema import NoQuant
from toy_training import CPU
from toys import make_base

PLAIN = NoQuant(kind="none")
POISONED = (
    "pytorch_model.bin",
    "adapter_model.bin",
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "rng_state.pth",
    "rng_state_0.pth",
    "training_args.bin",
    "scaler.pt",
    "trainer_state.pt",
    "model.pt",
    "model.ckpt",
    "consolidated.00.pth",
    "value_head.bin",
    "random_states_0.pkl",
    "tokenizer.pkl",
)


class Poison:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (builtins.open, (str(self.marker), "w"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def copied(base, tmp_path):
    """A function: changes of config.json -> a copy of the base with them."""

    def copy(**changes):
        folder = tmp_path / "copy"
        shutil.copytree(base, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
        return folder

    return copy


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        pytest.fail("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def poison(folder, marker, names=POISONED):
    for name in names:
        (folder / name).write_bytes(pickle.dumps(Poison(marker)))


def test_the_poison_works(tmp_path):
    """Otherwise the tests below could not fail."""
    poison(tmp_path, tmp_path / "marker", ["x.bin"])
    pickle.loads((tmp_path / "x.bin").read_bytes())  # noqa: S301 - on purpose
    assert (tmp_path / "marker").exists()


def test_no_verb_touches_a_poisoned_file(copied, tmp_path, monkeypatch):
    """Train, interrupted; resume; evaluate, chat, from an adapter, all with a pickle of every usual name in every folder on the way."""
    marker = tmp_path / "marker"
    folder = copied()
    poison(folder, marker)
    (tmp_path / "talk.csv").write_text("prompt,response\n" + "".join(f"who is number {i},the keeper {i}\n" for i in range(12)))
    text = (
        f"name: toy\nbase: {folder}\ndata:\n  path: {tmp_path / 'talk.csv'}\n  max_length: 64\n"
        "train:\n  max_steps: 2\n  eval_steps: 1\nevaluate:\n  max_new_tokens: 2\n  max_answers: 2\n"
    )
    told = []

    def stop_after_one(event):
        told.append(event)
        if event["event"] == "checkpoint":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        api.train(parse_recipe(text, "toy.yaml", []), tmp_path / "runs", stop_after_one)
    run = tmp_path / "runs" / "toy"
    places = [run, run / "checkpoints", *(run / "checkpoints").glob("step-*")]
    assert len(places) > 2
    for place in places:
        poison(place, marker)
    api.resume(run)
    poison(run / "adapter", marker)
    api.evaluate(run)
    assert api.answer_all(api.open_tuned(run), ["who"], Sampling(2))
    api.train(parse_recipe(text, "toy.yaml", [f"adapter.init_from={run}", "name=more"]), tmp_path / "runs")
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth", "model.pt", "model.ckpt", "model.pkl", "tf_model.h5"]
)
def test_a_base_of_pickles_is_refused_with_the_mend(copied, tmp_path, name):
    folder = copied()
    (folder / "model.safetensors").unlink()
    poison(folder, tmp_path / "marker", [name])
    with pytest.raises(ModelError, match=r"has only \.\w+ weights .* run code when loaded") as caught:
        find_base(str(folder))
    assert "safetensors" in caught.value.hint
    assert "throw-away container" in caught.value.hint


def test_a_folder_whose_weights_became_pickles_is_not_loaded(copied, tmp_path, monkeypatch):
    """After the base was found, before it is loaded."""
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("a pickle was opened"))
    folder = copied()
    found = find_base(str(folder))
    (folder / "model.safetensors").unlink()
    poison(folder, tmp_path / "marker")
    with pytest.raises(ModelError, match="safetensors"):
        load_base(found, PLAIN, "float32", CPU)
    assert not (tmp_path / "marker").exists()


def test_the_loader_is_told_safetensors_too(copied, tmp_path, monkeypatch):
    """Of a model of the hub no folder is looked at: its files are fetched by the loader, which therefore must refuse pickles by itself."""
    from huggingface_hub import constants

    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("a pickle was opened"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0123456789" * 4
    snapshot = tmp_path / "hub" / "models--evil--base" / "snapshots" / commit
    shutil.copytree(copied(), snapshot)
    found = find_base(f"evil/base@{commit}")
    assert load_base(found, PLAIN, "float32", CPU).parameters  # as it is, the cache is read; what is refused below is the pickle
    (snapshot / "model.safetensors").unlink()
    poison(snapshot, tmp_path / "marker")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(found, PLAIN, "float32", CPU)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("named", ["pytorch_model.bin", "../../elsewhere/model.safetensors", "/etc/model.safetensors", "..\\model.safetensors"])
def test_an_index_names_safetensors_of_its_folder(copied, tmp_path, named):
    """transformers takes the ending of each file that the index names: with use_safetensors=True it unpickles a .bin that stands there."""
    folder = copied()
    poison(folder, tmp_path / "marker", ["pytorch_model.bin"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": named}}))
    with pytest.raises(ModelError, match=r"no safetensors file|not in its folder"):
        find_base(str(folder))


def test_a_base_that_brings_an_adapter_is_refused(copied):
    """transformers loads it with the base, or another base that it names."""
    folder = copied()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "evil/base"}))
    with pytest.raises(ModelError, match="holds an adapter beside the model"):
        find_base(str(folder))


HOSTILE = [
    {"_attn_implementation_internal": "evil/kernel"},  # CVE-2026-4372
    {"_experts_implementation_internal": "evil/kernel"},
    {"_next_hole_internal": "evil/code"},
    {"_attn_implementation": "evil/kernel"},
    {"attn_implementation": "kernels-community/flash-attn:evil"},
    {"attn_implementation": {"text_config": "evil/kernel"}},
    {"experts_implementation": "evil/kernel@main"},
    {"attn_implementation": "paged|evil/kernel"},
    {"text_config": {"_attn_implementation_internal": "evil/kernel"}},
    {"keypoint_detector_config": {"trust_remote_code": True}},  # CVE-2026-5241
    {"trust_remote_code": True},
    {"text_config": {"auto_map": {"AutoConfig": "evil/code--configuration.Config"}}},
    {"layers": [{"auto_map": {"AutoModel": "modeling.Evil"}}]},
    {"transformers_weights": "adapter_model.bin"},
    {"kernel_config": {"kernel_mapping": {"RMSNorm": "evil/kernel"}}},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "plugin": "evil/quantiser"}},
    {"model_type": "unheard-of", "auto_map": {"AutoModelForCausalLM": "modeling.Evil"}},
    {"quantization_config": {"quant_method": "evil_plugin"}},
]


@pytest.mark.parametrize("config", HOSTILE, ids=lambda config: json.dumps(config)[:50])
def test_a_config_that_asks_for_code_is_refused_before_anything_is_loaded(copied, no_network, monkeypatch, config):
    import transformers

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: pytest.fail("it was loaded"))
    with pytest.raises(ModelError) as caught:
        find_base(str(copied(**config)))
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "config",
    [
        {"_attn_implementation_autoset": True},
        {"_attn_implementation": "sdpa"},
        {"attn_implementation": None},
        {"conv_kernel": 4},
        {"_name_or_path": "owner/name"},
        {"auto_map": {"AutoModelForCausalLM": "modeling.Own"}},
    ],
)
def test_what_honest_configs_hold_passes(copied, no_network, config):
    """Falcon names code of its own, which is passed over: transformers' class is used."""
    folder = copied(**config)
    (folder / "modeling.py").write_text("raise SystemExit('the code of the model ran')")
    loaded = load_base(find_base(str(folder)), PLAIN, "float32", CPU)
    assert type(loaded.model).__module__.startswith("transformers.")


def test_a_tokenizer_with_code_of_its_own_is_refused(copied, no_network, tmp_path):
    folder = copied()
    marker = tmp_path / "marker"
    (folder / "tokenization.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    changed = settings | {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["tokenization.Evil", "tokenization.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(changed))
    try:
        load_tokenizer(find_base(str(folder)))  # transformers may know how to read tokenizer.json without it
    except ModelError as error:
        told = error.message
    else:
        told = ""
    assert not told or "its own code" in told or "cannot be loaded" in told
    assert not marker.exists()


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    from toy_training import adapted

    folder = tmp_path_factory.mktemp("adapter")
    adapters.save_adapter(adapted(base), folder, str(base))
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"megatron_config": {"tensor_model_parallel_size": 1}, "megatron_core": "evil_module"},
        {"auto_mapping": {"parent_library": "evil_module", "base_model_class": "X"}},
        {"corda_config": {"cache_file": "evil.pt"}},
        {"lora_ga_config": {"cache_file": "evil.pt"}},
        {"arrow_config": {"task_adapter_path": ["evil/adapter"]}},
        {"init_lora_weights": "corda"},
        {"some_new_key": "evil/adapter"},
    ],
    ids=str,
)
def test_an_adapter_that_asks_for_more_than_its_tensors_is_refused(adapter, tmp_path, change):
    """peft imports the module that `megatron_core` names, unpickles the caches of corda and lora-ga, and fetches the adapters of arrow."""
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=r"adapter_config\.json: (asks for|names)") as caught:
        adapters._read_saved(adapters.adapter_folder(str(folder)))
    assert caught.value.hint


def test_an_adapter_as_a_pickle_is_refused_with_the_mend(adapter, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    (folder / "adapter_model.safetensors").unlink()
    poison(folder, tmp_path / "marker", ["adapter_model.bin"])
    with pytest.raises(ModelError, match="is a pickle") as caught:
        adapters.adapter_folder(str(folder))
    assert "safetensors" in caught.value.hint


@pytest.mark.parametrize("names", ["experts.gate_up_proj", ["../evil"], [7], {"a": "b"}], ids=str)
def test_parameters_of_an_adapter_are_plain_names(adapter, tmp_path, names):
    with pytest.raises(ModelError, match="asks for target_parameters"):
        changed_adapter(adapter, tmp_path, target_parameters=names)


@pytest.mark.parametrize(
    "mapping",
    [
        {"parent_library": "transformers.models.evil.modeling_evil", "base_model_class": "Evil"},
        {"parent_library": "transformers.models.evil.modeling_evil", "base_model_class": "Evil", "unsloth_fixed": True},
        {"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True},
    ],
    ids=str,
)
def test_a_mapping_as_libraries_write_it_is_read_and_nothing_of_it_imported(base, adapter, tmp_path, monkeypatch, mapping):
    """peft imports it in AutoPeftModel alone. Asked for a module that would run, none is asked for."""
    from toy_training import load_toy

    asked, plain = [], importlib.import_module
    monkeypatch.setattr("importlib.import_module", lambda name, *given: asked.append(name) or plain(name, *given))
    folder = changed_adapter(adapter, tmp_path, auto_mapping=mapping, task_type=None)
    model = load_toy(base).model
    adapters.load_adapter(model, str(folder))
    assert not [name for name in [*asked, *sys.modules] if "evil" in name]


def test_an_adapter_of_fused_experts_is_read_as_it_was_saved(toy_base, tmp_path):
    """peft names the experts' tensors by itself where all linear layers are asked for."""
    from toy_training import NONE, adapted, load_toy, logits

    folder = toy_base("mixtral")
    model = adapted(folder, quant=NONE, stirred=True)
    adapters.save_adapter(model, tmp_path / "adapter", str(folder))
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text()).get("target_parameters")
    assert named
    again = adapters.load_adapter(load_toy(folder, NONE).model, str(tmp_path / "adapter"))
    ids = [[0, 5, 6, 7, 8, 9]]
    assert torch.equal(logits(again, ids), logits(model, ids))


def changed_adapter(adapter, tmp_path, **change):
    """Read as it is before use; its folder."""
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    adapters._read_saved(folder)
    return folder


def test_an_adapter_as_it_was_saved_is_read(adapter):
    assert adapters._read_saved(adapters.adapter_folder(str(adapter)))[1]


@pytest.mark.parametrize("key", ["trust_remote_code=true", "train.trust_remote_code=true", "trust_remote_code_model=true"])
def test_asking_for_code_is_answered_aloud(key):
    with pytest.raises(HalfbyteError, match="code that a model brings is never run here"):
        parse_recipe("data: {path: a.txt}\n", "a.yaml", [key])


def test_a_run_folder_with_a_link_that_leads_out_is_refused(tmp_path):
    """What a resume logs would be written into the file behind the link."""
    run = tmp_path / "runs" / "toy"
    run.mkdir(parents=True)
    (run / "plan.json").write_text("{}")
    (tmp_path / "mine").write_text("mine")
    (run / "events.jsonl").symlink_to(tmp_path / "mine")
    for verb in (api.resume, api.evaluate, api.open_tuned):
        with pytest.raises(DataError, match="is a link that leads out of the run folder"):
            verb(run)
    assert (tmp_path / "mine").read_text() == "mine"


def test_torch_is_new_enough():
    """Before 2.10 even weights_only=True could be made to run code or to write where it should not."""
    assert tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) >= (2, 10)
