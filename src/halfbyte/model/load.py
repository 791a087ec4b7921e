"""Loads the base: transformers builds it, bitsandbytes quantises it, and what was quantised is counted.

This is the plain path. peft's `prepare_model_for_kbit_training` is not called, because it casts the
embedding and the head to float32; its other steps (freezing, checkpointing) stand in sight here and in
train/loop.py, and docs/design.md explains the difference.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from halfbyte.budget.shape import LAYER_KEYS
from halfbyte.errors import MachineError, ModelError
from halfbyte.model.base import Base
from halfbyte.model.machine import check_bitsandbytes
from halfbyte.model.precision import DTYPES
from halfbyte.model.vetting import INDEX, vet_index
from halfbyte.model.weight_files import check_weight_files
from halfbyte.recipe.plan import Decision
from halfbyte.recipe.schema import FP4, NF4, NoQuant

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A load that quantises less of the decoder's projections than this was not what was asked for.
SMALLEST_4BIT_SHARE = 0.99
ELEMENTS_AT_ONCE = 2**22
# Gemma 3n clamps the first of these in place in every pass of training, which 4-bit data do not bear; both are a few hundred numbers a layer.
WHOLE = {kind: ["lm_head", "prediction_coefs", "correction_coefs"] for kind in ("gemma3n", "gemma3n_text")}
"""By model_type, what is left out of the 4 bits; elsewhere it is the head, as transformers decides."""
MOST_WITHOUT_ROW = 16
"""Special tokens beyond the embedding: more are another model's."""


@dataclass(frozen=True)
class Loaded:
    """A frozen base on its device, and what was found when it was counted."""

    model: "PreTrainedModel"
    share_4bit: float
    weight_bytes: int
    parameters: int


def load_tokenizer(base: Base) -> "PreTrainedTokenizerBase":
    """The base's own tokenizer. Raises ModelError when it does not belong to the model."""
    from transformers import CONFIG_MAPPING, AutoTokenizer

    if base.config.get("model_type") not in CONFIG_MAPPING:
        seen = f"base: {base.name} is a {base.config.get('model_type')}, which this transformers does not know"
        raise ModelError(seen, hint="pip install -U transformers, or give another base")
    try:
        tokenizer = AutoTokenizer.from_pretrained(base.place, revision=base.revision or "main", trust_remote_code=False)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            seen = f"base: the tokenizer of {base.name} needs its own code, which is not run here"
            raise ModelError(seen, hint="give a model whose tokenizer transformers knows") from error
        raise ModelError(f"base: {base.name} has no tokenizer that can be loaded: {_first_line(error)}", hint="give a folder that has one") from error
    rows = base.config.get("vocab_size") or (base.config.get("text_config") or {}).get("vocab_size")
    if rows and len(tokenizer) > rows and not tokens_without_row(tokenizer, rows):
        raise ModelError(f"base: the tokenizer has {len(tokenizer)} tokens, the model {rows}: ids do not match", hint="use the model's own tokenizer")
    return tokenizer


def tokens_without_row(tokenizer: "PreTrainedTokenizerBase", rows: int) -> list[str]:
    """Marks of the tokenizer that the embedding does not hold and no text becomes, such as the image token of Gemma 3's smallest model.

    Empty where there are none, and where an id beyond the embedding can occur: of a word, of a mark that is not special (it would be found in any
    text), or of one that the tokenizer or its chat template writes.
    """
    beyond = {word: number for word, number in tokenizer.get_vocab().items() if number >= rows}
    marks = {mark.content for mark in tokenizer.added_tokens_decoder.values() if mark.special}
    written = f"{tokenizer.bos_token} {tokenizer.eos_token} {tokenizer.pad_token} {tokenizer.unk_token} {tokenizer.chat_template or ''}"
    never = len(beyond) <= MOST_WITHOUT_ROW and set(beyond) <= marks and not any(word in written for word in beyond)
    return sorted(beyond) if never else []


def check_files(base: Base) -> None:
    """Of a base in a folder, or of what the cache has of a hub name: its weight files are whole. Raises ModelError or IntegrityError."""
    if base.revision is None and Path(base.place).is_dir():
        check_weight_files(Path(base.place))


def check_kernels(quant: NF4 | FP4 | NoQuant, base: Base) -> None:
    """bitsandbytes that is not installed is told before the data are read. Raises MachineError."""
    if (base.quantization is not None or quant.kind != "none") and find_spec("bitsandbytes") is None:
        raise MachineError("bitsandbytes is not installed, and 4 bits need it", hint="pip install bitsandbytes, or train without 4 bits: quant.kind=none")


