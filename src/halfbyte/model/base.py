"""Which model `base` names: the embedded one, a folder, or a hub name with a revision. Looked at before anything is loaded."""

import difflib
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from halfbyte.errors import HalfbyteError, IntegrityError, MachineError, ModelError, RecipeError
from halfbyte.model.vetting import vet_config, vet_folder

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent.parent / "base"
HUB_PATIENCE_SECONDS = 4
FINGERPRINT_BYTES = 4_000_000
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
WIDTH_KEYS = ("hidden_size", "n_embd", "d_model")
# What the classes of language models are called; transformers would also load an encoder (BERT), which looks ahead.
WRITING_ENDINGS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True)
class Base:
    """A model that exists. `place` is what transformers is given, `revision` only for hub names."""

    name: str
    place: str
    revision: str | None
    config: dict[str, Any]
    fingerprint: str
    """Tells whether a run is used with the base that it was trained on."""

    @property
    def context(self) -> int | None:
        """Positions that the base was made for, under whichever name its family gives them; None when it names none."""
        inner = self.config.get("text_config") or {}
        return next((int(part[key]) for part in (self.config, inner) for key in CONTEXT_KEYS if isinstance(part.get(key), int)), None)

    @property
    def quantization(self) -> dict[str, Any] | None:
        return self.config.get("quantization_config")


def check_same_base(fingerprint: str, base: Base) -> None:
    """Shapes would fit any sister of the base that a run was trained on, and the answers would be quietly wrong."""
    if fingerprint != base.fingerprint:
        raise IntegrityError(f"base: {base.name} is not the model that this run was trained on (its files differ)", hint="put the old one back, or train again")


def check_length(longest: int, base: Base) -> None:
    """longest: tokens of the longest row that a recipe allows. Raises RecipeError where the base has fewer positions."""
    if base.context and longest > base.context:
        seen = f"data.max_length: {longest} is beyond the {base.context} positions of {base.name}"
        raise RecipeError(seen, hint=f"lower it to {base.context} or less")


def check_rank(rank: int, base: Base) -> None:
    """An adapter as wide as its layer has more weights than the layer. Raises RecipeError."""
    inner = base.config.get("text_config") or {}
    width = next((part[key] for part in (base.config, inner) for key in WIDTH_KEYS if isinstance(part.get(key), int)), None)
    if width and rank > width:
        raise RecipeError(f"adapter.r: {rank} is wider than the layers of {base.name}, which are {width} wide", hint=f"give 1 to {width}; 8 to 64 is usual")


def find_base(name: str) -> Base:
    """Resolves a base and reads its config. Raises ModelError or MachineError with the mend, within seconds."""
    if name == EMBEDDED:
        return _from_folder(name, EMBEDDED_FOLDER)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _from_folder(name, folder)
    if folder.is_file():
        raise ModelError(f"base: {name} is a file; a base is a folder with config.json and weights", hint=f"give its folder: base={folder.parent}")
    if "://" in name:
        raise ModelError(f"base: {name} is an address, neither a folder nor a hub name", hint="give the owner/name that stands in it")
    repository, _, revision = name.partition("@")
    if name.startswith((".", "/", "~")) or repository.count("/") != 1:
        if difflib.get_close_matches(name, [EMBEDDED], cutoff=0.7):
            raise ModelError(f"base: there is no folder {name}", hint=f"did you mean {EMBEDDED!r}?")
        raise ModelError(f"base: there is no folder {name}", hint="give `embedded`, a folder, or a hub name such as owner/name@revision")
    return _from_hub(name, repository, revision or None)


def _from_folder(name: str, folder: Path) -> Base:
    file = folder / "config.json"
    if not file.is_file():
        if any((place / "adapter_config.json").is_file() for place in (folder, folder / "adapter")):
            seen = f"base: {folder} holds an adapter, not a model"
            raise ModelError(seen, hint=f"give the base that it was made for, and the adapter with adapter.init_from={folder}")
        raise ModelError(f"base: no model in {folder}: expected config.json", hint="give the folder that from_pretrained takes")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file}: not JSON: {error}", hint="download the model again") from error
    _check(name, config)
    vet_folder(str(folder), folder)
    return Base(name, str(folder), None, config, _fingerprint(folder))


