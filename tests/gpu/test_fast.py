"""The fast path on the chip: kernels, products and attention in bfloat16, held against float64. Skips, and says so, without a GPU.

What is asked is to be at most twice as far from float64 as plain PyTorch in the same precision is; both begin with numbers that bfloat16 holds exactly.
Distances are of whole tensors: the length of the difference in parts of the length of what is right.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

import toy_kernels as definition
from halfbyte.fast.attention import Documents, kernel_for
from halfbyte.fast.decoder import FastDecoder, flatten
from halfbyte.fast.recorded import Recorder
from tolerances import FAST_REPEATED
from toy_fast import adapted, batch_of, by_autograd, by_hand, four_bit, made, redraw, trained, with_adapter
from toy_kernels import apart, between, drawn, empty, gradients

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]

BF16, ROWS, EPS, CUDA = torch.bfloat16, 64, 1e-5, "cuda"


def distance(ours, truth):
    ours, truth = ours.double(), truth.double()
    return float((ours - truth).norm() / truth.norm())


def holds(ours, plain, truth):
    """Of kernels: what lies between rows is as it was."""
    if ours.ndim == 2 and ours.stride(0) > ours.shape[1]:
        assert bool((between(ours) == definition.UNTOUCHED).all())
    assert 0 < distance(ours, truth) <= 2 * distance(plain, truth)


def on_gpu(*shape, **how):
    return drawn(*shape, device=CUDA, **how)


def both(compute, *tensors):
    """(truth and gradients in float64, the same in bfloat16): `compute` gives a result of leaves; the last of `tensors` is the result's gradient."""
    found = []
    for dtype in (torch.float64, BF16):
        *given, d_out = (tensor.detach().clone().to(dtype) for tensor in tensors)
        leaves = [one.requires_grad_() for one in given]
        result = compute(*leaves)
        found.append((result.detach(), gradients(result, d_out, leaves[0])[0]))
    return found


@pytest.mark.parametrize("width", [4096, 14336, 2050])
def test_norm(width):
    from halfbyte.kernels import gpu

    x, weight, d_out, carried = on_gpu(ROWS, width), on_gpu(width, seed=1), on_gpu(ROWS, width, seed=2), on_gpu(ROWS, width, seed=3)
    (truth, d_truth), (plain, d_plain) = both(lambda x, w: definition.rms_norm(x, w, EPS), x, weight, d_out)
    out, d_x, again = (empty(ROWS, width, BF16, 64, CUDA) for _ in range(3))
    gpu.rms_norm(apart(x, BF16, 64), weight.to(BF16), EPS, out)
    holds(out, plain, truth)
    gpu.rms_norm_backward(d_out.to(BF16), x.to(BF16), weight.to(BF16), EPS, apart(carried, BF16, 64), d_x, again)
    holds(d_x, d_plain + carried.to(BF16), d_truth + carried)
    holds(again, plain, truth)
    total = x.to(BF16)
    gpu.add_rms_norm(total, carried.to(BF16), weight.to(BF16), EPS, total, out)
    assert torch.equal(total, x.to(BF16) + carried.to(BF16))
    holds(out, definition.rms_norm(total, weight.to(BF16), EPS), definition.rms_norm(total.double(), weight, EPS))


@pytest.mark.parametrize("width", [4544, 4096, 2050])
def test_norm_around_the_mean(width):
    from halfbyte.kernels import gpu

    x, weight, bias = on_gpu(ROWS, width) + 2, on_gpu(width, seed=1), on_gpu(width, seed=4)
    d_out, carried = on_gpu(ROWS, width, seed=2), on_gpu(ROWS, width, seed=3)
    (truth, d_truth), (plain, d_plain) = both(lambda x, w, b: definition.layer_norm(x, w, b, EPS), x.to(BF16), weight, bias, d_out)
    out, d_x, again = (empty(ROWS, width, BF16, 64, CUDA) for _ in range(3))
    gpu.layer_norm(apart(x, BF16, 64), weight.to(BF16), bias.to(BF16), EPS, out)
    holds(out, plain, truth)
    gpu.layer_norm_backward(d_out.to(BF16), x.to(BF16), weight.to(BF16), bias.to(BF16), EPS, apart(carried, BF16, 64), d_x, again)
    holds(d_x, d_plain + carried.to(BF16), d_truth + carried)
    holds(again, plain, truth)


