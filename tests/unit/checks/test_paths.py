"""The proof that the fast path is the plain one: holds where it is, fails for each way in which it could be another."""

from dataclasses import replace

import pytest
import torch

from halfbyte.checks.of_paths import OF_PATHS
from halfbyte.checks.preflight import prove
from halfbyte.checks.proof import lead
from halfbyte.checks.trial import Trial, kept
from halfbyte.kernels import fp8_reference
from toy_subjects import make_subject

ON = ["train.fast_path=on", "adapter.dropout=0"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return make_subject(tmp_path_factory.mktemp("packed"), words=[*ON, "data.packing=best_fit"])


def proof(subject):
    with kept(subject.model):
        trial = Trial(subject)
        try:
            return lead(OF_PATHS[0], trial)
        finally:
            trial.put_values_back()


def test_it_holds_and_leaves_no_trace(packed):
    before = {name: tensor.clone() for name, tensor in packed.model.state_dict().items()}
    found = proof(packed)
    assert found.passed, found.told
    assert "as one packed row" in found.told
    assert all(torch.equal(tensor, before[name]) for name, tensor in packed.model.state_dict().items())


def test_it_is_led_where_the_fast_path_is_taken_alone(packed):
    assert "fast path" in {one.name for one in prove(packed)}
    assert "fast path" not in {one.name for one in prove(replace(packed, fast=None))}


def a_document_leaks(batch, fast, scale):
    return fast(replace(batch, positions=None, documents=None), scale)


def another_scale(batch, fast, scale):
    return fast(batch, 1.01 * scale)


def a_label_too_many(batch, fast, scale):
    return fast(replace(batch, labels=batch.ids), scale)


def the_last_row_left_out(batch, fast, scale):
    rows = max(1, len(batch.ids) - 1)
    return fast(replace(batch.part(slice(rows)), lengths=batch.lengths[:rows]), scale)


@pytest.mark.parametrize("fault", [a_document_leaks, another_scale, a_label_too_many, the_last_row_left_out])
def test_it_finds(packed, fault):
    found = proof(replace(packed, fast=lambda batch, scale: fault(batch, packed.fast, scale)))
    assert found.passed is False, found.told
    assert "plain path" in found.told


def test_an_adapter_without_its_gradient_is_found(packed):
    left_out = next(parameter for name, parameter in packed.model.named_parameters() if "k_proj.lora_A" in name)

    def fast(batch, scale):
        loss = packed.fast(batch, scale)
        left_out.grad.zero_()
        return loss

    found = proof(replace(packed, fast=fast))
    assert found.passed is False
    assert "k_proj.lora_A" in found.told


# In FP8: coarse, and still not anything at all


@pytest.fixture(scope="module")
def in_fp8(tmp_path_factory):
    return make_subject(tmp_path_factory.mktemp("fp8"), words=[*ON, "data.packing=best_fit", "train.compute=fp8", "train.precision=bfloat16"])


def test_in_fp8_it_has_its_own_bounds(in_fp8, packed):
    assert in_fp8.fp8
    assert not packed.fp8
    found = proof(in_fp8)
    assert found.passed, found.told
    assert "in FP8" in found.told


@pytest.mark.parametrize("fault", [a_label_too_many, the_last_row_left_out])
def test_in_fp8_it_finds(in_fp8, fault):
    found = proof(replace(in_fp8, fast=lambda batch, scale: fault(batch, in_fp8.fast, scale)))
    assert found.passed is False, found.told


def test_in_fp8_noise_in_the_small_parts_of_an_adapter_is_found(in_fp8, monkeypatch):
    """What a wrong register made of half of them."""
    sound = fp8_reference.write_factors

    def noisy(pairs, scale, unit, out, apart, *others):
        sound(pairs, scale, unit, out, apart, *others)
        half = slice(apart + pairs.shape[1] // 2, apart + pairs.shape[1])
        out[:, half] = (out[:, half].float() + 40 * torch.randn(out[:, half].shape, generator=torch.Generator().manual_seed(0))).to(out.dtype)

    monkeypatch.setattr(fp8_reference, "write_factors", noisy)
    assert proof(in_fp8).passed is False


def test_in_fp8_an_adapter_without_its_gradient_is_found(in_fp8):
    left_out = next(parameter for name, parameter in in_fp8.model.named_parameters() if "k_proj.lora_A" in name)

    def fast(batch, scale):
        loss = in_fp8.fast(batch, scale)
        left_out.grad.zero_()
        return loss

    found = proof(replace(in_fp8, fast=fast))
    assert found.passed is False
    assert "k_proj.lora_A" in found.told
    assert "train.compute" in found.hint


def test_in_fp8_gradients_that_are_all_turned_a_little_are_found(in_fp8):
    """As on a base of many layers that nobody trained."""

    def fast(batch, scale):
        loss = in_fp8.fast(batch, scale)
        generator = torch.Generator().manual_seed(0)
        for parameter in in_fp8.model.parameters():
            if parameter.grad is not None:
                other = torch.randn(parameter.shape, generator=generator)
                parameter.grad += 0.6 * float(parameter.grad.norm() / other.norm()) * other
        return loss

    found = proof(replace(in_fp8, fast=fast))
    assert found.passed is False
