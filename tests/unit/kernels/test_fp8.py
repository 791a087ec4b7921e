"""Numbers in 8 bits: what kernels/fp8_reference.py says of itself, against float64, and kernels/fp8.py in Triton's interpreter, against the reference.

As in test_kernels.py the last test runs this file once more in a process where Triton interprets. The interpreter's own conversion to 8 bits forgets to carry
(31.6 becomes 16), so there PyTorch's is put in its place. The product itself is the GPU's: tests/gpu/test_fp8.py.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from halfbyte.kernels import fp8_reference
from halfbyte.kernels.fp8_reference import E4M3, LARGEST
from toy_kernels import apart, drawn

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
STEP = 2**-4
"""Half the distance of two neighbours of 3 bits, in parts of the smaller."""
PAIR = 2**-8
"""The same of hi + lo."""


@pytest.fixture
def ops(monkeypatch):
    if not INTERPRETED:
        return fp8_reference
    from triton.runtime import interpreter

    from halfbyte.kernels import fp8

    own = interpreter._convert_float

    def convert(data, source, target, rounding):
        if target.is_fp8():
            return torch.from_numpy(data.copy()).to(E4M3).view(torch.uint8).numpy()
        if source.is_fp8():
            return torch.from_numpy(data.copy()).view(E4M3).float().numpy()
        return own(data, source, target, rounding)

    monkeypatch.setattr(interpreter, "_convert_float", convert)
    return fp8


def bytes_of(rows, width, room=3):
    """8-bit numbers to write into, in rows that lie apart, all of them not a number: what is not written is seen."""
    memory = torch.full((rows, width + room), 0x7F, dtype=torch.uint8).view(E4M3)
    return memory[:, :width]


def numbers(x):
    return x.to(torch.float64)


ROWS = [(3, 96, 4, 128), (1, 64, 48, 256), (2, 4096, 16, 128), (2, 64, 0, 0), (2, 17000, 1, 128)]


@pytest.mark.parametrize(("rows", "width", "rank", "extra"), ROWS)
@pytest.mark.parametrize("spread", [1e-3, 3.0, 1e4], ids=["low small", "", "low large"])
def test_rows_with_what_the_adapter_makes_of_them(ops, rows, width, rank, extra, spread):
    """Each number to half a step, but for those that are thousands of times smaller than their row's largest; the pair to 8 bits; zeros behind."""
    x, low = apart(drawn(rows, width), torch.float32, 8), apart(drawn(rows, 64, seed=1, spread=spread), torch.float32)
    factor, weight_scale, scales = torch.tensor(0.5), torch.tensor(0.25), torch.empty(rows, 1)
    out = bytes_of(rows, width + extra)
    ops.quantise_rows(x, low, rank, factor, weight_scale, out, scales)
    unit = scales.double() / 0.25
    found = numbers(out) * unit
    largest = x.double().abs().amax(1, keepdim=True)
    if rank:
        largest = torch.maximum(largest, 0.5 * low[:, :rank].double().abs().amax(1, keepdim=True))
    assert torch.allclose(unit * LARGEST, largest, rtol=1e-6)
    assert bool(((found[:, :width] - x.double()).abs() <= x.double().abs() * STEP + unit * 2**-10).all())
    hi, again, lo, rest = found[:, width:].split([rank, rank, rank, extra - 3 * rank], 1)
    wanted = 0.5 * low[:, :rank].double()
    assert torch.equal(hi, again)
    assert bool(((hi + lo - wanted).abs() <= wanted.abs() * PAIR + unit * 2**-10).all())
    assert not rest.any()