def choose_quant(quant: NF4 | FP4 | NoQuant, base: Base) -> Decision:
    """A base that is 4-bit already is loaded as it is, whatever the recipe says."""
    if base.quantization is not None:
        kind = base.quantization.get("bnb_4bit_quant_type", "fp4") if base.quantization.get("load_in_4bit") else "int8"
        if kind == "int8":
            raise ModelError(f"base: {base.name} is quantised to 8 bits", hint="give its 16-bit original")
        return Decision("quantisation", kind, "the base is 4-bit already (bitsandbytes) and is loaded as it is")
    if quant.kind == "none":
        return Decision("quantisation", "none", "the recipe asks for it")
    double = ", scales quantised too" if quant.double_quant else ""
    return Decision("quantisation", quant.kind, f"4 bits, blocks of 64{double}, by bitsandbytes")


def load_base(base: Base, quant: NF4 | FP4 | NoQuant, precision: str, device: torch.device) -> Loaded:
    """Loads and freezes the base. Raises ModelError when it does not load whole, or not in 4 bits as asked."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    check_files(base)
    dtype = DTYPES[precision]
    four_bit = base.quantization is not None or quant.kind != "none"
    options = {}
    if four_bit:
        check_bitsandbytes()
    if base.quantization is None and quant.kind != "none":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=quant.kind, bnb_4bit_use_double_quant=quant.double_quant, bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=WHOLE.get(str(base.config.get("model_type"))),
        )  # fmt: skip
    vet_hub_files(base)
    try:
        with falcon_linears_are_linears(), quiet_loading():
            model, found = AutoModelForCausalLM.from_pretrained(
                base.place, revision=base.revision or "main", dtype=dtype, device_map={"": device}, use_safetensors=True, trust_remote_code=False,
                output_loading_info=True, ignore_mismatched_sizes=True, **options,
            )  # fmt: skip
    except torch.OutOfMemoryError as error:
        raise MachineError(f"base: {base.name} does not fit into the memory of {device}", hint="use quant.kind=nf4 or a smaller base") from error
    except SafetensorError as error:
        raise ModelError(f"base: the weights of {base.name} are damaged: {_first_line(error)}", hint="download the model again") from error
    except (OSError, ValueError, StrictDataclassError) as error:
        raise ModelError(f"base: {base.name} cannot be loaded: {_first_line(error)}", hint="is it a decoder-only model with safetensors weights?") from error
    _check_whole(base.name, model, found)
    _check_finite(base.name, model)
    model.requires_grad_(False)
    model.config.use_cache = False
    if four_bit:
        _compute_in(model, dtype)
    share = share_in_4bit(model)
    if four_bit and share < SMALLEST_4BIT_SHARE:
        raise ModelError(
            f"base: only {share:.1%} of the decoder's projection weights are in 4 bits; the rest stayed {precision}",
            hint="this architecture keeps weights where bitsandbytes does not look (mixture of experts?): use quant.kind=none or another base",
        )
    set_cpu_repacking(model, on=False)
    return Loaded(model, share, sum(map(_bytes_of, model.parameters())), _count_parameters(model))


def vet_hub_files(base: Base) -> None:
    """Of a model of the hub: what find_base looks at in a folder. Raises ModelError."""
    if base.revision is None:
        return
    from transformers.utils import cached_file

    def file(name: str) -> str | None:
        return cached_file(
            base.place, name, revision=base.revision, _raise_exceptions_for_gated_repo=False, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip

    if file("adapter_config.json") is not None:
        raise ModelError(
            f"base: {base.name} holds an adapter, which would be loaded with its base", hint="give the model that it was made for, and the adapter by itself"
        )
    if index := file(INDEX):
        vet_index(base.name, Path(index))


@contextmanager
def falcon_linears_are_linears() -> Iterator[None]:
    """Inside, Falcon is built with nn.Linear; outside, transformers is as it was.

    transformers replaces only modules whose type is exactly nn.Linear; Falcon has a subclass of its own
    (same weights, same results), so nothing of it would be quantised, while is_loaded_in_4bit says True.
    """
    from transformers.models.falcon import modeling_falcon

    original = modeling_falcon.FalconLinear
    modeling_falcon.FalconLinear = nn.Linear
    try:
        yield
    finally:
        modeling_falcon.FalconLinear = original


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Progress bars and renaming notices of the libraries, which say nothing a user can act on, are held back."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    loudness = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its table of weights that are missing: they are refused by name
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            yield
    finally:
        transformers_logging.set_verbosity(loudness)
        if bars:
            transformers_logging.enable_progress_bar()


def decoder_layers(model: "PreTrainedModel") -> nn.ModuleList:
    """The list of decoder layers, whatever the architecture calls it. Raises ModelError when there is none."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 0]
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    wanted = next((getattr(config, name) for name in LAYER_KEYS if isinstance(getattr(config, name, None), int)), None)
    for module in lists:
        if len(module) == wanted:
            return module
    raise ModelError(f"base: no decoder layers found in {type(model).__name__}", hint="give a decoder-only model that transformers knows")