def plain_rotate(x, cos, sin, head_dim, weight=None):
    """As transformers does it, in x's type."""
    heads = x.unflatten(-1, (-1, head_dim))
    if weight is not None:
        heads = definition.rms_norm(heads, weight, EPS)
    first, second = heads.chunk(2, -1)
    c, s = (torch.cat((one, one), -1)[:, None].to(x.dtype) for one in (cos, sin))
    return (heads * c + torch.cat((-second, first), -1) * s).flatten(-2)


@pytest.mark.parametrize(("heads", "head_dim"), [(32, 128), (8, 128), (40, 64), (25, 80)])
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
def test_positions(heads, head_dim, normed):
    from halfbyte.kernels import gpu

    width = heads * head_dim
    x, d_out, angle = on_gpu(ROWS, width), on_gpu(ROWS, width, seed=1), on_gpu(ROWS, head_dim // 2, seed=2, spread=3)
    cos, sin, weight = angle.cos(), angle.sin(), on_gpu(head_dim, seed=4) if normed else None
    given = (weight.to(BF16), EPS) if normed else ()

    def compute(x, *weight):
        return plain_rotate(x, cos, sin, head_dim, *weight)

    (truth, d_truth), (plain, d_plain) = both(compute, x, *([weight] if normed else []), d_out)
    out, d_x = (empty(ROWS, width, BF16, 64, CUDA) for _ in range(2))
    tables = cos.float(), sin.float(), head_dim
    gpu.rotate(apart(x, BF16, 64), *tables, out, *given)
    holds(out, plain, truth)
    gpu.rotate_backward(d_out.to(BF16), *tables, d_x, *((x.to(BF16), *given) if normed else ()))
    holds(d_x, d_plain, d_truth)


@pytest.mark.parametrize("width", [14336, 4096, 2049])
def test_gates(width):
    from halfbyte.kernels import gpu

    x, d_out = on_gpu(ROWS, 2 * width, spread=2.0), on_gpu(ROWS, width, seed=1)
    (truth, d_truth), _ = both(definition.swiglu, x, d_out)
    _, (plain, d_plain) = both(lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1], x, d_out)
    gate_up, inner, out = apart(x, BF16, 64), apart(d_out, BF16, 64), empty(ROWS, width, BF16, 64, CUDA)
    gpu.swiglu(gate_up, out)
    holds(out, plain, truth)
    gpu.swiglu_backward(gate_up, inner)
    holds(gate_up, d_plain, d_truth)
    holds(inner, plain, truth)


@pytest.mark.parametrize("width", [18176, 4096, 2049])
def test_an_activation_without_a_gate(width):
    from halfbyte.kernels import gpu

    x, d_out = on_gpu(ROWS, width, spread=2.0), on_gpu(ROWS, width, seed=1)
    (truth, d_truth), (plain, d_plain) = both(F.gelu, x, d_out)
    hidden, inner, out = apart(x, BF16, 64), apart(d_out, BF16, 64), empty(ROWS, width, BF16, 64, CUDA)
    gpu.gelu(hidden, out)
    holds(out, plain, truth)
    gpu.gelu_backward(hidden, inner)
    holds(hidden, d_plain, d_truth)
    holds(inner, plain, truth)