def test_a_row_of_zeros_and_one_that_is_not_finite(ops):
    """Nothing is divided by zero, and what is no number is none afterwards: a loss that is not finite must be seen."""
    x = torch.ones(5, 64)
    x[1], x[2, 5], x[3, 7], x[4] = 0.0, float("nan"), float("inf"), 0.0
    x[4, 3] = 1e-37
    out, scales = bytes_of(5, 64), torch.empty(5, 1)
    ops.quantise_rows(x, torch.zeros(5, 0), 0, torch.tensor(1.0), torch.tensor(1.0), out, scales)
    found = numbers(out) * scales
    assert torch.allclose(found[0], torch.ones(64).double(), rtol=1e-6)
    assert not found[1].any()
    assert bool(found[2, 5].isnan())
    assert not bool(found[3].isfinite().all())
    assert bool(found[4].isfinite().all())


@pytest.mark.parametrize(("rows", "width"), [(1, 64), (24, 192), (130, 320), (5, 4160)])
@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
def test_weights_out_of_4_bits(ops, rows, width, nested, transposed):
    from bitsandbytes import functional

    codes, state = functional.quantize_4bit(drawn(rows, width, spread=0.02).float(), quant_type="nf4", compress_statistics=nested)
    outer = (state.state2.absmax, state.state2.code, state.offset, state.state2.blocksize) if nested else None
    exact = functional.dequantize_4bit(codes, state).double()
    scale = fp8_reference.absmax_of(state.absmax, outer).max() / LARGEST
    out = bytes_of(*((width, rows) if transposed else (rows, width)))
    ops.dequantise_nf4(codes, state.absmax, state.code, out, scale, outer, transposed)
    found = numbers(out.T if transposed else out) * scale.double()
    assert bool(((found - exact).abs() <= exact.abs() * (STEP + 1e-6) + float(scale) * 2**-10).all())


@pytest.mark.parametrize(("rows", "width", "rank", "columns"), [(30, 100, 3, 9), (200, 64, 16, 48), (1, 64, 1, 1)])
@pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
def test_an_adapter_as_pairs_and_in_16_bits(ops, rows, width, rank, columns, back):
    a, b = drawn(rank, width, seed=5).float(), drawn(rows, rank, seed=6).float()
    pairs, thin, scales = (a.T, b, (1.0, 1.5)) if back else (b, a, (1.5, 1.0))
    out, out_thin = bytes_of(len(pairs), 3 * columns), torch.zeros(thin.shape)
    ops.write_factors(pairs, scales[0], torch.tensor(0.5), out, columns, thin, scales[1], out_thin)
    assert torch.equal(out_thin, thin * scales[1])
    hi, lo, again = (numbers(out[:, third * columns : third * columns + rank]) for third in range(3))
    wanted = pairs.double() * scales[0] / 0.5
    assert torch.equal(hi, again)
    assert bool(((hi + lo - wanted).abs() <= wanted.abs() * PAIR + 2**-10).all())
    between = out.view(torch.uint8).unflatten(1, (3, columns))[:, :, rank:]
    assert bool((between == 0x7F).all())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", [3, 1100])
def test_weights_in_16_bits(ops, rows, transposed):
    weight = drawn(rows, 64, spread=0.02).bfloat16()
    out = bytes_of(*((64, rows) if transposed else (rows, 64)))
    ops.write_weight(weight, out, torch.tensor(2.0**-10), transposed)
    found = numbers(out).T if transposed else numbers(out)
    wanted = weight.double() * 2**10
    assert bool(((found - wanted).abs() <= wanted.abs() * STEP + 2**-10).all())


@pytest.mark.skipif(not INTERPRETED, reason="in the other process")
@pytest.mark.parametrize(("rows", "width", "rank", "extra"), ROWS)
def test_to_the_bit_as_the_reference(ops, rows, width, rank, extra):
    x, low = apart(drawn(rows, width), torch.float32, 8), apart(drawn(rows, 64, seed=1), torch.float32)
    found = []
    for one in (fp8_reference, ops):
        out, scales = bytes_of(rows, width + extra), torch.empty(rows, 1)
        one.quantise_rows(x, low, rank, torch.tensor(0.37), torch.tensor(0.002), out, scales)
        found.append((out.view(torch.uint8).clone(), scales))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


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
