"""The replay of the fast path's memory against the fast path itself: every allocation of a step, in order, and what lives at the peak."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from halfbyte.budget import fast as budget
from halfbyte.budget import fast_sizes
from halfbyte.budget.allocator import Allocator
from halfbyte.budget.fast import Step, fast_peak, step_of
from halfbyte.budget.fast_work import FastWork, groups_of
from halfbyte.budget.shape import read_shape
from halfbyte.budget.step import Work
from halfbyte.data.batches import IGNORE, Batch
from halfbyte.fast import attention, block, decoder, falcon, fp8, head, layer, linear, parking
from halfbyte.model.load import falcon_linears_are_linears
from halfbyte.recipe.plan import Placement
from recordings import make_work
from toy_fast import FALCON_LINEARS, LINEARS

LARGE = 6000
"""Bytes: smaller tensors are ids, positions and sums, which the replay knows roughly."""
TOKENS, PIECE = 64, 24
CONFIG = {
    "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 320, "vocab_size": 512, "num_hidden_layers": 4,
    "head_dim": 32, "tie_word_embeddings": False,
}  # fmt: skip
FALCON = {"hidden_size": 128, "num_attention_heads": 4, "ffn_hidden_size": 320, "vocab_size": 512, "num_hidden_layers": 4, "tie_word_embeddings": False}
LAYERS = CONFIG["num_hidden_layers"]


class Watch(TorchDispatchMode):
    """What was allocated while it is entered, in order, and what lived when most did."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.peak: list[int] = []
        self.live: list[tuple[StorageWeakRef, int]] = []
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
        result = function(*args, **kwargs)
        self.live = [(ref, size) for ref, size in self.live if not ref.expired()]
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor) and one.untyped_storage()._cdata not in given and one.untyped_storage().nbytes() > LARGE:
                storage = one.untyped_storage()
                if storage._cdata not in {ref.cdata for ref, _ in self.live}:
                    self.live.append((StorageWeakRef(storage), storage.nbytes()))
                    self.sizes.append(storage.nbytes())
        if sum(size for _, size in self.live) > sum(self.peak):
            self.peak = [size for _, size in self.live]
        return result


class Logged(Allocator):
    """The same of the replay."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.peak: list[int] = []
        self.live: dict[int, int] = {}
        self.count = 0

    def malloc(self, size):
        block = super().malloc(size)
        self.count += 1
        if size > LARGE:
            self.sizes.append(size)
            self.live[self.count] = size
            if sum(self.live.values()) > sum(self.peak):
                self.peak = list(self.live.values())
        return self.count, block

    def free(self, block):
        number, block = block
        self.live.pop(number, None)
        super().free(block)


def without_kernels() -> SimpleNamespace:
    """The kernels allocate nothing, and here they compute nothing either."""
    both_ways = [name + way for name in ("rms_norm", "layer_norm", "rotate", "swiglu", "gelu") for way in ("", "_backward")]
    names = [*both_ways, "add_rms_norm", "cross_entropy", "write_adapter", "dequantise_nf4", "quantise_rows", "product", "write_weight", "write_factors"]
    return SimpleNamespace(**dict.fromkeys(names, lambda *_, **__: None))


def attend(q, k, v, documents, window, scale):
    return torch.empty_like(q, memory_format=torch.contiguous_format), attention.Kept("cudnn", (q.new_empty(q.shape[:2], dtype=torch.float32),))


def attend_backward(d_out, q, k, v, out, kept, documents, window, scale):
    found = tuple(torch.empty_like(one, memory_format=torch.contiguous_format) for one in (q, k, v))
    wide = torch.empty(d_out.shape, dtype=torch.float32)
    each = [torch.empty_like(d_out) for _ in range(2)] if q.shape[1] != k.shape[1] else []
    del wide, each
    return found


class Stream:
    """Of a GPU that is not there."""

    def wait_stream(self, other):
        return self

    wait_event = wait_stream

    def record_event(self):
        return self


def place(shelf, number, index, tensor):
    """The computer's memory is not counted."""
    with _disable_current_modes():
        return shelf._places.setdefault((number, index), torch.empty_like(tensor).flatten())[: tensor.numel()].view(tensor.shape)


def config_of(family: str) -> dict:
    return FALCON if family == "falcon" else CONFIG


def model_of(family: str, targets: list[str] | None):
    from peft import LoraConfig, get_peft_model
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    made = CONFIG_MAPPING[family](**config_of(family))
    wanted = targets or (FALCON_LINEARS if family == "falcon" else LINEARS)
    with falcon_linears_are_linears():
        model = AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=list(wanted), task_type="CAUSAL_LM"))
    for parameter in adapted.parameters():
        parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    return adapted


