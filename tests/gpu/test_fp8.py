"""Products in 8 bits on the chip: kernels to the bit of the reference, the product beside float32, and a step beside bfloat16's.

Skips where no GPU multiplies 8-bit numbers.
"""

import pytest
import torch

from halfbyte.fast.decoder import FastDecoder
from halfbyte.kernels import fp8_reference
from halfbyte.kernels.fp8_reference import E4M3
from tolerances import FP8_GRADIENT
from toy_fast import adapted, batch_of, by_hand, four_bit, redraw, trained
from toy_kernels import apart, drawn

NEW_ENOUGH = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not NEW_ENOUGH, reason="no GPU here that multiplies 8-bit numbers")]

BF16, CUDA = torch.bfloat16, "cuda"
SEVERAL = 1e-5
"""Of numbers that lie between two 8-bit ones, a last digit of float32 decides seldom."""


def bytes_of(rows, width):
    return torch.full((rows, width), 0x7F, dtype=torch.uint8, device=CUDA).view(E4M3)


def differing(ours, theirs):
    return float((ours.view(torch.uint8) != theirs.view(torch.uint8)).float().mean())


def both(compute):
    """By the kernels, and by the reference on the GPU."""
    from halfbyte.kernels import fp8

    return compute(fp8), compute(fp8_reference)


@pytest.mark.parametrize(("rows", "width", "rank", "extra"), [(333, 4096, 48, 256), (33, 14336, 16, 128), (17, 28672, 32, 128), (5, 4096, 0, 0)])
def test_rows(rows, width, rank, extra):
    x, low = apart(drawn(rows, width, device=CUDA), BF16, 8), drawn(rows, 64, seed=1, spread=3.0, device=CUDA).to(BF16)
    factor, weight_scale = torch.tensor(0.37, device=CUDA), torch.tensor(0.002, device=CUDA)

    def compute(ops):
        out, scales = bytes_of(rows, width + extra), torch.empty(rows, 1, device=CUDA)
        ops.quantise_rows(x, low, rank, factor, weight_scale, out, scales)
        return out, scales

    (out, scales), (out2, scales2) = both(compute)
    assert differing(out, out2) < SEVERAL
    assert torch.allclose(scales, scales2, rtol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_weights_out_of_4_bits(nested, transposed):
    from bitsandbytes import functional

    rows, width = 1100, 4096
    codes, state = functional.quantize_4bit(drawn(rows, width, spread=0.02, device=CUDA).to(BF16), quant_type="nf4", compress_statistics=nested)
    outer = (state.state2.absmax, state.state2.code, state.offset, state.state2.blocksize) if nested else None
    scale = fp8_reference.absmax_of(state.absmax, outer).max() / 448

    def compute(ops):
        out = bytes_of(*((width, rows + 128) if transposed else (rows, width + 128)))
        ops.dequantise_nf4(codes, state.absmax, state.code, out[:, :rows] if transposed else out[:, :width], scale, outer, transposed)
        return out

    assert differing(*both(compute)) < SEVERAL


@pytest.mark.parametrize("back", [False, True])
def test_adapters(back):
    a, b, unit = drawn(16, 4096, device=CUDA).float(), drawn(6144, 16, seed=1, device=CUDA).float(), torch.tensor(0.5, device=CUDA)

    def compute(ops):
        pairs, thin, scales = (a.T, b, (1.0, 1.5)) if back else (b, a, (1.5, 1.0))
        out, out_thin = bytes_of(len(pairs), 256), torch.zeros(thin.shape, dtype=BF16, device=CUDA)
        ops.write_factors(pairs, scales[0], unit, out[:, 16:], 48, thin, scales[1], out_thin)
        return out, out_thin

    ours, theirs = both(compute)
    assert torch.equal(ours[0].view(torch.uint8), theirs[0].view(torch.uint8))
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(512, 4224, 6144), (77, 28800, 4096), (1, 256, 64)])
def test_product(tokens, inputs, outputs):
    """Beside the same 8-bit numbers in float32: sums in the tensor cores' own precision, rounded to bfloat16."""
    x, weight = (drawn(rows, inputs, seed=rows, device=CUDA).to(E4M3) for rows in (tokens, outputs))
    scales = drawn(tokens, 1, seed=9, device=CUDA).abs().float()
    ours, theirs = both(lambda ops: _product(ops, x, scales, weight))
    assert float((ours.double() - theirs.double()).norm() / theirs.double().norm()) < 0.01


def _product(ops, x, scales, weight):
    out = torch.empty(len(x), len(weight), dtype=BF16, device=CUDA)
    ops.product(x, scales, weight, out)
    return out


@pytest.mark.parametrize("how", [{}, {"keep": ["input", "thin"]}, {"tight": True}, {"resident": (0,)}], ids=["all", "less", "tight", "resident"])
def test_a_step_is_near_the_one_without(how):
    model = four_bit("mistral", dtype=BF16, device=CUDA, hidden_size=256, intermediate_size=512)
    batches = [batch_of([[64], [64]]), batch_of([[30, 18], [9]], packed=True)]
    loss, expected = by_hand(model, batches, 0.1)
    found, gradients = by_hand(model, batches, 0.1, fp8=True, **how)
    assert found == pytest.approx(loss, rel=0.02)
    ours, theirs = (torch.cat([one[name].flatten() for name in expected]).double() for one in (gradients, expected))
    assert 0.001 < float((ours - theirs).norm() / theirs.norm()) < FP8_GRADIENT


def test_a_recorded_step_sees_other_adapters():
    """Their units too, which are found on the GPU: the recording must read them anew."""
    model = adapted("llama", dtype=torch.float32, hidden_size=256, intermediate_size=512).to(CUDA)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(BF16)
    batch = batch_of([[64], [64]])
    recorded, plain = (FastDecoder(model, BF16, fp8=True, record=record) for record in (True, False))
    for seed, size in enumerate((1.0, 1.0, 1.0, 50.0, 0.01)):
        redraw(model, seed)
        for name, parameter in trained(model).items():
            if "lora_B" in name:
                parameter.data.mul_(size)
        found = []
        for decoder in (recorded, plain):
            loss = decoder.accumulate(batch, 0.1)
            found.append((float(loss), torch.cat([parameter.grad.flatten() for parameter in trained(model).values()])))
            model.zero_grad()
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-3)
        assert float((found[0][1] - found[1][1]).norm() / found[1][1].norm()) < 0.01