def share_in_4bit(model: "PreTrainedModel") -> float:
    """4-bit weights over all projection weights of the decoder layers: matrices and stacks of expert matrices.

    Norms, biases, embedding and head are not counted; a packed byte holds two weights.
    """
    four_bit = other = 0
    for module in decoder_layers(model).modules():
        for parameter in module.parameters(recurse=False):
            if type(parameter).__name__ == "Params4bit":
                four_bit += parameter.numel() * parameter.element_size() * 2
            elif parameter.ndim >= 2 and not isinstance(module, nn.Embedding):
                other += parameter.numel()
    return four_bit / (four_bit + other) if four_bit + other else 0.0


def set_cpu_repacking(model: nn.Module, on: bool) -> int:
    """Switches bitsandbytes' repacking for CPUs with AVX512-BF16; returns how many layers use it now.

    The repacked product has no gradient and a save does not undo it exactly, so it is off wherever
    training or its proofs run. On, it decodes many times faster; layers of a shape it cannot take stay plain.
    """
    from bitsandbytes import functional
    from bitsandbytes.nn import Linear4bit

    able = on and bool(functional.has_avx512bf16())
    used = 0
    for module in model.modules():
        if isinstance(module, Linear4bit):
            fits = module.in_features % 64 == 0 and module.out_features % 32 == 0
            module.support_avx512bf16_for_cpu = able and fits
            used += able and fits
    return used


def _check_whole(name: str, model: nn.Module, found: dict[str, Any]) -> None:
    """transformers draws at random what a file lacks, and bitsandbytes takes a matrix of any shape: both go on without an error."""
    shapes = {key: f"{_shape(file)} in the file, {_shape(here)} by its config" for key, file, here in found["mismatched_keys"]}
    ends = [name for name, end in _ends(model) if f"{name}.weight" in shapes]
    if ends:
        seen = f"base: {ends[0]}.weight of {name} is {shapes[f'{ends[0]}.weight']}: the vocabulary was resized"
        raise ModelError(seen, hint="write the number of rows in the file as vocab_size into config.json, or download the model again")
    odd = sorted(found["missing_keys"]) + sorted(shapes)
    for path, module in model.named_modules():
        state = getattr(module.weight, "quant_state", None) if isinstance(module, nn.Linear) else None
        if state is not None and tuple(state.shape) != (module.out_features, module.in_features):
            odd.append(f"{path}.weight")
    if odd:
        first = ", ".join(f"{key} ({shapes[key]})" if key in shapes else key for key in odd[: 1 if shapes else 3])
        raise ModelError(
            f"base: {len(odd)} weights of {name} are missing or not of the shape that its config says: {first}{', ...' * (len(odd) > 3)}",
            hint="download the model again; is it a language model with its head?",
        )


def _ends(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Embedding and head by name: as long as the vocabulary."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return [(path, module) for path, module in model.named_modules() if any(module is end for end in ends)]


def _shape(shape: Any) -> str:
    return " x ".join(map(str, shape))


def _check_finite(name: str, model: nn.Module) -> None:
    """One NaN makes every answer NaN, and training would stop at its first step without a reason. Of 4-bit weights their scales tell."""
    broken = [path for path, parameter in model.named_parameters() if not all(bool(part.float().sum().isfinite()) for part in _telling(parameter))]
    if broken:
        seen = f"base: {len(broken)} tensor{'s' * (len(broken) > 1)} of {name} with NaN or infinity: {', '.join(broken[:3])}{', ...' * (len(broken) > 3)}"
        raise ModelError(seen, hint="download the model again, or give another")


def _telling(parameter: Any) -> list[torch.Tensor]:
    """Tensors whose sum is finite where the weight is. In rows, so that no copy of it is made at once."""
    if type(parameter).__name__ == "Params4bit":
        state = parameter.quant_state
        return [state.offset, state.state2.absmax] if state.nested else [state.absmax]
    return list(parameter.detach().flatten().split(ELEMENTS_AT_ONCE)) if parameter.is_floating_point() else []


def _compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """A base that was saved in 4 bits brings its own compute type; the plan's is used."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = dtype
            module.compute_type_is_set = True


def _bytes_of(parameter: Any) -> int:
    """What it takes in memory; with a 4-bit weight go the scales of its blocks."""
    state = parameter.quant_state if type(parameter).__name__ == "Params4bit" else None
    scales = [state.absmax, state.state2.absmax] if state is not None and state.nested else [state.absmax] if state is not None else []
    return sum(tensor.numel() * tensor.element_size() for tensor in (parameter, *scales))


def _count_parameters(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() * 2 if type(p).__name__ == "Params4bit" else p.numel() for p in model.parameters())


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
