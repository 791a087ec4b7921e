"""What PyTorch, bitsandbytes and peft allocate in the operations of a decoder layer, forward and backward, in order.

Each was read off a recording of the allocator on an H200 (benchmarks/record_memory.py), which the tests compare with. Activations are in 16 bits
under autocast, adapters in float32; elements are counted, the size of one stands beside.
"""

from typing import Any

from halfbyte.budget.shadow import BYTE, FLOAT, HALF, Shadow, Tape
from halfbyte.budget.shape import BLOCK, Linear


def same(tape: Tape, saved: list[Shadow], gradient: Shadow, about: Any) -> list[Shadow | None]:
    """Backward of what passes its gradient on: a view, a copy, one operand of a sum."""
    return [tape.view(gradient)]


def _recast(tape: Tape, saved: list[Shadow], gradient: Shadow, itemsize: int) -> list[Shadow | None]:
    return [tape.new(gradient.elements, itemsize)]


def cast(tape: Tape, x: Shadow, itemsize: int) -> Shadow:
    """x itself where it has that type already."""
    if x.itemsize == itemsize:
        return x
    return tape.node(tape.new(x.elements, itemsize), [x], [], _recast, x.itemsize)


def add(tape: Tape, x: Shadow, y: Shadow) -> Shadow:
    """A sum has the wider type of its operands."""
    result = tape.new(x.elements, max(x.itemsize, y.itemsize))
    return tape.node(result, [x, y], [], _both_recast, [one.itemsize if one.node else None for one in (x, y)])


def _both_recast(tape: Tape, saved: list[Shadow], gradient: Shadow, sizes: list[int | None]) -> list[Shadow | None]:
    """None where no gradient is wanted."""
    return [None if size is None else tape.view(gradient) if size == gradient.itemsize else tape.new(gradient.elements, size) for size in sizes]


# Norms


def rms_norm(tape: Tape, x: Shadow, row: int) -> Shadow:
    """x in rows of `row` elements: squared, averaged and scaled in float32, then times the frozen weight."""
    elements, rows = x.elements, x.elements // row
    wide = cast(tape, x, FLOAT)
    wanted = wide.node is not None
    kept = tape.save([wide]) if wanted else None
    square = tape.new(elements, FLOAT)
    mean = tape.new(rows, FLOAT)
    del square
    shifted = tape.new(rows, FLOAT)
    scale = tape.new(rows, FLOAT)
    del shifted
    kept_too = tape.save([scale]) if wanted else None
    scaled = tape.node(tape.new(elements, FLOAT), [wide], _joined(kept, kept_too), _rms_norm_backward, rows)
    del kept, kept_too, wide
    if not wanted:
        del scale
    narrow = cast(tape, scaled, HALF)
    result = tape.node(tape.new(elements, HALF), [narrow], [], _times_weight)
    del narrow, scaled, mean
    return result


def _joined(one: Any, two: Any) -> Any:
    """Two things that tape.save gave, as one."""
    if isinstance(one, tuple):
        return one[0], [*one[1], *two[1]]
    return None if one is None else one + two


def _times_weight(tape: Tape, saved: list[Shadow], gradient: Shadow, about: Any) -> list[Shadow | None]:
    return [tape.new(gradient.elements, gradient.itemsize)]


def _rms_norm_backward(tape: Tape, saved: list[Shadow], gradient: Shadow, rows: int) -> list[Shadow | None]:
    elements = gradient.elements
    for_scale = tape.new(elements, FLOAT)
    direct = tape.new(elements, FLOAT)
    summed = tape.new(rows, FLOAT)
    del for_scale, gradient
    cubed, times = tape.new(rows, FLOAT), tape.new(rows, FLOAT)
    of_mean = tape.new(rows, FLOAT)
    del times, cubed, summed
    spread = tape.new(elements, FLOAT)
    del of_mean
    power = tape.new(elements, FLOAT)
    doubled = tape.new(elements, FLOAT)
    of_square = tape.new(elements, FLOAT)
    del doubled, power, spread
    saved.clear()
    del of_square
    tape.allocator.write(elements * FLOAT)  # added in place
    return [direct]


