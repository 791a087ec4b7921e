"""The table of comparisons and its bars."""

import re

import pytest

from halfbyte.runs.comparisons import WIDTH, bar, comparison_table
from toy_runs import comparison


def places(svg: str) -> dict[str, float]:
    """x of the dot and of the whisker's ends."""
    left, right = re.search(r"M([-\d.]+) [\d.]+H([-\d.]+)M", svg).groups()
    return {"dot": float(re.search(r'cx="([-\d.]+)"', svg)[1]), "left": float(left), "right": float(right)}


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize(("gain", "verdict"), [(2.0, "better"), (0.1, "no evidence"), (-2.0, "worse")])
def test_right_is_better_whatever_the_metric(higher, gain, verdict):
    found = comparison("text", "a", 10, 10 + (gain if higher else -gain), 0.5, 0.4, higher=higher)
    assert found["verdict"] == verdict
    drawn = places(bar(found))
    middle = WIDTH / 2
    assert drawn["left"] <= drawn["dot"] <= drawn["right"]
    assert (drawn["dot"] > middle) == (gain > 0)
    assert (drawn["left"] < middle < drawn["right"]) == (verdict == "no evidence"), "the interval reaches across the middle"
    assert drawn["left"] >= 0
    assert drawn["right"] <= WIDTH


def test_the_band_is_as_wide_as_the_smallest_change_that_could_be_shown():
    svg = bar(comparison("text", "a", 10, 12, 0.5, 1.0))
    drawn = places(svg)
    wide = float(re.search(r'class="band".*?width="([\d.]+)"', svg)[1])
    assert wide / 2 == pytest.approx((drawn["dot"] - WIDTH / 2) / 2, abs=0.1), "half of the change of 2"


def test_what_is_not_known_is_not_drawn():
    assert bar({"difference": None}) == ""
    alone = bar(comparison("text", "a", 1, 2, 0.1, None) | {"interval": [None, None]})
    assert "whisker" not in alone
    assert "band" not in alone
    assert "<circle" in alone
    assert comparison_table([]) == ""


def test_every_comparison_has_a_row_with_its_verdict_under_its_group():
    rows = [
        comparison("text", "perplexity", 40, 30, 1, 1, higher=False),
        comparison("replies", "chrF", 14, 14.1, 1, 1),
        comparison("tasks", "acc", 0.5, 0.2, 0.1, 0.1),
    ]
    table = comparison_table(rows)
    assert re.findall(r'scope="rowgroup">(.*?)<span>', table) == ["Text", "Replies", "tasks"]
    assert re.findall(r"<b>(.*?)</b>", table) == ["▲ better", "○ no evidence", "▼ worse"]
    assert '<td data-name="base">40.0<span class="under">39.0 to 41.0</span></td>' in table
    assert "−10.0" in table
    assert all(one["sentence"][1:] in table for one in rows)