@pytest.mark.parametrize("width", [32000, 32001, 151936])
def test_loss(width):
    from halfbyte.kernels import gpu

    logits = on_gpu(ROWS, width, spread=4.0)
    targets = torch.arange(ROWS, device=CUDA) * 7919 % width
    targets[::3] = -1
    scale = torch.tensor(2.0**-7, device=CUDA)
    (truth, d_truth), (plain, d_plain) = both(lambda x: definition.cross_entropy(x, targets), logits, scale.double().expand(ROWS))
    losses, given = torch.empty(ROWS, device=CUDA), logits.to(BF16)
    gpu.cross_entropy(given, targets, scale, losses)
    holds(losses, plain, truth)
    holds(given, d_plain, d_truth)
    assert not given[::3].any()


@pytest.mark.parametrize(("rows", "width"), [(4096, 4096), (1024, 4096), (512, 14336), (24, 192), (1, 64), (7, 4160)])
@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
@pytest.mark.parametrize("rank", [0, 3, 16])
def test_weights_out_of_4_bits_are_those_of_bitsandbytes_to_the_bit(rows, width, nested, rank):
    from bitsandbytes import functional

    from halfbyte.kernels import gpu
    from halfbyte.kernels.reference import Beside

    codes, state = functional.quantize_4bit(on_gpu(rows, width).to(BF16), quant_type="nf4", compress_statistics=nested)
    outer = (state.state2.absmax, state.state2.code, state.offset, state.state2.blocksize) if nested else None
    out, beside = empty(rows, width, BF16, 64, CUDA), None
    if rank:
        a, b = on_gpu(rank, width, seed=1).float() / 3, on_gpu(rows, rank, seed=2).float() / 3
        beside = Beside(a, b, empty(rank, width, BF16, 64, CUDA), empty(rows, rank, BF16, 64, CUDA), 1.75)
    gpu.dequantise_nf4(codes, state.absmax, state.code, out, outer, beside)
    assert torch.equal(out, functional.dequantize_4bit(codes, state))
    assert bool((between(out) == definition.UNTOUCHED).all())
    if beside is not None:
        for written, expected in ((beside.below, beside.a), (beside.right, beside.b * 1.75)):
            assert torch.equal(written, expected.to(BF16))
            assert bool((between(written) == definition.UNTOUCHED).all())


def test_rows_that_lie_further_apart_than_32_bits_count():
    """The third row begins at 2**31 numbers, 4.3 GB: an offset of 32 bits would be negative there. (The interpreter on a CPU does not wrap round.)"""
    from halfbyte.kernels import gpu

    stride, width = 2**30, 64
    memory = torch.empty(2 * stride + 4096, dtype=BF16, device=CUDA)
    taken = iter(range(0, 4096, 256))

    def far(x):
        there = memory.as_strided(x.shape, (stride, 1), next(taken))
        there.copy_(x)
        return there

    x, y, weight = on_gpu(3, width), on_gpu(3, width, seed=1), on_gpu(width, seed=2).to(BF16)
    cos, sin = on_gpu(3, 16, seed=4).float(), on_gpu(3, 16, seed=5).float()
    found = []
    for lay in (lambda one: one.to(BF16), far):
        given, other, total, out = lay(x), lay(y), lay(x), lay(x)
        gpu.add_rms_norm(given, other, weight, EPS, total, out)
        results = [total.clone(), out.clone()]
        gpu.rms_norm_backward(given, other, weight, EPS, given, out, total)
        results += [out.clone(), total.clone()]
        for turn in (gpu.rotate, gpu.rotate_backward):
            turn(given, cos, sin, 32, out)
            results.append(out.clone())
        gpu.layer_norm(given, weight, weight, EPS, out)
        results.append(out.clone())
        gpu.layer_norm_backward(given, other, weight, weight, EPS, given, out, total)
        results += [out.clone(), total.clone()]
        hidden = lay(y)
        gpu.gelu(hidden, out)
        results.append(out.clone())
        gpu.gelu_backward(hidden, out)
        results += [hidden.clone(), out.clone()]
        inner = lay(x[:, :32])
        gpu.swiglu(given, inner)
        results.append(inner.clone())
        gpu.swiglu_backward(given, inner)
        results += [given.clone(), inner.clone()]
        losses = torch.empty(3, device=CUDA)
        gpu.cross_entropy(other, torch.tensor([5, 6, 7], device=CUDA), torch.tensor(1.0, device=CUDA), losses)
        found.append([*results, other.clone(), losses])
    assert all(torch.equal(near, away) for near, away in zip(*found, strict=True))


