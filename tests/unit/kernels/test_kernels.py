"""Every function of kernels/reference.py in float64, and of kernels/gpu.py in Triton's interpreter, against autograd through an independent definition.

The interpreter runs a kernel on a CPU, program by program, if TRITON_INTERPRET is set before triton is imported; so the last test here runs this file once
more in a process of its own, where `ops` is gpu.py. It knows float32 only: bfloat16 is for tests/gpu/test_fast.py.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import toy_kernels as definition
from halfbyte.kernels.reference import Beside
from tolerances import KERNEL_EXACT, KERNEL_FLOAT32
from toy_kernels import UNTOUCHED, apart, drawn, empty, error, gradients

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPE, TOLERANCE = (torch.float32, KERNEL_FLOAT32) if INTERPRETED else (torch.float64, KERNEL_EXACT)
SHAPES = [(1, 64), (5, 96), (3, 1), (1, 1), (2, 2050), (4, 128)]
EPS = 1e-5


@pytest.fixture(scope="module")
def ops():
    if INTERPRETED:
        from halfbyte.kernels import gpu

        return gpu
    from halfbyte.kernels import reference

    return reference


def leaf(x):
    return x.clone().requires_grad_()


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_norm(ops, rows, width):
    x, weight, out = drawn(rows, width), drawn(width, seed=1), empty(rows, width, DTYPE)
    ops.rms_norm(apart(x, DTYPE, 3), weight.to(DTYPE), EPS, out)
    assert error(out, definition.rms_norm(x, weight, EPS)) < TOLERANCE


@pytest.mark.parametrize(("rows", "width"), SHAPES)
@pytest.mark.parametrize("onto", ["neither", "x", "y"])
def test_sum_and_norm(ops, rows, width, onto):
    """The sum may be written over one of the two."""
    x, y, weight, out = drawn(rows, width), drawn(rows, width, seed=2), drawn(width, seed=1), empty(rows, width, DTYPE)
    given = {"x": apart(x, DTYPE), "y": apart(y, DTYPE, 2)}
    total = given.get(onto, empty(rows, width, DTYPE, 9))
    ops.add_rms_norm(given["x"], given["y"], weight.to(DTYPE), EPS, total, out)
    assert error(total, x + y) < TOLERANCE
    assert error(out, definition.rms_norm(x + y, weight, EPS)) < TOLERANCE


@pytest.mark.parametrize(("rows", "width"), [shape for shape in SHAPES if shape[1] > 1])
@pytest.mark.parametrize("onto", ["neither", "carried", "d_out"])
def test_gradient_of_the_norm(ops, rows, width, onto):
    x, weight, d_out, carried = leaf(drawn(rows, width)), drawn(width, seed=1), drawn(rows, width, seed=2), drawn(rows, width, seed=3)
    result = definition.rms_norm(x, weight, EPS)
    truth = carried + gradients(result, d_out, x)[0]
    given = {"carried": apart(carried, DTYPE, 2), "d_out": apart(d_out, DTYPE, 1)}
    d_x, again = given.get(onto, empty(rows, width, DTYPE)), empty(rows, width, DTYPE, 8)
    ops.rms_norm_backward(given["d_out"], apart(x.detach(), DTYPE), weight.to(DTYPE), EPS, given["carried"], d_x, again)
    assert error(d_x, truth) < TOLERANCE
    assert error(again, result.detach()) < TOLERANCE


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_norm_around_the_mean(ops, rows, width):
    """Far from zero: the variance is that around the mean."""
    x, weight, bias, out = drawn(rows, width) + 2, drawn(width, seed=1), drawn(width, seed=4), empty(rows, width, DTYPE)
    ops.layer_norm(apart(x, DTYPE, 3), weight.to(DTYPE), bias.to(DTYPE), EPS, out)
    assert error(out, definition.layer_norm(x, weight, bias, EPS)) < TOLERANCE


@pytest.mark.parametrize(("rows", "width"), [shape for shape in SHAPES if shape[1] > 1])
@pytest.mark.parametrize("onto", ["neither", "carried", "d_out"])
def test_gradient_of_the_norm_around_the_mean(ops, rows, width, onto):
    x, weight, bias = leaf(drawn(rows, width) + 2), drawn(width, seed=1), drawn(width, seed=4)
    d_out, carried = drawn(rows, width, seed=2), drawn(rows, width, seed=3)
    result = definition.layer_norm(x, weight, bias, EPS)
    truth = carried + gradients(result, d_out, x)[0]
    given = {"carried": apart(carried, DTYPE, 2), "d_out": apart(d_out, DTYPE, 1)}
    d_x, again = given.get(onto, empty(rows, width, DTYPE)), empty(rows, width, DTYPE, 8)
    ops.layer_norm_backward(given["d_out"], apart(x.detach(), DTYPE), weight.to(DTYPE), bias.to(DTYPE), EPS, given["carried"], d_x, again)
    assert error(d_x, truth) < TOLERANCE
    assert error(again, result.detach()) < TOLERANCE


@pytest.mark.parametrize(("rows", "heads", "head_dim"), [(1, 1, 8), (5, 3, 32), (2, 7, 80), (3, 1, 2), (2, 5, 24)])
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
def test_positions_and_their_gradient(ops, rows, heads, head_dim, normed):
    """A scaled rotation, as yarn has it, is none of the orthogonal ones."""
    width = heads * head_dim
    x, d_out = leaf(drawn(rows, width)), drawn(rows, width, seed=1)
    angle = drawn(rows, head_dim // 2, seed=2, spread=3)
    cos, sin = (1.5 * angle.cos()).float().double(), (1.5 * angle.sin()).float().double()
    norm = (drawn(head_dim, seed=4), 1e-6) if normed else ()
    rounded = (norm[0].to(DTYPE), 1e-6) if norm else ()
    result = definition.rotate(x, cos, sin, head_dim, *norm)
    out = empty(rows, width, DTYPE)
    tables = cos.to(DTYPE), sin.to(DTYPE), head_dim
    ops.rotate(apart(x.detach(), DTYPE, 3), *tables, out, *rounded)
    assert error(out, result.detach()) < TOLERANCE
    d_x = empty(rows, width, DTYPE, 1)
    ops.rotate_backward(apart(d_out, DTYPE), *tables, d_x, *((apart(x.detach(), DTYPE, 3), *rounded) if norm else ()))
    assert error(d_x, gradients(result, d_out, x)[0]) < TOLERANCE
    in_place = apart(x.detach(), DTYPE)
    ops.rotate(in_place, *tables, in_place, *rounded)
    assert error(in_place, result.detach()) < TOLERANCE


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (2, 144), (2, 2048), (3, 2049)])
@pytest.mark.parametrize("spread", [1.0, 30.0], ids=["", "large"])
def test_gates_and_their_gradient(ops, rows, width, spread):
    x, d_out = leaf(drawn(rows, 2 * width, spread=spread)), drawn(rows, width, seed=1)
    result = definition.swiglu(x)
    gate_up, out, given = apart(x.detach(), DTYPE), empty(rows, width, DTYPE), apart(d_out, DTYPE, 2)
    ops.swiglu(gate_up, out)
    assert error(out, result.detach()) < TOLERANCE
    ops.swiglu_backward(gate_up, given)
    assert error(gate_up, gradients(result, d_out, x)[0]) < TOLERANCE
    assert error(given, result.detach()) < TOLERANCE


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (2, 144), (2, 2048), (3, 2049)])
@pytest.mark.parametrize("spread", [1.0, 30.0], ids=["", "large"])
def test_an_activation_without_a_gate_and_its_gradient(ops, rows, width, spread):
    x, d_out = leaf(drawn(rows, width, spread=spread)), drawn(rows, width, seed=1)
    result = definition.gelu(x)
    given_x, out, given = apart(x.detach(), DTYPE), empty(rows, width, DTYPE), apart(d_out, DTYPE, 2)
    ops.gelu(given_x, out)
    assert error(out, result.detach()) < TOLERANCE
    ops.gelu_backward(given_x, given)
    assert error(given_x, gradients(result, d_out, x)[0]) < TOLERANCE
    assert error(given, result.detach()) < TOLERANCE


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (4, 2), (5, 1000), (3, 8192), (3, 8193)])
@pytest.mark.parametrize("none", ["some", "all", "no"])
@pytest.mark.parametrize("spread", [1.0, 300.0], ids=["", "large"])
def test_loss_and_its_gradient(ops, rows, width, none, spread):
    logits = leaf(drawn(rows, width, spread=spread))
    targets = torch.arange(rows) * 7919 % width
    targets[-1] = width - 1
    if none != "no":
        targets[slice(None) if none == "all" else slice(1, None, 2)] = -1
    losses = definition.cross_entropy(logits, targets)
    scale = torch.tensor(0.25, dtype=DTYPE)
    found, given = torch.full((rows,), UNTOUCHED, dtype=DTYPE), apart(logits.detach(), DTYPE)
    ops.cross_entropy(given, targets, scale, found)
    assert error(found, losses.detach()) < TOLERANCE
    assert error(given, gradients(losses, torch.full((rows,), 0.25, dtype=torch.float64), logits)[0]) < TOLERANCE


def quantised(rows, width, nested):
    """Codes, state and what bitsandbytes makes of them."""
    from bitsandbytes import functional

    codes, state = functional.quantize_4bit(drawn(rows, width).float(), quant_type="nf4", compress_statistics=nested)
    return codes, state, functional.dequantize_4bit(codes, state)


def outer(state):
    return (state.state2.absmax, state.state2.code, state.offset, state.state2.blocksize) if state.nested else None


def beside(rank, rows, width, scale=1.75):
    """An adapter, and where it goes: columns and rows of larger tensors."""
    a, b = drawn(rank, width, seed=5).float(), drawn(rows, rank, seed=6).float()
    return Beside(a, b, empty(rank, width, DTYPE, 64), empty(rows, rank, DTYPE, 64), scale)


@pytest.mark.parametrize(("rows", "width"), [(1, 64), (24, 192), (5, 4160), (2, 2048)])
@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
@pytest.mark.parametrize("rank", [0, 1, 3, 16, 64])
def test_weights_out_of_4_bits_and_their_adapter(ops, rows, width, nested, rank):
    """To the bit what bitsandbytes makes of them in float32, and by the definition in float64. Nested scales have scales of 256: one shape has more."""
    codes, state, expected = quantised(rows, width, nested)
    out, own = empty(rows, width, torch.float32, 64), beside(rank, rows, width) if rank else None
    ops.dequantise_nf4(codes, state.absmax, state.code, out, outer(state), own)
    assert torch.equal(out, expected)
    scales = state.absmax.double()
    if nested:
        steps = torch.arange(len(scales)) // state.state2.blocksize
        scales = state.state2.code.double()[state.absmax.long()] * state.state2.absmax.double()[steps] + state.offset.double()
    halves = torch.stack((codes.flatten() // 16, codes.flatten() % 16), 1).flatten().long()
    assert error(out, (state.code.double()[halves] * scales.repeat_interleave(64)).view(rows, width)) < KERNEL_FLOAT32
    if own is not None:
        assert error(own.below, own.a.double()) == 0
        assert error(own.right, own.b.double() * 1.75) == 0


@pytest.mark.parametrize("rank", [1, 3, 16, 64])
@pytest.mark.parametrize(("rows", "width"), [(1, 64), (30, 192), (2, 4160)])
def test_an_adapter_alone(ops, rows, width, rank):
    own = beside(rank, rows, width)
    ops.write_adapter(own)
    assert error(own.below, own.a.double()) == 0
    assert error(own.right, own.b.double() * 1.75) == 0


@pytest.mark.skipif(INTERPRETED, reason="of the definitions")
def test_16_bit_numbers_are_rounded_once():
    """Computed in float32 from what was given: at most one step of bfloat16 away from float64."""
    from halfbyte.kernels import reference

    x, weight = drawn(5, 96), drawn(96, seed=1)
    out = empty(5, 96, torch.bfloat16)
    reference.rms_norm(apart(x, torch.bfloat16), weight.bfloat16(), EPS, out)
    truth = definition.rms_norm(x, weight, EPS)
    assert float(((out.double() - truth) / truth).abs().max()) <= 2**-8


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_the_kernels_of_the_gpu_in_the_interpreter():
    if find_spec("triton") is None:
        message = "Triton is not installed: its kernels are not interpreted here"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    command = [sys.executable, "-m", "pytest", "-W", "ignore", "-p", "no:cacheprovider", Path(__file__).name]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