@contextmanager
def without_a_gpu(monkeypatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        for module, name, value in (
            (decoder, "ops_for", lambda _: without_kernels()), (fp8, "ops_for", lambda _: without_kernels()),
            *((module, function.__name__, function) for module in (layer, falcon) for function in (attend, attend_backward)),
            (linear, "_add_product", lambda *_: None), (head, "rows_at_a_time", lambda *_: PIECE), (budget, "rows_at_a_time", lambda *_: PIECE),
            (torch.cuda, "current_stream", lambda _: Stream()), (torch.cuda, "stream", lambda _: nullcontext()), (parking.Shelf, "_place", place),
        ):  # fmt: skip
            patch.setattr(module, name, value)
        yield


WAYS: dict[str, tuple[str, list[Placement], dict]] = {
    "all": ("llama", [Placement()] * LAYERS, {}),
    "norms of heads": ("qwen3", [Placement()] * LAYERS, {}),
    "biases": ("qwen2", [Placement(activations="thin")] * LAYERS, {}),
    "thin": ("llama", [Placement(activations="thin")] * LAYERS, {}),
    "attention": ("llama", [Placement(activations="attention")] * LAYERS, {}),
    "input": ("llama", [Placement(activations="recomputed")] * LAYERS, {}),
    "input of qwen3, tight": ("qwen3", [Placement(activations="recomputed")] * LAYERS, {"tight": True}),
    "each its own": ("llama", [Placement(activations=kind) for kind in ("recomputed", "attention", "thin", "kept")], {}),
    "parked": ("llama", [*[Placement(activations="recomputed", parked=True)] * 3, Placement()], {}),
    "all parked": ("qwen3", [Placement(activations="cpu"), *[Placement(activations="kept", parked=True)] * 3], {}),
    "16 bits": ("llama", [*[Placement("16bit")] * 2, *[Placement("16bit", "thin")], Placement()], {}),
    "falcon": ("falcon", [Placement()] * LAYERS, {}),
    "falcon, thin": ("falcon", [Placement(activations="thin")] * LAYERS, {}),
    "falcon, attention": ("falcon", [Placement(activations="attention")] * LAYERS, {}),
    "falcon, input, tight": ("falcon", [Placement(activations="recomputed")] * LAYERS, {"tight": True}),
    "falcon, each its own": ("falcon", [Placement(activations=kind) for kind in ("recomputed", "attention", "thin", "kept")], {}),
    "falcon, parked": ("falcon", [*[Placement(activations="recomputed", parked=True)] * 3, Placement()], {}),
    "falcon, all parked": ("falcon", [Placement(activations="cpu"), *[Placement(activations="kept", parked=True)] * 3], {}),
    "falcon, 16 bits": ("falcon", [*[Placement("16bit")] * 2, *[Placement("16bit", "thin")], Placement()], {}),
    "falcon, one adapter": ("falcon", [Placement(activations="attention")] * LAYERS, {"targets": ("query_key_value",)}),
    "fp8": ("llama", [Placement()] * LAYERS, {"fp8": True}),
    "fp8, thin": ("qwen3", [Placement(activations="thin")] * LAYERS, {"fp8": True}),
    "fp8, attention": ("llama", [Placement(activations="attention")] * LAYERS, {"fp8": True}),
    "fp8, input, tight": ("llama", [Placement(activations="recomputed")] * LAYERS, {"fp8": True, "tight": True}),
    "fp8, parked": ("llama", [*[Placement(activations="recomputed", parked=True)] * 3, Placement()], {"fp8": True}),
    "fp8, resident": ("llama", [*[Placement("16bit")] * 2, *[Placement("16bit", "thin")], Placement()], {"fp8": True}),
    "two adapters": ("llama", [Placement(activations="attention", parked=True)] * LAYERS, {"targets": ("q_proj", "down_proj")}),
}


IN_PIECES = ["all", "thin", "input", "input of qwen3, tight", "each its own", "parked", "two adapters", "fp8, thin", "fp8, input, tight"]


@pytest.mark.parametrize("way", IN_PIECES)
def test_the_replay_allocates_what_the_fast_path_does_piece_by_piece(monkeypatch, way):
    monkeypatch.setattr(fast_sizes, "ALIGNED", 8)
    for module in (decoder, budget):
        monkeypatch.setattr(module, "tokens_at_once", lambda _, tight: 24 if tight else 40)
    test_the_replay_allocates_what_the_fast_path_does(monkeypatch, way)


@pytest.mark.parametrize("way", WAYS)
def test_the_replay_allocates_what_the_fast_path_does(monkeypatch, way):
    family, layers, how = WAYS[way]
    how = dict(how)
    targets = how.pop("targets", None)
    shape = read_shape({**config_of(family), "model_type": family})
    work = Work(shape, 1, TOKENS, tuple(layers), rank=4, targets=targets)
    keep = [budget.KEEP[one.activations] for one in layers]
    given = FastWork(work, (TOKENS,), **how)
    with without_a_gpu(monkeypatch):
        made = decoder.FastDecoder(
            model_of(family, targets), torch.bfloat16, keep, given.parked, [number for number, one in enumerate(layers) if one.weights == "16bit"], **how
        )
        made.shelf.stream = Stream()
        ids = torch.randint(0, 512, (1, TOKENS))
        labels = ids.clone()
        labels[:, 0] = IGNORE
        watch = Watch()
        run = made._run

        def watched(*tensors):
            with watch:
                return run(*tensors)

        monkeypatch.setattr(made, "_run", watched)
        made.accumulate(Batch(ids, labels, (TOKENS,)), 1.0)
        first, watch.sizes = watch.sizes, []
        made.accumulate(Batch(ids, labels, (TOKENS,)), 1.0)
        memory = Logged()
        step = step_of(given, memory)
        memory.sizes, memory.peak = [], []
        memory.live.clear()
        step.run()
        expected, memory.sizes = memory.sizes, []
        step.run()
    assert first == expected
    assert watch.sizes == memory.sizes
    assert sorted(watch.peak) == sorted(memory.peak)


MEASURED = [  # on an H200: rows, tokens, what is kept, how, what was allocated and reserved in GB
    (4, 2048, "kept", {}, 30.3, 30.8),
    (4, 2048, "thin", {}, 15.6, None),
    (4, 2048, "recomputed", {}, 8.35, None),
    (1, 2048, "kept", {}, 11.5, None),
    (1, 2048, "recomputed", {}, 5.92, None),
    (1, 16384, "recomputed", {}, 11.6, None),
    (4, 2048, "recomputed", {"parked": True}, 6.67, None),
    (4, 2048, "attention", {"parked": True}, 6.90, None),
    (1, 2048, "recomputed", {"parked": True, "tight": True}, 5.44, None),
    (1, 2048, "attention", {"parked": True, "record": True}, None, 5.87),
    (1, 16384, "thin", {"parked": True, "record": True}, None, 9.28),
    (4, 2048, "thin", {"parked": True, "record": True}, None, 7.60),
    (8, 2048, "thin", {"parked": True, "record": True}, None, 9.28),
    (2, 2048, "kept", {"record": True}, None, 18.18),
    (8, 2048, "kept", {"resident": 32, "record": True}, None, 69.74),
    (4, 2048, "kept", {"resident": 14, "record": True}, None, 37.15),
    (4, 2048, "kept", {"record": True, "fp8": True}, None, 30.91),
]


@pytest.mark.parametrize(("rows", "tokens", "kept", "how", "allocated", "reserved"), MEASURED)
def test_what_was_measured_is_predicted_within_5_percent(rows, tokens, kept, how, allocated, reserved):
    how = dict(how)
    parked, resident = how.pop("parked", False), how.pop("resident", 0)
    work = make_work("mistral-7b")
    layers = tuple(Placement("16bit" if number < resident else "4bit", kept, parked and number < 30) for number in range(32))
    peak = fast_peak(FastWork(replace(work, layers=layers), (tokens,) * rows, **how))
    assert allocated is None or peak.allocated_bytes / 1e9 == pytest.approx(allocated, rel=0.05)
    assert reserved is None or peak.reserved_bytes / 1e9 == pytest.approx(reserved, rel=0.05)
    assert bool(peak.host_bytes) is parked


def test_groups_are_those_of_the_blocks():
    qkv, o, gate_up, down = groups_of(make_work("mistral-7b"))
    assert (qkv.outputs, qkv.inputs, qkv.rank, qkv.spare) == (6144, 4096, 48, 64)
    assert (o.spare, gate_up.rank, down.inputs, down.size) == (64, 32, 14336, (4096 + 64) * (14336 + 64))
    assert groups_of(make_work("mistral-7b", rank=64))[0].spare == 192
    wide, o, down = groups_of(make_work("falcon-7b"))
    assert (wide.outputs, wide.inputs, wide.rank, o.outputs, o.inputs, down.inputs) == (22848, 4544, 32, 4544, 4544, 18176)


def test_heads_that_share_keys_have_gradients_of_their_own_first():
    peaks = []
    for shape in (make_work("mistral-7b", layers=1).shape, replace(make_work("mistral-7b", layers=1).shape, key_heads=32)):
        memory = Allocator()
        step = Step(FastWork(replace(make_work("mistral-7b", layers=1), shape=shape), (2048, 2048)), memory)
        before = memory.allocated
        step.attend_backward()
        peaks.append(memory.peak_allocated - before)
    own = 2 * 4096 * 4096 * 2
    keys = 2 * 4096 * (4096 - 1024) * 2
    assert peaks[0] == pytest.approx(peaks[1] - keys + own, rel=0.02)


def test_which_kernel_computes_attention():
    work = make_work("mistral-7b", layers=1)
    assert FastWork(work, (2048, 2048)).kernel == "cudnn"
    assert FastWork(work, (2040, 2056)).kernel == FastWork(work, (8,), varied=True).kernel == FastWork(work, (8,), hopper=False).kernel == "flash"


def test_the_words_of_the_plan_are_the_path_s():
    assert set(budget.KEEP.values()) == set(block.KEEP)