def layer_norm(tape: Tape, x: Shadow, row: int) -> Shadow:
    """Falcon's; autocast computes it in float32, and its result stays so."""
    weight, bias = tape.new(row, FLOAT), tape.new(row, FLOAT)
    wide = cast(tape, x, FLOAT)
    kept = tape.save([wide, weight, bias]) if wide.node is not None else None
    result = tape.new(x.elements, FLOAT)
    mean, deviation = tape.new(x.elements // row, FLOAT), tape.new(x.elements // row, FLOAT)
    if wide.node is not None:
        kept = _joined(kept, tape.save([mean, deviation]))
    return tape.node(result, [wide], kept, _layer_norm_backward)


def _layer_norm_backward(tape: Tape, saved: list[Shadow], gradient: Shadow, about: Any) -> list[Shadow | None]:
    return [tape.new(gradient.elements, FLOAT)]


# Linear layers


def frozen_linear(tape: Tape, x: Shadow, linear: Linear, quantised: bool, outside: int = HALF) -> Shadow:
    """bitsandbytes: the scales and the weights are dequantised for each product. It computes in 16 bits whatever comes in, and gives that back."""
    narrow = cast(tape, x, HALF)
    rows = x.elements // linear.inputs
    if quantised:
        scales, shifted = tape.new(linear.weights // BLOCK, FLOAT), tape.new(linear.weights // BLOCK, FLOAT)
        weight = tape.new(linear.weights, HALF)
        result = tape.new(rows * linear.outputs, HALF)
        del shifted, scales, weight
    else:
        result = tape.new(rows * linear.outputs, HALF)
    result = tape.node(result, [narrow], [], _frozen_backward, (linear, quantised))
    given_back = cast(tape, result, outside)
    del result
    return given_back


def _frozen_backward(tape: Tape, saved: list[Shadow], gradient: Shadow, about: tuple[Linear, bool]) -> list[Shadow | None]:
    linear, quantised = about
    rows = gradient.elements // linear.outputs
    if quantised:
        scales = tape.new(linear.weights // BLOCK, FLOAT)
        weight = tape.new(linear.weights, HALF)
        del scales
        result = tape.new(rows * linear.inputs, HALF)
        del weight
        return [result]
    return [tape.new(rows * linear.inputs, HALF)]


def adapted_linear(tape: Tape, x: Shadow, linear: Linear, rank: int, dropout: bool, quantised: bool, widened: bool, name: str) -> Shadow:
    """peft's LoRA layer over a frozen one: x W + scale (drop(x) A) B. Without rank the frozen one alone.

    Over a quantised layer peft copies the result first; over the plain ones of an unquantised base it has the input `widened` to the adapter's float32.
    """
    base = frozen_linear(tape, x, linear, quantised, x.itemsize if quantised else HALF)
    if not rank:
        return base
    rows = x.elements // linear.inputs
    if quantised:
        copy = tape.node(tape.new(base.elements, base.itemsize), [base], [], same)
        base = copy
        del copy
    given = cast(tape, x, FLOAT) if widened else x
    dropped = _drop(tape, given) if dropout else given
    a = _parameter(tape, f"{name}.A", rank * linear.inputs)
    narrow = cast(tape, dropped, HALF)
    if dropped is not given:
        del dropped
    down = _product(tape, narrow, a, rows, linear.inputs, rank)
    del narrow
    b = _parameter(tape, f"{name}.B", rank * linear.outputs)
    up = _product(tape, down, b, rows, rank, linear.outputs)
    del down, a, b
    scaled = tape.node(tape.new(up.elements, HALF), [up], [], _times_weight)
    del up
    return add(tape, base, scaled)


def _parameter(tape: Tape, name: str, elements: int) -> Shadow:
    """An adapter's matrix in 16 bits; autocast keeps the copy until its context ends."""
    copy = tape.node(tape.new(elements, HALF), [name], [], _recast, FLOAT)
    if tape.recording:
        tape.casts.append(tape.view(copy))
    return copy


def _product(tape: Tape, x: Shadow, weight: Shadow, rows: int, inputs: int, outputs: int) -> Shadow:
    kept = tape.save([x, weight])
    return tape.node(tape.new(rows * outputs, HALF), [weight, x], kept, _product_backward, (rows, inputs, outputs, x.node is not None))


def _product_backward(tape: Tape, saved: list[Shadow], gradient: Shadow, about: tuple[int, int, int, bool]) -> list[Shadow | None]:
    rows, inputs, outputs, wanted = about
    of_weight = tape.new(inputs * outputs, HALF)
    if not wanted:
        return [of_weight, None]
    flat = tape.new(rows * inputs, HALF)
    of_x = tape.view(flat)
    of_x.base = flat  # rows x tokens again: nothing is added in place to a view
    return [of_weight, of_x]


def _drop(tape: Tape, x: Shadow) -> Shadow:
    mask = tape.new(x.elements, BYTE)
    result = tape.new(x.elements, x.itemsize)
    kept = tape.save([mask])
    return tape.node(result, [x], kept, _drop_backward, x.itemsize)


def _drop_backward(tape: Tape, saved: list[Shadow], gradient: Shadow, itemsize: int) -> list[Shadow | None]:
    return [tape.new(gradient.elements, itemsize)]


# Attention


def rotate(tape: Tape, x: Shadow) -> Shadow:
    """Rotary positions: x cos + rotated(x) sin."""
    size = x.itemsize
    one = tape.new(x.elements, size)
    half = tape.new(x.elements // 2, size)
    turned = tape.new(x.elements, size)
    del half
    two = tape.new(x.elements, size)
    del turned
    result = tape.node(tape.new(x.elements, size), [x], [], _rotate_backward)
    del one, two
    return result


def _rotate_backward(tape: Tape, saved: list[Shadow], gradient: Shadow, about: Any) -> list[Shadow | None]:
    elements, size = gradient.elements, gradient.itemsize
    times = tape.new(elements, size)
    half = tape.new(elements // 2, size)
    one = tape.new(elements, size)
    del half
    two = tape.new(elements, size)
    del times, two
    direct = tape.new(elements, size)
    del gradient, direct
    for _ in range(2):  # both sums are added in place
        tape.allocator.write(elements * size)
    return [one]


def transposed(tape: Tape, x: Shadow) -> Shadow:
    """A view whose gradient is laid out anew before it can be a matrix."""
    result = tape.view(x)
    return tape.node(result, [x], [], _times_weight)


def expand(tape: Tape, x: Shadow, times: int) -> Shadow:
    """Keys or values, once for each query head."""
    return tape.node(tape.new(x.elements * times, HALF), [x], [], _sum_backward, times)


def _sum_backward(tape: Tape, saved: list[Shadow], gradient: Shadow, times: int) -> list[Shadow | None]:
    return [tape.new(gradient.elements // times, HALF)]


def fused_attention(tape: Tape, q: Shadow, k: Shadow, v: Shadow, row: int, masked: list[Shadow]) -> Shadow:
    """q, k and v, `row` elements a head: the fused kernel, which keeps no scores. Its backward sums in float32 and repeats keys and values."""
    result = tape.new(q.elements, HALF)
    sums = tape.new(q.elements // row, FLOAT)
    kept = tape.save([k, q, v, *masked, sums, result])
    return tape.node(result, [q, k, v], kept, _fused_attention_backward, (q.elements, k.elements, row))


def _fused_attention_backward(tape: Tape, saved: list[Shadow], gradient: Shadow, about: tuple[int, int, int]) -> list[Shadow | None]:
    queries, keys, row = about
    of_q, of_k, of_v = tape.new(queries, HALF), tape.new(keys, HALF), tape.new(keys, HALF)
    repeated = 2 * queries * HALF if keys < queries else 0
    workspace = tape.new(queries * FLOAT + repeated + queries // row * FLOAT + 256, BYTE)
    del workspace, gradient
    return [of_q, of_k, of_v]


def plain_attention(tape: Tape, q: Shadow, k: Shadow, v: Shadow, head: int, tokens: int, mask: Shadow) -> Shadow:
    """Falcon's one key head: the fused kernels do not take it, so the whole square of scores is computed in float32 and kept."""
    heads = q.elements // (head * tokens)  # of all rows
    scores, many = heads * tokens * tokens, q.elements
    wide = [cast(tape, one, FLOAT) for one in (q, k, v)]
    scaled_q = tape.new(many, FLOAT)
    scaled_k = tape.new(k.elements, FLOAT)
    one_q, all_k = tape.new(many, FLOAT), tape.new(many, FLOAT)
    kept = tape.save([one_q, all_k])
    raw = tape.new(scores, FLOAT)
    del scaled_k, all_k, one_q
    tape.allocator.write(scores * FLOAT)  # the mask is added in place
    likely = tape.new(scores, FLOAT)
    odd = tape.new(scores, BYTE)
    del odd, raw
    kept = _joined(kept, tape.save([likely]))
    narrow = tape.new(scores, HALF)
    all_v = tape.new(many, FLOAT)
    kept = _joined(kept, tape.save([all_v]))
    mixed = tape.new(many, FLOAT)
    del all_v
    result = tape.node(tape.new(many, HALF), [q, k, v], kept, _plain_attention_backward, (scores, many, k.elements))
    del mixed, likely, scaled_q, wide, narrow, mask
    return result


def _plain_attention_backward(tape: Tape, saved: list[Shadow], gradient: Shadow, about: tuple[int, int, int]) -> list[Shadow | None]:
    scores, many, few = about
    wide = tape.new(many, FLOAT)
    del gradient
    copy = tape.new(many, FLOAT)
    del wide
    of_all_v = tape.new(many, FLOAT)
    of_likely = tape.new(scores, FLOAT)
    del copy
    saved.pop()  # values
    of_v = tape.new(few, FLOAT)
    del of_all_v
    result, product = tape.new(scores, FLOAT), tape.new(scores, FLOAT)
    del product, of_likely
    saved.pop()  # probabilities
    of_all_k, of_q = tape.new(many, FLOAT), tape.new(many, FLOAT)
    del result
    saved.clear()
    of_k = tape.new(few, FLOAT)
    del of_all_k
    scaled_k, scaled_q = tape.new(few, FLOAT), tape.new(many, FLOAT)
    del of_k, of_q
    narrow = [tape.new(few, HALF), tape.new(few, HALF), tape.new(many, HALF)]
    del of_v, scaled_k, scaled_q
    return [narrow[2], narrow[0], narrow[1]]


# The feed-forward part


def product_of(tape: Tape, x: Shadow, y: Shadow) -> Shadow:
    kept = tape.save([x, y])
    return tape.node(tape.new(x.elements, HALF), [y, x], kept, _product_of_backward)


def _product_of_backward(tape: Tape, saved: list[Shadow], gradient: Shadow, about: Any) -> list[Shadow | None]:
    return [tape.new(gradient.elements, HALF), tape.new(gradient.elements, HALF)]


def activated(tape: Tape, x: Shadow) -> Shadow:
    """An activation that keeps its input: silu, gelu."""
    kept = tape.save([x])
    return tape.node(tape.new(x.elements, x.itemsize), [x], kept, _times_weight)
