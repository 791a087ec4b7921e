"""Bases, tokenizers and adapters that cannot be used (81-100 of the list), and what the hub may answer."""

import contextlib
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bad_inputs.case import CONFIG, NOTE, WEIGHTS, Case, Make, Surround
from bad_inputs.recipes import and_then, good

PLAN = "plan train.yaml base=base"
TRAIN = "train train.yaml base=base"
Change = Callable[[Path], object]


@cache
def toy(kind: str = "mistral", vocabulary: int = 320, chat: bool = True) -> Path:
    """A tiny base, made once a process."""
    from toys import make_base

    return make_base(Path(tempfile.mkdtemp(prefix="toy")), kind, chat=chat, vocab_size=vocabulary)


@cache
def wide() -> Path:
    """The toy with wider layers."""
    from toys import make_base

    return make_base(Path(tempfile.mkdtemp(prefix="wide")), hidden_size=96, num_attention_heads=3)


@cache
def toy_adapter() -> Path:
    """An adapter of rank 4 on the toy, as peft saves it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = Path(tempfile.mkdtemp(prefix="adapter"))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(toy()), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def base(change: Change = lambda folder: None, **toys) -> Make:
    """The toy in the folder `base`, changed."""
    return and_then(and_then(good, long_rows), lambda folder: change(shutil.copytree(toy(**toys), folder / "base")))


def long_rows(folder: Path) -> None:
    (folder / "train.yaml").write_text((folder / "train.yaml").read_text().replace("max_length: 64", "max_length: 256"))


def adapter(change: Change) -> Make:
    return and_then(base(), lambda folder: change(shutil.copytree(toy_adapter(), folder / "adapter")))


def config(name: str = "config.json", **changes) -> Change:
    """The settings of a model with other values; None takes one out."""

    def change(folder: Path) -> None:
        settings = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))

    return change


def only_config(**settings) -> Make:
    """A model of another kind, of which there is no more than its config.json."""

    def make(folder: Path) -> None:
        (folder / "base").mkdir()
        (folder / "base" / "config.json").write_text(json.dumps(settings))

    return and_then(good, make)


def tensors(change: Callable[[dict], object], name: str = "model.safetensors") -> Change:
    """The weights, changed: a function of names and tensors that changes them or returns others."""

    def rewrite(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        held = load_file(folder / name)
        held = change(held) or held
        save_file({key: tensor.contiguous() for key, tensor in held.items()}, folder / name, {"format": "pt"})

    return rewrite


def bytes_of(change: Callable[[bytes], bytes], name: str = "model.safetensors") -> Change:
    def rewrite(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return rewrite


def header(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    """The same tensors behind a header that says something else."""

    def rewrite(raw: bytes) -> bytes:
        length = int.from_bytes(raw[:8], "little")
        held = json.loads(raw[8 : 8 + length])
        change(held)
        text = json.dumps(held).encode()
        return len(text).to_bytes(8, "little") + text + raw[8 + length :]

    return rewrite


def overlap(held: dict) -> None:
    names = sorted((name for name in held if name != "__metadata__"), key=lambda name: held[name]["data_offsets"][0])
    held[names[1]]["data_offsets"] = held[names[0]]["data_offsets"]


def in_shards(folder: Path) -> None:
    """In two files with an index, of which the second is not there."""
    from safetensors.torch import load_file, save_file

    held = load_file(folder / "model.safetensors")
    names = sorted(held)
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file({name: held[name] for name in names[:5]}, folder / first, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: first if name in names[:5] else second for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def poison(name: str, value: float) -> Callable[[dict], None]:
    def change(held: dict) -> None:
        held[name][0, 0] = value

    return change


def resize(held: dict) -> dict:
    import torch

    return {name: torch.zeros(384, tensor.shape[1], dtype=tensor.dtype) if tensor.shape[0] == 320 else tensor for name, tensor in held.items()}


def without(*words: str) -> Callable[[dict], dict]:
    return lambda held: {name: tensor for name, tensor in held.items() if not any(word in name for word in words)}


def answering(status: int, **headers: str) -> Surround:
    """A hub on this machine that answers every request so; the client, its parsing and its retries are the real ones."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *words: object) -> None:
            pass

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            with online(f"http://127.0.0.1:{server.server_port}"):
                yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    return around