# Whole steps.

WIDE = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
DENSE, PADDED = batch_of([[128]] * 4), batch_of([[128], [77], [5]])
PACKED = batch_of([[60, 1, 67], [100, 28], [33]], packed=True)


def in_two_types(kind, **changes):
    """The same model in float64, and with a bfloat16 base and a float32 adapter; both on the GPU."""
    model = adapted(kind, **{**WIDE, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.float() if parameter.requires_grad else parameter.bfloat16())
    half = copy.deepcopy(model)
    for parameter in half.parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else BF16)
    return model.to(CUDA), half.to(CUDA)


def worst(gradients, truth):
    return max(distance(gradients[name], one) for name, one in truth.items())


def whole(gradients, other):
    """The distance of all matrices together."""
    return distance(*(torch.cat([one[name].flatten() for name in sorted(one)]) for one in (gradients, other)))


@pytest.mark.parametrize(
    ("kind", "changes", "batch", "kernel"),
    [
        ("llama", {}, DENSE, "cudnn"),
        ("mistral", {"head_dim": 128}, DENSE, "cudnn"),
        ("llama", {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 256}, DENSE, "flash"),
        ("qwen2", {}, PADDED, "flash"),
        ("qwen3", {"head_dim": 80, "num_attention_heads": 8}, PACKED, "flash"),
        ("qwen3", {"head_dim": 128}, DENSE, "cudnn"),
        ("mistral", {"sliding_window": 32}, DENSE, "flash"),
        ("mistral", {"sliding_window": 32}, PACKED, "flash"),
        ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}, PACKED, "flash"),
        ("falcon", {}, DENSE, "cudnn"),
        ("falcon", {"hidden_size": 320, "num_attention_heads": 5, "ffn_hidden_size": 1280}, DENSE, "cudnn"),
        ("falcon", {"hidden_size": 320, "num_attention_heads": 5, "tie_word_embeddings": False}, PACKED, "flash"),
        ("falcon", {}, PADDED, "flash"),
    ],
)
@pytest.mark.parametrize("keep", ["all", "thin", "input"])
def test_gradients_are_at_most_twice_as_far_from_the_truth(kind, changes, batch, kernel, keep):
    model, half = in_two_types(kind, **changes)
    decoder = FastDecoder(half, BF16)
    layer = decoder.parts.layers[0]
    taken = kernel_for(Documents.of(flatten(batch)[4], decoder.device), layer.window, layer.head_dim, decoder.device)
    assert taken == (kernel if torch.cuda.get_device_capability() == (9, 0) else "flash")
    loss, truth = by_autograd(model, [batch], 1 / batch.supervised)
    plain_loss, plain = by_autograd(half, [batch], 1 / batch.supervised, BF16)
    ours_loss, ours = by_hand(half, [batch], 1 / batch.supervised, keep=[keep] * 3)
    assert abs(ours_loss - loss) <= 2 * abs(plain_loss - loss) + 1e-3 * loss
    assert 0 < whole(ours, truth) <= 2 * whole(plain, truth)
    assert worst(ours, truth) <= 2 * worst(plain, truth)


