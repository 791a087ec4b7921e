"""What the files of a base or an adapter may say, looked at before any library reads them: a model from elsewhere is a program until proven data.

A config.json can name code (`auto_map`), a repository whose kernels are fetched and run (`_attn_implementation_internal` and its kin), or a
weight file of another format; an index can send the loader to a pickle or out of the folder; an adapter can name modules to import. Loaders
have learned to ask before most of these, one hole at a time. Here what is not needed to load tensors is refused by name, and nothing asks.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from halfbyte.errors import ModelError

INDEX = "model.safetensors.index.json"
# Endings of weights that are pickles, or may hold one; GGUF is data, but not what is trained from here.
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
SAFE_COPY = "ask its author for safetensors, or convert it in a throw-away container without network; loading a pickle runs what is in it"
# Ways to compute attention and experts that transformers ships; any other word is the name of a repository.
SHIPPED = {
    "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention", "grouped_mm", "batched_mm", "deepgemm",
}  # fmt: skip
REPOSITORY = re.compile(r"[^/\s]+/[^/\s]+")
# Of an adapter: what says which layers, how wide, how scaled. What is not named here may read files, import modules or fetch.
ADAPTER_KEYS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "exclude_modules", "fan_in_fan_out", "inference_mode", "layer_replication",
    "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "modules_to_save", "peft_type", "peft_version", "r", "rank_pattern", "revision",
    "target_modules", "target_parameters", "task_type", "use_dora", "use_rslora",
}  # fmt: skip

PLAIN = re.compile(r"\w+(\.\w+)*")
MAPPING_KEYS = {"parent_library", "base_model_class", "unsloth_fixed"}
MAPPED_LIBRARIES = {"transformers", "peft", "unsloth"}


def vet_config(name: str, config: dict[str, Any]) -> None:
    """Raises ModelError for a config.json that asks for code, for kernels of a repository, or for weights that are no safetensors."""
    for path, key, value in _leaves(config):
        if why := _why_not(path, key, value):
            raise ModelError(
                f"base: config.json of {name} {why}: {'.'.join(path)} = {_short(value)}", hint="nothing that a model brings is run here; take that key out"
            )


def _why_not(path: tuple[str, ...], key: str, value: Any) -> str | None:
    if value is None or value is False:
        return None
    if key == "trust_remote_code":
        return "asks to run its own code"
    if "auto_map" in path[1:]:  # at the top it is passed over where transformers knows the model, and refused where it does not
        return "names code of its own inside a part"
    if key.endswith("_internal"):
        return "sets what only transformers itself may set, and what has fetched and run code before (CVE-2026-4372)"
    if any("implementation" in word for word in path) and isinstance(value, str) and value.split("|")[-1] not in SHIPPED:
        return "names a way to compute that would be fetched and run"
    if key == "transformers_weights" and not str(value).endswith((".safetensors", ".safetensors.index.json")):
        return f"names weights that are no safetensors ({SAFE_COPY})"
    if any("kernel" in word for word in path) and isinstance(value, str) and REPOSITORY.fullmatch(value):
        return "names kernels that would be fetched and run"
    if path[0] == "quantization_config" and isinstance(value, str) and REPOSITORY.fullmatch(value):
        return "names a repository for its quantisation"
    return None


def vet_folder(name: str, folder: Path) -> None:
    """Raises ModelError for a folder without safetensors, one that sends the loader elsewhere, and an adapter in the place of a base."""
    weights = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in PICKLED)
    safe = [file.name for file in folder.glob("*.safetensors")]
    if weights and not safe:
        ending = Path(weights[0]).suffix
        raise ModelError(f"base: {name} has only {ending} weights ({weights[0]}), which may run code when loaded", hint=SAFE_COPY)
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"base: {name} holds an adapter beside the model (adapter_config.json), which would be loaded with it",
            hint="give the model alone as base, and the adapter as adapter.init_from",
        )
    if (folder / INDEX).is_file():
        vet_index(name, folder / INDEX)


def vet_index(name: str, file: Path) -> None:
    """The index of a model in several files names safetensors of its own folder, and nothing else. Raises ModelError."""
    try:
        named = set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"base: {INDEX} of {name} is no index", hint="download the model again") from error
    for part in sorted(map(str, named)):
        if not part.endswith(".safetensors"):
            raise ModelError(f"base: {INDEX} of {name} names {part}, which is no safetensors file", hint=SAFE_COPY)
        if part != Path(part).name or "\\" in part:
            raise ModelError(f"base: {INDEX} of {name} names {part}, which is not in its folder", hint="download the model again from where it was made")


def vet_adapter(folder: Path) -> None:
    """Raises ModelError for an adapter_config.json with keys that may import, read or fetch. Their empty and usual values pass."""
    from peft import LoraConfig

    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file}: not JSON: {error}", hint="copy the adapter again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file}: holds no settings", hint="copy the adapter again")
    usual = LoraConfig().to_dict()
    for key, value in config.items():
        known = key in ADAPTER_KEYS or not value or value == usual.get(key) or (key == "init_lora_weights" and (value is True or value == "gaussian"))
        if not known:
            raise ModelError(f"{file}: asks for {key} = {_short(value)}, which is not loaded here", hint="take the key out, if the tensors do without it")
        if key == "auto_mapping" and value and not _is_usual_mapping(value):
            raise ModelError(f"{file}: names a module to import (auto_mapping = {_short(value)})", hint="take the key out; the tensors do without it")
        if key == "target_parameters" and value and not (isinstance(value, list) and all(isinstance(one, str) and PLAIN.fullmatch(one) for one in value)):
            raise ModelError(f"{file}: asks for target_parameters = {_short(value)}, which are no names", hint="copy the adapter again")


def _is_usual_mapping(value: Any) -> bool:
    """As peft and Unsloth write it: the class of the base, in the library that has it. Nothing here imports it; other libraries' tools would."""
    if not isinstance(value, dict) or not set(value) <= MAPPING_KEYS:
        return False
    named = [value.get("parent_library") or "", value.get("base_model_class") or ""]
    plain = all(isinstance(one, str) and (not one or PLAIN.fullmatch(one)) for one in named) and value.get("unsloth_fixed") in (None, True, False)
    return plain and (not named[0] or named[0].split(".")[0] in MAPPED_LIBRARIES)


def pickled_adapter(folder: Path) -> ModelError | None:
    """The refusal of an adapter that is there as a pickle only."""
    for place in (folder / "adapter", folder):
        found = sorted(file.name for file in place.glob("adapter_model.*") if file.suffix.lower() in PICKLED) if place.is_dir() else []
        if found:
            return ModelError(f"{place}: the adapter is a pickle ({found[0]}), which may run code when loaded", hint=SAFE_COPY)
    return None


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """Every value with the keys that lead to it; those inside lists too."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, path)
    elif path:
        yield path, path[-1], value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
