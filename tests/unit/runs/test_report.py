"""The report: what counts of an event log, what the page says, and that nothing in it can run or fetch."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from halfbyte.errors import DataError
from halfbyte.runs.chart import Series, count_axis, line_chart, thin, value_axis
from halfbyte.runs.report import duration, figure, size, write_report

RUN = {
    "event": "run",
    "name": "tiny",
    "base": "embedded",
    "versions": {"torch": "2.13.0"},
    "device": "CPU, 2 cores",
    "command": "halfbyte x",
}
DATA = {"event": "data", "ledger": {
    "records_read": 412, "bins": {"trained": 300, "trained, prompt shortened": 61, "validation": 12, "test": 18},
    "left_out": [{"reason": "licence text", "count": 21}], "train_rows": 90, "validation_rows": 9, "test_rows": 12,
    "train_tokens": 22000, "validation_tokens": 2100, "test_tokens": 3400,
}}  # fmt: skip
BASE = {"event": "perplexity", "model": "base", "loss": 3.9, "perplexity": 49.4, "tokens": 3400}
TUNED = {"event": "perplexity", "model": "tuned", "loss": 3.44, "perplexity": 31.2, "tokens": 3400}
END = {"event": "end", "steps": 3, "seconds": 92.1, "best_step": 2, "stopped": "finished", "peak_bytes": 7}


def step(number: int, loss: float | None, **more: Any) -> dict[str, Any]:
    return {"event": "step", "step": number, "loss": loss, "learning_rate": 1e-4, "tokens": 100, "tokens_per_second": 10.0 * number,
            "seconds": 0.5 * number, "peak_bytes": 5} | more  # fmt: skip


def validation(number: int, loss: float, best: bool) -> dict[str, Any]:
    return {"event": "validation", "step": number, "loss": loss, "tokens": 2100, "best": best}


def generation(prompt: str, tuned: str) -> dict[str, Any]:
    return {"event": "generation", "prompt": prompt, "base": "b", "tuned": tuned}


FULL = [RUN, DATA, {"event": "model", "parameters": 1000, "trainable": 50, "share_4bit": 1.0, "weight_bytes": 12_345_678},
        validation(0, 4.1, False), step(1, 4.1), step(2, 3.5), validation(2, 3.6, True), step(3, 3.3), validation(3, 3.7, False),
        {"event": "checkpoint", "step": 3, "path": "checkpoints/step-3"}, BASE, TUNED, generation("Once", "upon"), END]  # fmt: skip


def report_of(run: Path, events: list[dict[str, Any]], torn: str = "") -> tuple[dict[str, Any], str]:
    """Writes the events as a run folder; the report and its page."""
    lines = [json.dumps({"time": "2026-11-21T09:14:02+00:00"} | event) + "\n" for event in events]
    (run / "events.jsonl").write_text("".join(lines) + torn, encoding="utf-8")
    report = write_report(run)
    assert json.loads((run / "report.json").read_text(encoding="utf-8")) == report
    return report, (run / "report.html").read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Every tag with its attributes, and whether each that must be closed is closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_finished_run(tmp_path):
    (tmp_path / "recipe.yaml").write_text("base: embedded\n")
    (tmp_path / "plan.json").write_text(json.dumps({"decisions": [{"name": "precision", "value": "float32", "reason": "no GPU found"}]}))
    report, html = report_of(tmp_path, FULL)
    assert next(iter(report)) == "perplexity"
    assert report["perplexity"] == {"base": 49.4, "tuned": 31.2, "tokens": 3400}
    assert (report["name"], report["status"], report["base_model"]) == ("tiny", "finished", "embedded")
    assert report["training"] == {
        "steps": 3, "best_step": 2, "stopped": "finished", "first_loss": 4.1, "last_loss": 3.3, "seconds": 92.1, "tokens": 300,
        "tokens_per_second": 20.0, "peak_bytes": 7,
    }  # fmt: skip
    assert [row["step"] for row in report["validation"]] == [0, 2, 3]
    assert report["data"] == DATA["ledger"]
    assert report["decisions"][0]["reason"] == "no GPU found"
    assert "On 3,400 held-out tokens, perplexity fell from 49.4 to 31.2 (-36.8 %)." in html
    assert "best step 2" in html
    assert "no GPU found" in html
    assert "base: embedded" in html
    assert "licence text" in html
    assert f"halfbyte chat {tmp_path.name}" in html
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert titles == ["Before and after", "Training", "Generations", "Data", "Plan", "Run", "Recipe", "Next"]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(("tuned", "words"), [
    (31.2, "fell from 49.4 to 31.2 (-36.8 %)"), (50.2, "rose from 49.4 to 50.2 (+1.6 %)"), (49.4, "did not change (49.4)"),
])  # fmt: skip
def test_the_sentence_says_which_way_it_went(tmp_path, tuned, words):
    _, html = report_of(tmp_path, [RUN, step(1, 4.0), BASE, TUNED | {"perplexity": tuned}, END])
    assert f"perplexity {words}." in html


def test_a_resume_supersedes_the_steps_after_it(tmp_path):
    events = [RUN, step(1, 4.0), step(2, 3.9), validation(2, 3.9, True), step(3, 9.0), validation(3, 1.0, True), step(4, 9.0),
              generation("Once", "old"), RUN, {"event": "resume", "step": 2}, step(3, 3.8), validation(3, 3.95, False),
              BASE, TUNED | {"perplexity": 40.0}, TUNED, generation("Once", "new"), generation("Once", "newest")]  # fmt: skip
    report, html = report_of(tmp_path, events)
    assert report["training"]["steps"] == 3
    assert report["training"]["last_loss"] == 3.8
    assert report["training"]["tokens"] == 300
    assert report["training"]["best_step"] == 2
    assert [(row["step"], row["loss"]) for row in report["validation"]] == [(2, 3.9), (3, 3.95)]
    assert report["perplexity"]["tuned"] == 31.2
    assert [row["tuned"] for row in report["generations"]] == ["newest"]
    assert report["notes"] == ["resumed from step 2"]
    assert "training: 4 at 1, then to 3.8 at 3;" in html


def test_a_resume_alone_supersedes(tmp_path):
    """Killed again before its first step: the weights are those of step 1."""
    report, _ = report_of(tmp_path, [RUN, step(1, 4.0), step(2, 3.9), validation(2, 3.9, True), {"event": "resume", "step": 1}])
    assert report["training"]["steps"] == 1
    assert report["training"]["best_step"] is None
    assert report["validation"] == []


@pytest.mark.parametrize("again", [{"event": "resume", "step": 1}, BASE])
def test_a_new_set_of_generations_replaces_the_old_one(tmp_path, again):
    events = [
        RUN,
        step(1, 4.0),
        generation("First", "x"),
        generation("Second", "x"),
        again,
        TUNED,
        generation("Third", "y"),
        generation("Fourth", "y"),
    ]
    report, _ = report_of(tmp_path, events)
    assert [row["prompt"] for row in report["generations"]] == ["Third", "Fourth"]


def test_steps_logged_again_without_a_resume_count_once(tmp_path):
    """A run without a checkpoint starts over in its folder."""
    report, _ = report_of(tmp_path, [RUN, step(1, 4.0), step(2, 9.0), step(3, 9.0), RUN, step(1, 4.2), step(2, 4.1)])
    assert report["training"]["steps"] == 2
    assert (report["training"]["first_loss"], report["training"]["last_loss"]) == (4.2, 4.1)


def test_perplexity_of_weights_that_were_trained_further_is_dropped(tmp_path):
    report, _ = report_of(tmp_path, [RUN, step(1, 4.0), BASE, TUNED, {"event": "resume", "step": 1}, step(2, 3.9)])
    assert report["perplexity"] is None
    assert report["evaluation"]["base"]["perplexity"] == 49.4
    assert report["evaluation"]["tuned"]["perplexity"] is None
    assert report["status"] == "unfinished"


def test_a_torn_last_line_is_left_out_and_mentioned(tmp_path):
    report, html = report_of(tmp_path, [RUN, step(1, 4.0)], torn='{"event": "step", "st')
    assert report["training"]["steps"] == 1
    assert any("last line is torn" in note for note in report["notes"])
    assert "last line is torn" in html


def test_a_line_torn_before_a_resume_is_mentioned_with_its_number(tmp_path):
    after = json.dumps({"event": "resume", "step": 1}) + "\n"
    report, _ = report_of(tmp_path, [RUN, step(1, 4.0)], torn='{"event": "st\n' + after)
    assert any("line 3 is torn" in note for note in report["notes"])
    assert "resumed from step 1" in report["notes"]


def test_a_line_separator_inside_a_text_does_not_tear_a_line(tmp_path):
    (tmp_path / "events.jsonl").write_text(json.dumps(generation("a\u2028b", "c\x85d"), ensure_ascii=False) + "\n", encoding="utf-8")
    report = write_report(tmp_path)
    assert report["generations"][0]["prompt"] == "a\u2028b"
    assert report["notes"] == []


def test_text_from_data_is_shown_and_never_markup(tmp_path):
    evil = '<script>alert(1)</script> \u202egnp.exe \x1b[31m \u2066x \ud800 "><img src=x onerror=alert(1)> &amp;'
    (tmp_path / "recipe.yaml").write_text("name: </pre><script>1</script>\n")
    (tmp_path / "plan.json").write_text(json.dumps({"decisions": [{"name": evil, "value": evil, "reason": evil}], "notes": [evil]}))
    ledger = {"records_read": 1, "bins": {evil: 1}, "left_out": [{"reason": evil, "count": 1}]}
    events = [
        RUN | {"name": evil, "device": evil, "versions": {evil: evil}, "command": evil},
        {"event": "data", "ledger": ledger},
        step(1, 4.0),
        {"event": "skipped", "step": 1, "reason": evil},
        generation(evil, evil),
        {"event": "failed", "message": evil},
    ]
    report, html = report_of(tmp_path, events)
    assert report["generations"][0]["tuned"] == evil
    tags = Tags(html)
    assert tags.open == []
    assert not {"script", "img", "iframe", "object", "embed", "link"} & {tag for tag, _ in tags.seen}
    assert not [name for _, attributes in tags.seen for name in attributes if name.startswith("on")]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; \\u202egnp.exe \\u001b[31m \\u2066x \\ud800" in html
    assert "&amp;amp;" in html


def test_every_row_that_was_read_is_in_a_bin_of_the_page(tmp_path):
    ledger = {**DATA["ledger"], "augmented": 7}
    assert sum(ledger["bins"].values()) + 21 == ledger["records_read"]
    _, html = report_of(tmp_path, [RUN, {"event": "data", "ledger": ledger}])
    for name, rows in (*ledger["bins"].items(), ("licence text", 21)):
        assert re.search(rf"<td>{name}</td><td[^>]*>{rows}</td>", html), name
    assert "Records read: 412; 7 of the training rows are changed copies." in html
    assert "changed copies" not in report_of(tmp_path, [RUN, DATA])[1]


def test_the_page_fetches_nothing(tmp_path):
    _, html = report_of(tmp_path, FULL)
    tags = Tags(html)
    assert tags.open == []
    assert not [name for _, attributes in tags.seen for name in attributes if name in ("src", "href", "srcset", "data", "action")]
    assert "url(" not in html
    assert "@import" not in html
    assert "http:" not in html
    assert "https:" not in html
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": policy}) in tags.seen
    assert "prefers-color-scheme:dark" in html
    ids = [attributes["id"] for _, attributes in tags.seen if "id" in attributes]
    assert len(ids) == len(set(ids)) == 4


def test_an_empty_folder_gives_a_report(tmp_path):
    report = write_report(tmp_path)
    assert report["perplexity"] is None
    assert report["name"] == tmp_path.name
    assert report["status"] == "unfinished"
    assert report["training"]["steps"] == 0
    assert report["validation"] == []
    assert report["generations"] == []
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No training step is logged yet." in html
    assert Tags(html).open == []


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="no such run folder"):
        write_report(tmp_path / "nowhere")


def test_a_plan_that_cannot_be_read_is_a_note(tmp_path):
    (tmp_path / "plan.json").write_text('{"decisions": [')
    report, _ = report_of(tmp_path, [RUN])
    assert report["decisions"] == []
    assert "plan.json could not be read" in report["notes"][0]


@pytest.mark.parametrize(("last", "status", "words"), [
    ({"event": "interrupted", "step": 1}, "interrupted", "interrupted after step 1"),
    ({"event": "failed", "message": "loss is not finite"}, "failed", "failed: loss is not finite"),
])  # fmt: skip
def test_a_run_that_stopped_says_why_and_how_to_go_on(tmp_path, last, status, words):
    passed_over = {"event": "note", "message": "step-2 is damaged and passed over"}
    report, html = report_of(tmp_path, [passed_over, RUN, step(1, 4.0), last])
    assert report["status"] == status
    assert report["notes"] == ["step-2 is damaged and passed over", words]
    assert f'<p class="notice {status}">{words}</p>' in html
    assert "One training step is logged, with loss 4." in html
    assert f"halfbyte train --resume {tmp_path.name}" in html


def test_skipped_steps_are_counted_by_reason(tmp_path):
    skipped = [{"event": "skipped", "step": number, "reason": "overflow"} for number in (2, 3)]
    report, _ = report_of(tmp_path, [RUN, step(1, 4.0), *skipped])
    assert report["notes"] == ["2 steps skipped: overflow"]


def test_a_loss_that_is_not_finite_is_null_and_leaves_the_chart_whole(tmp_path):
    report, html = report_of(tmp_path, [RUN, step(1, 4.0), step(2, float("nan")), step(3, None), validation(3, float("inf"), False)])
    assert report["training"]["last_loss"] is None
    assert report["validation"][0]["loss"] is None
    assert "nan" not in html.replace("unfinished", "")
    assert "None" not in html


def test_many_steps_make_a_small_page_with_a_mean(tmp_path):
    _, html = report_of(tmp_path, [RUN, *(step(number, 4.0 - number / 10_000) for number in range(1, 5001))])
    assert len(html) < 60_000
    assert "mean of 125" in html


def test_numbers_are_rounded_into_the_next_unit():
    assert [duration(value) for value in (0.04, 59.97, 92.1, 119.7, 3599.6, 19_221)] == [
        "0.0 s", "1 min 0 s", "1 min 32 s", "2 min 0 s", "1 h 0 min", "5 h 20 min",
    ]  # fmt: skip
    assert [size(value) for value in (0, 999, 12_345_678, 999_999_999, 23_912_000_000)] == [
        "0 B",
        "999 B",
        "12.35 MB",
        "1000 MB",
        "23.91 GB",
    ]
    assert [figure(value) for value in (49.4, 31.268, 9999.7, 12_345.6)] == ["49.4", "31.27", "10,000", "12,346"]


# The chart


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
