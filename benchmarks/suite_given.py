"""What every program of the suite is given, written once: a random 4-bit base, an adapter's first values, and the tokens of each step."""

import hashlib
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from halfbyte.data.batches import IGNORE, Batch
from halfbyte.data.pack import best_fit
from programs import FULL_ENOUGH, Configuration, Rows
from random_base import build_random_base, config

FIRST_ID = 3  # ids below are the tokenizer's marks, padding among them
SEED = 0
STORED_STEPS = 128  # a longer run begins again with the first
LENGTHS = Path(__file__).parent / "row_lengths.json"
TOYS: dict[str, dict[str, Any]] = {
    "toy": {
        "model_type": "mistral", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 512, "sliding_window": None, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    "falcon-toy": {
        "model_type": "falcon", "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "multi_query": True,
        "parallel_attn": True, "alibi": False, "bias": False, "new_decoder_architecture": False, "max_position_embeddings": 512, "dtype": "bfloat16",
    },
}  # fmt: skip


def settings_of(shape: str) -> dict[str, Any]:
    """config.json of a shape, with the marks that Unsloth looks for."""
    return {**(TOYS[shape] if shape in TOYS else config(shape)), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def write_all(configuration: Configuration, scratch: Path, device: str) -> None:
    """Writes what is not there yet. Each thing is complete or absent: it gets its name when it is whole."""
    settings = settings_of(configuration.shape)
    if not configuration.base(scratch).is_dir():
        partial = scratch / "base.partial"
        shutil.rmtree(partial, ignore_errors=True)
        write_base(settings, partial, device)
        partial.rename(configuration.base(scratch))
    if not configuration.adapter(scratch).is_file():
        partial = scratch / "adapter.partial"
        save_file(first_adapter(settings, configuration.rank), partial)
        partial.rename(configuration.adapter(scratch))
    if not configuration.ids(scratch).is_file():
        shape = (STORED_STEPS, configuration.rows, configuration.tokens)
        ids = np.random.default_rng(SEED).integers(FIRST_ID, settings["vocab_size"], shape, dtype=np.int64)
        if configuration.packed:
            documents = packed_documents(configuration)
            ids[documents < 0] = 0
            _save(configuration.documents(scratch), documents)
        _save(configuration.ids(scratch), ids)


def _save(file: Path, values: np.ndarray) -> None:
    partial = file.with_name("partial.npy")
    np.save(partial, values)
    partial.rename(file)


def packed_documents(configuration: Configuration) -> np.ndarray:
    """(STORED_STEPS, B, T) int64: the number of each token's document in its row, -1 behind the last one.

    Lengths are drawn with replacement, packed best fit decreasing, and the rows shuffled, as halfbyte and TRL do; the few rows that stay emptier than
    FULL_ENOUGH, of which a data set has one, are left out.
    """
    drawing = np.random.default_rng(SEED)
    lengths = np.minimum(json.loads(LENGTHS.read_text(encoding="utf-8"))[configuration.packed]["lengths"], configuration.tokens)
    wanted = STORED_STEPS * configuration.rows
    drawn = drawing.choice(lengths, int(1.2 * wanted * configuration.tokens / lengths.mean()))
    packs = best_fit(drawn, configuration.tokens)
    members = [drawn[packs.members[start:end]] for start, end in pairwise(packs.offsets)]
    full = [one for one in members if one.sum() > FULL_ENOUGH * configuration.tokens]
    documents = np.full((wanted, configuration.tokens), -1, np.int64)
    for row, chosen in zip(documents, drawing.permutation(len(full))[:wanted], strict=True):
        row[: full[chosen].sum()] = np.repeat(np.arange(len(full[chosen])), full[chosen])
    return documents.reshape(STORED_STEPS, configuration.rows, configuration.tokens)


def rows_of_steps(configuration: Configuration, scratch: Path, steps: int) -> list[Rows]:
    """What each step is given."""
    ids = torch.from_numpy(np.load(configuration.ids(scratch)))
    documents = torch.from_numpy(np.load(configuration.documents(scratch))) if configuration.packed else None
    return [rows_of(ids[step % len(ids)], documents[step % len(ids)] if documents is not None else None) for step in range(steps)]


def rows_of(ids: Tensor, documents: Tensor | None = None) -> Rows:
    """Both (B, T); documents: -1 behind the last one of a row."""
    if documents is None:
        return Rows(Batch(ids, ids, (ids.shape[1],) * len(ids)), None, None)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    inside = documents >= 0
    numbers = torch.arange(ids.shape[1])
    positions = torch.where(inside, numbers - torch.where(begins, numbers, 0).cummax(1)[0], 0)
    labels = torch.where(inside & ~begins, ids, IGNORE)
    batch = Batch(ids, labels, tuple(inside.sum(1).tolist()), positions, documents)
    flat = {"input_ids": ids[inside][None], "labels": labels[inside][None], "position_ids": positions[inside][None]}
    starts = (flat["position_ids"][0] == 0).nonzero()[:, 0]
    ends = torch.cat((starts[1:], starts.new_tensor([int(inside.sum())])))
    return Rows(batch, flat, (ends - starts).to(torch.int32))


def write_base(settings: dict[str, Any], folder: Path, device: str) -> None:
    """A checkpoint in bitsandbytes' format, with a tokenizer of words, because Unsloth loads one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BitsAndBytesConfig, PreTrainedTokenizerFast

    model = build_random_base(settings, device, seed=SEED)
    model.config.quantization_config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    model.save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(3, settings["vocab_size"]))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>")
    tokenizer.model_max_length = settings["max_position_embeddings"]
    tokenizer.save_pretrained(folder)


def first_adapter(settings: dict[str, Any], rank: int) -> dict[str, Tensor]:
    """As LoRA begins: A (R, D) uniform as torch's linear layers, B (N, R) zero. Named as `adapter_parameters` names them."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[settings["model_type"]](**{k: v for k, v in settings.items() if k != "model_type"}))
    generator = torch.Generator().manual_seed(SEED)
    values = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and (place := re.search(r"(?:layers|h)\.\d+\..*", path)):
            bound = module.in_features**-0.5
            values[f"{place[0]}.A"] = torch.empty(rank, module.in_features).uniform_(-bound, bound, generator=generator)
            values[f"{place[0]}.B"] = torch.zeros(module.out_features, rank)
    return values


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Everything that trains, by names such as layers.0.self_attn.q_proj.A, whatever the program wraps its layers in."""
    found = {}
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            place = re.search(r"((?:layers|h)\.\d+\.[\w.]+)\.lora_([AB])\.", path)
            found[f"{place[1]}.{place[2]}" if place else path] = parameter
    return found


def put_first_values(parameters: dict[str, nn.Parameter], file: Path) -> dict[str, Tensor]:
    """Copies the stored values into a program's adapter and returns them. Raises ValueError where another set of matrices trains."""
    values = load_file(file)
    if odd := sorted(values.keys() ^ parameters.keys()):
        raise ValueError(f"{len(odd)} trained matrices are not those of the other programs; the first is {odd[0]}")
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
    return values


def weight_hashes(model: nn.Module) -> dict[str, str | None]:
    """sha256 of what the program has loaded. `packed`: codes and scales of every 4-bit matrix. `other`: embedding, norms and head, as bfloat16."""
    packed, other = {}, {}
    for path, parameter in model.named_parameters():
        name = path.replace("base_model.model.", "").replace(".base_layer", "")
        if type(parameter).__name__ == "Params4bit":
            state = parameter.quant_state
            packed[name] = [parameter.data, state.code, state.absmax, *([state.offset, state.state2.code, state.state2.absmax] if state.nested else [])]
        elif not parameter.requires_grad:
            # Unsloth empties the padding's row of the embedding. No mark stands in the tokens, so those rows take no part.
            other[name] = [parameter.data[FIRST_ID:] if name.endswith(("embed_tokens.weight", "word_embeddings.weight")) else parameter.data]
    return {"packed": _sha256(packed), "other": _sha256(other, torch.bfloat16)}


def _sha256(tensors: dict[str, list[Tensor]], dtype: torch.dtype | None = None) -> str | None:
    """Of all bytes, whatever the order; the matrices are hashed side by side. To `dtype` first: a program's cast to float32 is exact and undone by it."""

    def digest(name: str) -> str:
        summed = hashlib.sha256()
        for tensor in tensors[name]:
            values = tensor.detach().cpu()  # before any cast, so that nothing is added to the GPU's peak
            values = values if dtype is None else values.to(dtype)
            summed.update(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return summed.hexdigest()

    names = sorted(tensors)
    with ThreadPoolExecutor() as pool:
        lines = [f"{name} {found}\n" for name, found in zip(names, pool.map(digest, names))]
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else None