@contextlib.contextmanager
def online(endpoint: str) -> Iterator[None]:
    """Not offline by setting, and the hub is at `endpoint`."""
    import os

    from huggingface_hub import constants

    kept = constants.ENDPOINT, constants.HUGGINGFACE_CO_URL_TEMPLATE, constants.HF_HUB_OFFLINE, constants.HF_HUB_CACHE
    surroundings = {name: os.environ.pop(name, None) for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")}
    with tempfile.TemporaryDirectory() as cache_folder:
        constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_HUB_CACHE = endpoint, False, cache_folder
        constants.HUGGINGFACE_CO_URL_TEMPLATE = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        try:
            yield
        finally:
            constants.ENDPOINT, constants.HUGGINGFACE_CO_URL_TEMPLATE, constants.HF_HUB_OFFLINE, constants.HF_HUB_CACHE = kept
            os.environ.update({name: value for name, value in surroundings.items() if value is not None})


def nobody() -> contextlib.AbstractContextManager[None]:
    """A hub that cannot be reached: nothing listens there."""
    return online("http://127.0.0.1:9")


def model_case(number: str, does: str, make: Make, *says: str, code: int = 2, words: str = PLAN, stage: str = CONFIG, **more) -> Case:
    return Case(number, does, words, stage, code, says, make, **more)


HUB = "plan train.yaml base=owner/name"
START = "train train.yaml base=base adapter.init_from=adapter"
A_WEIGHT = "model.layers.1.mlp.up_proj.weight"
LORA = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"

CASES = [
    model_case("81", "a tokenizer of another family", base(config(vocab_size=300)), "tokenizer has 320 tokens", "300", "do not match"),
    model_case("81+", "no tokenizer", base(lambda folder: [file.unlink() for file in folder.glob("tokenizer*")]), "no tokenizer that can be loaded"),
    model_case("81+", "a tokenizer that is no JSON", base(bytes_of(lambda raw: raw[:99], "tokenizer.json")), "no tokenizer that can be loaded"),
    model_case("82", "a base without a chat template", base(chat=False), "the base has no chat template", "data.prompt_template", stage=NOTE, code=0),
    model_case("85", "a folder without a model", and_then(good, lambda folder: (folder / "base").mkdir()), "no model in base", "expected config.json"),
    model_case("85+", "a folder that is not there", good, "there is no folder ./models", words="plan train.yaml base=./models/mine"),
    model_case("85+", "the embedded base with a slip", good, "embeded", "did you mean 'embedded'?", words="plan train.yaml base=embeded"),
    model_case("85+", "the weights' file instead of its folder", base(), "base/model.safetensors", "is a file", "base=base",
               words="plan train.yaml base=base/model.safetensors"),
    model_case("85+", "a GGUF file", and_then(good, lambda folder: (folder / "m.gguf").write_bytes(b"GGUF")),
               "m.gguf", "is a file", words="plan train.yaml base=m.gguf"),
    model_case("85+", "an adapter instead of a base", adapter(lambda folder: None), "adapter", "adapter.init_from", words="plan train.yaml base=adapter"),
    model_case("85+", "an address of the hub", good, "neither a folder nor a hub name", "owner/name",
               words="plan train.yaml base=https://huggingface.co/owner/name"),
    model_case("85+", "a config.json that is no JSON", base(bytes_of(lambda raw: raw[:40], "config.json")), "base/config.json", "not JSON"),
    model_case("85+", "a config.json without settings", only_config(), "config.json", "model_type"),
    model_case("85+", "a config without its weights", base(lambda folder: (folder / "model.safetensors").unlink()), "no weights in base", "model.safetensors"),
    model_case("85+", "a model that transformers does not know", base(config(model_type="mistrall", architectures=["MistrallForCausalLM"])), "mistrall"),
    model_case("87", "a gated model", good, "owner/name is gated", "accept its terms", "HF_TOKEN", words=HUB, around=answering(403, X_Error_Code="GatedRepo")),
    model_case("88", "a token that is expired", good, "401", "token", "renew", words=HUB,
               around=answering(401, X_Error_Message="Invalid credentials in Authorization header")),
    model_case("88", "a token without the scope", good, "403", "token", "read", words=HUB, around=answering(403,
               X_Error_Message="Forbidden: needs a token with read")),
    model_case("88+", "a model that there is not, or is private", good, "there is no owner/name", "private", words=HUB, around=answering(404,
               X_Error_Code="RepoNotFound")),
    model_case("88+", "a revision that there is not", good, "owner/name has no revision v9", words=f"{HUB}@v9", around=answering(404,
               X_Error_Code="RevisionNotFound")),
    model_case("88+", "a data set instead of a model", good, "owner/name has no config.json", words=HUB, around=answering(404, X_Error_Code="EntryNotFound")),
    model_case("90", "too many requests", good, "429", "wait", words=HUB, code=3, around=answering(429, Retry_After="1", RateLimit='"api";r=0;t=120')),
    model_case("90+", "a hub that is down", good, "503", "later", words=HUB, code=3, around=answering(503)),
    model_case("90+", "no network", good, "does not answer", words=HUB, code=3, around=nobody),
    model_case("90+", "offline by setting", good, "not in the local cache", "HF_HUB_OFFLINE", words=HUB, code=3),
    model_case("91", "a model with .bin weights only", base(pickled), ".bin", "may run code", "safetensors"),
    model_case("93", "a header that is longer than the file", base(bytes_of(lambda raw: b"\xff" * 4 + bytes(4) + raw[8:])),
               "base/model.safetensors", "byte 0", code=5),
    model_case("93", "weights that were cut off", base(bytes_of(lambda raw: raw[:-352])), "corrupt at byte", "header says", "download", code=5),
    model_case("93", "weights cut off in the header", base(bytes_of(lambda raw: raw[:99])), "base/model.safetensors", "byte 0", "size 99", code=5),
    model_case("93", "tensors that overlap", base(bytes_of(header(overlap))), "corrupt at byte", "overlaps", code=5),
    model_case("93", "a header that is no JSON", base(bytes_of(lambda raw: raw[:20] + b"\0\0\0" + raw[23:])), "header cannot be read", code=5),
    model_case("93+", "bytes behind the end", base(bytes_of(lambda raw: raw + b"<html>")), "corrupt at byte", "header says", code=5),
    model_case("93+", "an empty file of weights", base(bytes_of(lambda raw: b"")), "size 0", code=5),
    model_case("93+", "a Git-LFS pointer", base(bytes_of(lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")),
               "Git-LFS pointer", "git lfs pull"),
    model_case("93+", "a login page instead of weights", base(bytes_of(lambda raw: b"<!DOCTYPE html><html><body>Log in</body></html>" * 9)),
               "corrupt at byte 0", code=5),
    model_case("93+", "an index whose second file is not there", base(in_shards), "1 of 2 files are not there", "model-00002-of-00002.safetensors"),
    model_case("94", "a NaN in a weight", base(tensors(poison(A_WEIGHT, float("nan")))), "1 tensor of base with NaN", A_WEIGHT, words=TRAIN, stage=WEIGHTS),
    model_case("94", "an infinity in the embedding", base(tensors(poison("model.embed_tokens.weight", float("inf")))), "NaN or infinity", "embed_tokens",
               words=TRAIN, stage=WEIGHTS),
    model_case("94", "a NaN in an adapter", adapter(tensors(poison(LORA, float("nan")), "adapter_model.safetensors")),
               "1 tensor with NaN", "up_proj.lora_A", words=START),
    model_case("96", "an adapter whose files disagree", adapter(config("adapter_config.json", r=16)), "says r 16", "4 x 128", "rank 4", words=START),
    model_case("96+", "an adapter of a larger base", and_then(adapter(lambda folder: None), lambda folder: (shutil.rmtree(folder / "base"),
               shutil.copytree(wide(), folder / "base"))), "does not fit this base", "4 x 64", "4 x 96", words=START, stage=WEIGHTS, long=True),
    model_case("96+", "an adapter of another kind", adapter(config("adapter_config.json", peft_type="IA3")),
               "IA3", "LoRA", words=START),
    model_case("96+", "an adapter that was cut off", adapter(bytes_of(lambda raw: raw[:-9], "adapter_model.safetensors")),
               "corrupt at byte", code=5, words=START),
    model_case("96+", "an adapter without its settings", adapter(lambda folder: (folder / "adapter_config.json").unlink()),
               "no adapter there", "adapter_config.json",
               words=START),
    model_case("96+", "an adapter that is not there", base(), "nowhere", "no adapter there", words="train train.yaml base=base adapter.init_from=nowhere"),
    model_case("97", "a base of which two weights are missing", base(tensors(without("layers.1.mlp.up", "layers.0.mlp.up"))), "2 weights of base are missing",
               "model.layers.0.mlp.up_proj.weight", A_WEIGHT, words=TRAIN, stage=WEIGHTS),
    model_case("97", "half an adapter", adapter(tensors(without("layers.1."), "adapter_model.safetensors")),
               "14 tensors of the adapter are missing", words=START,
               stage=WEIGHTS, long=True),
    model_case("99", "a vocabulary that was resized", base(tensors(resize)), "384 x 64", "320 x 64", "vocab_size", words=TRAIN, stage=WEIGHTS),
    model_case("100", "a base in fp8", base(config(quantization_config={"quant_method": "fp8"})), "quantised by FP8", "unquantised"),
    model_case("100", "a T5", only_config(model_type="t5", is_encoder_decoder=True, architectures=["T5ForConditionalGeneration"]), "t5", "decoder-only"),
    model_case("100", "a BERT", only_config(model_type="bert", architectures=["BertForMaskedLM"]), "BertForMaskedLM", "left to right"),
    model_case("100", "a vision model", only_config(model_type="vit", architectures=["ViTForImageClassification"]),
               "ViTForImageClassification", "left to right"),
    model_case("100+", "a classifier made of a language model", base(config(architectures=["MistralForSequenceClassification"])),
               "MistralForSequenceClassification"),
    model_case("100+", "a model that listens", only_config(model_type="whisper", is_encoder_decoder=True,
               architectures=["WhisperForConditionalGeneration"]), "whisper"),
    model_case("100+", "a base in 8 bits", base(config(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})),
               "quantised to 8 bits", "16-bit"),
]  # fmt: skip