def _from_hub(name: str, repository: str, revision: str | None) -> Base:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )  # fmt: skip

    try:
        cached = try_to_load_from_cache(repository, "config.json", revision=revision)
    except HFValidationError as error:
        raise ModelError(f"base: {name} is neither a folder nor a hub name: {error}", hint="a hub name is owner/name or owner/name@revision") from error
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    if not isinstance(cached, str):
        if offline:
            raise MachineError(
                f"base: {name} is not in the local cache, and HF_HUB_OFFLINE is set", hint="unset it, or give a folder; `embedded` needs no network"
            )
        _check_hub_answers(name)
    try:
        if not isinstance(cached, str):
            # Asked once beforehand: the download tries again for minutes where the hub is busy, and calls a token without the scope a broken network.
            with suppress_transport(HfHubHTTPError):
                get_hf_file_metadata(hf_hub_url(repository, "config.json", revision=revision))
        file = cached if isinstance(cached, str) else hf_hub_download(repository, "config.json", revision=revision)
    except GatedRepoError as error:
        raise ModelError(f"base: {repository} is gated", hint="accept its terms on its page, then set HF_TOKEN or run `hf auth login` (read scope)") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"base: {repository} has no revision {revision}", hint="give a branch, tag or commit of it") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"base: there is no {repository} on the hub, or it is private", hint="check the name; for a private one set HF_TOKEN") from error
    except LocalEntryNotFoundError as error:
        raise MachineError(
            f"base: {name} is not on this machine, and the hub cannot be reached", hint="is there a network? give a folder, or base=embedded"
        ) from error
    except EntryNotFoundError as error:
        raise ModelError(
            f"base: {repository} has no config.json, so it is no model that transformers loads", hint="is it a data set, an adapter or a GGUF file?"
        ) from error
    except HfHubHTTPError as error:
        raise _told(repository, error.response.status_code) from error
    config = json.loads(Path(file).read_text(encoding="utf-8"))
    _check(name, config)
    # The cache keeps each commit in a folder of its own: config and weights are taken from the same one, even if the branch moves on.
    commit = Path(file).parent.name if re.fullmatch("[0-9a-f]{40}", Path(file).parent.name) else revision
    return Base(name, repository, commit, config, f"{repository}@{commit}")


@contextmanager
def suppress_transport(answered: type[Exception]) -> Iterator[None]:
    """Passes on what the hub answered; what did not reach it is told by the download that follows."""
    transport: type[Exception] = answered.__bases__[0]  # httpx's HTTPError, whatever the hub client calls its copy of httpx
    try:
        yield
    except transport as error:
        if isinstance(error, answered):
            raise


def _told(repository: str, status: int) -> HalfbyteError:
    if status == 401:
        return ModelError("base: the hub rejects the token (401)", hint="renew it with `hf auth login` or HF_TOKEN; a public model needs none")
    if status == 403:
        return ModelError(f"base: the token may not read {repository} (403)", hint="give the token read access to it on its settings page")
    if status == 429:
        return MachineError("base: the hub takes no more requests for now (429)", hint="wait some minutes, or log in for a higher limit")
    return MachineError(f"base: the hub answers {status} for {repository}", hint="try again later; what was loaded is kept")


def _fingerprint(folder: Path) -> str:
    """A hash over config.json and over size, beginning and end of every weight file: cheap on 15 GB, and other weights of one shape differ in it."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as stream:
            digest.update(f"{file.name} {file.stat().st_size}".encode() + stream.read(FINGERPRINT_BYTES))
            stream.seek(max(0, file.stat().st_size - FINGERPRINT_BYTES))
            digest.update(stream.read(FINGERPRINT_BYTES))
    return digest.hexdigest()


def _check_hub_answers(name: str) -> None:
    """A closed network is said at once; the hub client alone would try for most of a minute."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return  # the proxy answers, not the hub
    outcome: list[str] = []

    def knock() -> None:
        try:
            socket.create_connection((parts.hostname, parts.port or 443), timeout=HUB_PATIENCE_SECONDS).close()
            outcome.append("")
        except OSError as error:
            outcome.append(str(error))

    # In a thread, because looking up the name knows no time limit, and each address of the hub has one of its own.
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(HUB_PATIENCE_SECONDS)
    failure = outcome[0] if outcome else f"no answer within {HUB_PATIENCE_SECONDS} s"
    if failure:
        raise MachineError(
            f"base: {name} is not on this machine, and the hub ({parts.hostname}) does not answer: {failure}",
            hint="is there a network? give a folder, or base=embedded, which needs none",
        )


def _check(name: str, config: dict[str, Any]) -> None:
    """Refuses by name what this path cannot train."""
    if not isinstance(config, dict):
        raise ModelError(f"base: config.json of {name} holds no settings", hint="download the model again")
    vet_config(name, config)
    if "model_type" not in config:
        raise ModelError(f"base: config.json of {name} says no model_type", hint="is it a model of transformers? give another, or download it again")
    method = str((config.get("quantization_config") or {}).get("quant_method", "")).lower()
    if method and method != "bitsandbytes":
        raise ModelError(
            f"base: {name} is quantised by {method.upper()}, which cannot be trained here",
            hint=f"give the unquantised model that it was made from (the name without -{method.upper()}); halfbyte quantises it to NF4",
        )
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"base: {name} is an encoder-decoder ({config.get('model_type')})", hint="give a decoder-only model (Llama, Mistral, Qwen, Falcon, ...)"
        )
    architectures = config.get("architectures") or []
    if architectures and not any(architecture.endswith(WRITING_ENDINGS) for architecture in architectures):
        raise ModelError(
            f"base: {name} is a {architectures[0]}, which does not write text from left to right", hint="give a language model, one that ends in ForCausalLM"
        )
    if "auto_map" in config:
        from transformers import CONFIG_MAPPING

        if config.get("model_type") not in CONFIG_MAPPING:
            raise ModelError(f"base: {name} needs its own code to load, which is not run here", hint="give a model that transformers knows")