@pytest.mark.parametrize("kind", ["llama", "falcon"])
def test_weights_in_4_bits(kind):
    """Against autograd with the weights that bitsandbytes makes of the same bytes, in float64."""
    from bitsandbytes import functional

    half = four_bit(kind, dtype=BF16, device=CUDA, **WIDE)
    model = made(kind, BF16, WIDE).double().to(CUDA)
    for name, module in model.base_model.named_modules():
        if isinstance(module, torch.nn.Linear):
            weight = half.get_base_model().base_model.get_submodule(name).base_layer.weight
            module.weight.data = functional.dequantize_4bit(weight.data, weight.quant_state).double()
    model = with_adapter(model).double()
    _, truth = by_autograd(model, [PACKED], 0.01)
    _, plain = by_autograd(half, [PACKED], 0.01, BF16)
    _, ours = by_hand(half, [PACKED], 0.01, keep=["all", "thin", "attention"], resident=(1,))
    assert 0 < whole(ours, truth) <= 2 * whole(plain, truth)


@pytest.mark.parametrize("batch", [DENSE, PACKED], ids=["dense", "packed"])
@pytest.mark.parametrize(
    "how",
    [
        {"parked": (0, 1, 2)},
        {"resident": (0, 1, 2)},
        {"resident": (1,), "tight": True, "parked": (0,)},
        {"keep": ["thin", "attention", "input"], "tight": True},
    ],
    ids=["parked", "resident", "all three", "kept in three ways"],
)
@pytest.mark.parametrize("kind", ["mistral", "falcon"])
def test_where_things_wait_changes_nothing(kind, batch, how):
    _, half = in_two_types(kind)
    loss, expected = by_hand(half, [batch, batch], 0.01)
    again, ours = by_hand(half, [batch, batch], 0.01, **how)
    assert again == pytest.approx(loss, rel=FAST_REPEATED)
    assert whole(ours, expected) < FAST_REPEATED


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("how", [{}, {"parked": (0, 1), "keep": ["input", "all", "thin"], "tight": True}, {"resident": (0, 2)}], ids=["", "parked", "resident"])
@pytest.mark.parametrize(("kind", "changes"), [("qwen3", {"head_dim": 64}), ("falcon", {})])
def test_recorded_steps_are_the_steps(kind, changes, packed, how):
    """Contents and adapters change from step to step, gradients are dropped or added to, and longer rows come between."""
    _, half = in_two_types(kind, **changes)
    decoder, eager = FastDecoder(half, BF16, record=True, **how), FastDecoder(half, BF16, **how)
    assert isinstance(decoder.recorder, Recorder)
    shape, longer = ([[60, 1, 67], [100, 28]], [[128, 60], [90, 128]]) if packed else ([[128], [128]], [[192], [192]])
    for step, rows in enumerate([shape, shape, shape, longer, longer, shape, longer, shape]):
        redraw(half, step)
        batches = [batch_of(rows, packed=packed, seed=step), batch_of(rows, packed=packed, seed=step + 50)][: 1 + step % 2]
        found = []
        for one in (eager, decoder):
            half.zero_grad()
            loss = sum(float(one.accumulate(batch, 1 / batch.supervised)) for batch in batches)
            found.append((loss, {name: parameter.grad.clone() for name, parameter in trained(half).items()}))
            junk = [torch.full((size,), 9, dtype=torch.int32, device=CUDA) for size in (3, 5, 6, 9, 4096)]  # memory that was let go of is taken again
            del junk
        (loss, expected), (ours_loss, ours) = found
        assert ours_loss == pytest.approx(loss, rel=FAST_REPEATED)
        assert whole(ours, expected) < FAST_REPEATED
    assert len(decoder.recorder._recordings) >= 2


def test_a_model_on_a_gpu_is_refused_in_another_type_than_bfloat16():
    from halfbyte.fast.adopt import Unfit, adopt

    model, half = in_two_types("llama")
    assert adopt(half, BF16).dtype == BF16
    with pytest.raises(Unfit, match="on a GPU they compute in bfloat16, not in float64"):
        adopt(model, torch.float64)
    half.get_base_model().model.layers[1].to("cpu")
    with pytest.raises(Unfit, match="the model lies on cpu and cuda"):
        adopt(half, BF16)
