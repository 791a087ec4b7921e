"""The chart: ticks, and what is drawn of few, many and odd points."""

import pytest

from halfbyte.runs.chart import Series, count_axis, line_chart, thin, value_axis


@pytest.mark.parametrize(("values", "from_zero", "labels"), [
    ([2.13, 4.08], False, ["2.0", "2.5", "3.0", "3.5", "4.0", "4.5"]),
    ([0.00003, 0.0002], True, ["0.0", "0.5", "1.0", "1.5", "2.0"]),        # times 10 to the -4
    ([4.0, 4.0], False, ["2", "3", "4", "5", "6"]),
    ([0.0], True, ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
    ([1e6, 3e6], False, ["1.0", "1.5", "2.0", "2.5", "3.0"]),
])  # fmt: skip
def test_value_ticks_are_nice(values, from_zero, labels):
    axis = value_axis(values, from_zero)
    assert [axis.label(tick) for tick in axis.ticks] == labels
    assert axis.low <= min(values)
    assert axis.high >= max(values)


@pytest.mark.parametrize(("high", "labels"), [
    (0, ["0", "1"]), (1, ["0", "1"]), (3, ["0", "1", "2", "3"]), (60, ["0", "10", "20", "30", "40", "50", "60"]),
    (20_000, ["0", "5,000", "10,000", "15,000", "20,000"]),
])  # fmt: skip
def test_step_ticks_are_whole(high, labels):
    axis = count_axis([high])
    assert [axis.label(tick) for tick in axis.ticks] == labels


def test_one_point_is_a_dot_and_no_point_a_sentence():
    one = line_chart("c", "Loss", [Series("training", [(1, 4.0)], "line", "tuned")], "step", "loss")
    assert one.count('<circle class="dot"') == 1
    assert line_chart("c", "Loss", [Series("training", [], "line", "tuned")], "step", "loss").startswith("<p")


def test_a_chart_says_itself_to_a_screen_reader():
    svg = line_chart("c", "Loss", [Series("a < b", [(1, 4.0), (9, 2.5)], "line", "tuned")], "step", "loss")
    assert '<title id="c-title">Loss</title><desc id="c-desc">a &lt; b: 4 at 1, then to 2.5 at 9</desc>' in svg
    assert 'role="img" aria-labelledby="c-title c-desc"' in svg


def test_thinning_keeps_ends_and_spikes():
    points = [(float(x), 99.0 if x == 777 else 1.0 + x % 3) for x in range(10_000)]
    thinned = thin(points)
    assert len(thinned) <= 602
    assert thinned[0] == points[0]
    assert thinned[-1] == points[-1]
    assert (777.0, 99.0) in thinned
    assert thinned == sorted(thinned)
