"""The time of a step, and what is known of GPUs."""

from dataclasses import replace

import pytest

from halfbyte.budget.predict import training_peak
from halfbyte.budget.rates import GPUS, H200, Effort, Rates, effort_of, known_gpu, rates_of, step_seconds, typical_gpu
from halfbyte.budget.step import Work
from halfbyte.recipe.plan import Placement
from recordings import make_work

NOTHING = Effort(0, 0, 0, 0, 0, 0, 0, 0)
RECOMPUTED = Placement("4bit", "recomputed")


def effort(work: Work) -> Effort:
    return effort_of(work, 1.0, 1.0)


def test_products_are_counted_as_two_operations_a_weight_and_token():
    """Frozen weights: forward, the gradient of the input, and the forward again where it is recomputed; adapters also have a gradient of their own."""
    kept, again = (make_work("mistral-7b", layers=4, placement=placement, rank=0) for placement in (Placement(), RECOMPUTED))
    weights, head, tokens = kept.shape.linear_weights, kept.shape.vocabulary * kept.shape.width, 1024
    assert effort(kept).product_flops == 2 * tokens * (2 * weights + 2 * head)
    assert effort(again).product_flops == 2 * tokens * (3 * weights + 2 * head)
    adapted = make_work("mistral-7b", layers=4, rank=16)
    assert effort(adapted).product_flops - effort(kept).product_flops == 2 * tokens * 3 * adapted.adapter_weights


def test_attention_grows_with_the_square_of_the_length():
    short, long = (effort(make_work("mistral-7b", layers=2, tokens=tokens)) for tokens in (1024, 2048))
    assert long.attention_flops == 4 * short.attention_flops
    packed = effort(make_work("mistral-7b", layers=2, packed=True))
    assert packed.attention_flops == 2 * short.attention_flops  # a mask of documents: nothing is left out
    assert short.attention_flops == 4 * 1024 * 512 * 4096 * 3.5 * 2
    falcon = effort(make_work("falcon-7b", layers=2))
    assert falcon.attention_flops == 0
    assert falcon.scores_flops > 0


def test_a_step_counts_all_its_micro_batches():
    one, four = (make_work("mistral-7b", layers=2, accumulation=accumulation, placement=Placement("cpu", "cpu")) for accumulation in (1, 4))
    alike = ("product_flops", "attention_flops", "recomputed", "quantised", "copied_bytes")
    for name in alike:
        assert getattr(effort(four), name) == 4 * getattr(effort(one), name) > 0
    assert effort(one).recomputed == 2 * 7
    assert effort(one).quantised == 2 * 7 * 3  # forward, again, and backward


def test_copies_are_weights_twice_and_inputs_there_and_back():
    layers, hidden = 3, 1024 * 4096 * 2
    weights, inputs = (effort(make_work("mistral-7b", layers=layers, placement=place)).copied_bytes for place in (Placement("cpu"), Placement("4bit", "cpu")))
    assert inputs == 2 * layers * hidden
    assert weights == pytest.approx(2 * layers * 0.516 * make_work("mistral-7b", layers=1).shape.linear_weights, rel=0.01)
    unquantised = effort(make_work("mistral-7b", layers=layers, placement=Placement("cpu"), four_bit=False)).copied_bytes
    assert unquantised == 2 * layers * 2 * make_work("mistral-7b", layers=1).shape.linear_weights


@pytest.mark.parametrize(
    ("part", "rate", "seconds"),
    [
        ("product_flops", "product_flops", 1 / 740e12), ("attention_flops", "attention_flops", 1 / 450e12), ("scores_flops", "scores_flops", None),
        ("written_bytes", "seconds_per_byte", None), ("launches", "seconds_per_launch", None), ("recomputed", "seconds_per_recomputed", None),
        ("quantised", "seconds_per_quantised", None), ("copied_bytes", "copy_bytes", 1 / 55e9),
    ],
)  # fmt: skip
def test_each_part_takes_its_time(part, rate, seconds):
    value = getattr(Rates(), rate)
    each = value if rate.startswith("seconds") else 1 / value
    assert step_seconds(replace(NOTHING, **{part: 1e15}), Rates()) == pytest.approx(1e15 * each)
    assert seconds is None or each == pytest.approx(seconds)


def test_the_longer_side_counts():
    """GPU, processor and copies run beside each other: together a little longer than the longest, and never as long as their sum."""
    gpu, host, copies = (replace(NOTHING, **part) for part in ({"product_flops": 740e12}, {"launches": 1 / 22.1e-6}, {"copied_bytes": 55e9}))
    together = Effort(*(sum(getattr(one, name) for one in (gpu, host, copies)) for name in NOTHING.__dataclass_fields__))
    longest = max(step_seconds(one, Rates()) for one in (gpu, host, copies))
    assert longest < step_seconds(together, Rates()) < 1.25 * longest
    assert step_seconds(replace(together, product_flops=10 * 740e12), Rates()) == pytest.approx(10, rel=0.01)


def test_recomputing_and_more_tokens_take_longer():
    def seconds(**changes) -> float:
        work = make_work("mistral-7b", layers=3, **changes)
        peak = training_peak(work)
        return step_seconds(effort_of(work, peak.launches, peak.written_bytes), Rates())

    assert seconds() < seconds(placement=RECOMPUTED) < seconds(placement=RECOMPUTED, tokens=8192)
    assert seconds(placement=Placement("16bit")) < seconds()


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("NVIDIA H200", "H200"), ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", "H100 PCIe"), ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100"), ("NVIDIA GeForce RTX 4090", "RTX 4090"), ("rtx 3060", "RTX 3060"), ("Tesla T4", "T4"), ("NVIDIA L40S", "L40S"),
    ],
)  # fmt: skip
def test_gpus_are_known_by_what_the_driver_calls_them(said, name):
    gpu = known_gpu(said)
    assert gpu is not None
    assert gpu.name == name


def test_what_is_not_in_the_list_is_not_known():
    assert known_gpu("Radeon RX 7900") is None
    assert known_gpu("RTX 40900") is None


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("rtx4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("A100 80GB", "A100 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("NVIDIA RTX A6000", "A6000"),
        ("a100", "A100"),
        ("RTX 4060 Ti", "RTX 4060 Ti"),
    ],
)
def test_a_gpu_that_is_asked_for_is_taken_by_its_whole_name(words, name):
    assert known_gpu(words).name == name


@pytest.mark.parametrize("words", ["RTX 4070 Ti SUPER", "RTX 3080 Ti", "RTX 3080 12GB", "V100 32GB", "2 x RTX 3090", "H100 H200", "", "24"])
def test_a_gpu_that_is_like_another_is_not_taken_for_it(words):
    """Guards against a plan for 10 GB when 12 were meant, or for one card of two."""
    assert known_gpu(words) is None


def test_a_typical_gpu_has_the_memory():
    assert typical_gpu(24).memory_gb == 24
    assert typical_gpu(13).memory_gb == 15.6
    assert typical_gpu(10_000) == max(GPUS, key=lambda gpu: gpu.memory_gb)


def test_rates_of_other_gpus_are_scaled():
    assert rates_of(H200) == Rates(copy_bytes=55e9)
    slow = rates_of(typical_gpu(8))
    assert slow.product_flops < Rates().product_flops / 10
    assert slow.seconds_per_byte > Rates().seconds_per_byte * 10
    assert slow.seconds_per_launch == Rates().seconds_per_launch  # the processor is another matter
