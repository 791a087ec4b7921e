"""The report: what counts of an event log, what the page says, and that nothing in it can run or fetch."""

import copy
import html
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from halfbyte.errors import DataError
from halfbyte.runs import report as reports
from halfbyte.runs.report import write_report
from toy_runs import RUNS, SHA, write_run

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
    return report, (run / "report.html").read_text(encoding="utf-8").replace("\u00a0", " ")


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
    assert "On 3,400 held-out tokens, perplexity fell from 49.4 to 31.2 (−36.8 %)." in html
    assert "best step 2" in html
    assert "no GPU found" in html
    assert "base: embedded" in html
    assert "licence text" in html
    assert f"halfbyte chat {tmp_path.name}" in html
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert titles == ["Before and after", "Answers", "Training", "Data", "Plan", "Run", "Recipe", "Next"]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(("tuned", "words"), [
    (31.2, "fell from 49.4 to 31.2 (−36.8 %)"), (50.2, "rose from 49.4 to 50.2 (+1.6 %)"), (49.4, "did not change (49.4)"),
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
    for name, rows in (*ledger["bins"].items(), ("left out: licence text", 21)):
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
    assert len(ids) == len(set(ids)) == 8, "a title and a description of each of four charts"


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


# Whole runs


@pytest.mark.parametrize("kind", RUNS)
def test_every_kind_of_run_gives_a_whole_report(tmp_path, kind):
    run = RUNS[kind](tmp_path / kind)
    report = write_report(run)
    assert json.loads((run / "report.json").read_text(encoding="utf-8")) == report
    page = (run / "report.html").read_text(encoding="utf-8")
    tags = Tags(page)
    assert tags.open == []
    assert not {"script", "img", "iframe", "object", "embed", "link"} & {tag for tag, _ in tags.seen}
    ids = [attributes["id"] for _, attributes in tags.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    for text in (re.sub("<style>.*?</style>", "", page, flags=re.DOTALL), (run / "report.md").read_text(encoding="utf-8")):
        assert not re.search(r"\bNone\b|\bnan\b|\binf\b|\{\'", text)
    assert report["verdict"]["sentence"]


def test_the_page_opens_with_the_verdict_and_what_it_rests_on(tmp_path):
    report = write_report(RUNS["text"](tmp_path))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    head = page[page.index("<header>") : page.index("</header>")]
    assert report["verdict"]["word"] == "better"
    for words in (
        "Better than its base",
        "fell from 36.26 to 27.41",
        "34 rows",
        "−10.4 to −7.4",
        "1.9",
        "p\u00a0=\u00a00.0005",
        "Of 3 comparisons: 2 better, 1 worse.",
    ):
        assert words in head, words
    assert "Worse: perplexity (neutral text)" in head
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == ["Before and after", "Answers", "Training", "Data", "Plan", "Notes", "Run", "Recipe", "Next"]


def test_all_three_forms_say_the_same(tmp_path):
    for kind in ("text", "labels", "replies", "structure"):
        report = write_report(RUNS[kind](tmp_path / kind))
        page = html.unescape((tmp_path / kind / "report.html").read_text(encoding="utf-8")).replace("\u00a0", " ")
        text = (tmp_path / kind / "report.md").read_text(encoding="utf-8")
        said = [one["sentence"][1:] for one in report["comparisons"]] + [report["choice"]["why"], report["hashes"]["base"], report["adapter_sha256"]]
        said += (
            [words.replace("\u00a0", " ") for words in report["verdict"]["rests_on"].values()]
            + [one["reason"] for one in report["decisions"]]
            + list(report["data"]["bins"])
        )
        said += ["The test part was opened once.", "CC0-1.0", "seed"]
        for words in said:
            assert words in page, (kind, words)
            assert words in text, (kind, words)


def test_predicted_and_measured_memory_stand_together(tmp_path):
    report = write_report(RUNS["text"](tmp_path))
    assert report["memory"] == {"budget_bytes": None, "predicted_bytes": 1_540_000_000, "measured_bytes": 1_602_224_128, "phases": [], "changes": []}
    for form in ("html", "md"):
        assert "1.54 GB was predicted, 1.602 GB measured (+4.0 %)" in (tmp_path / f"report.{form}").read_text(encoding="utf-8").replace("\u00a0", " ")
    assert "predicted" not in re.sub("<style>.*</style>", "", (write_page(RUNS["replies"], tmp_path / "other")), flags=re.DOTALL)


def write_page(make: Any, folder: Path) -> str:
    write_report(make(folder))
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_labels_of_training_and_of_the_test_are_told_apart(tmp_path):
    """The fingerprint of what was trained on, and the scores of classes."""
    scores = {"event": "classes", "classes": ["a", "b"], "confusion": {"base": [[1, 0], [0, 1]]}}
    report, _ = report_of(tmp_path, [RUN, {"event": "labels", "rows": 3, "sha256": SHA, "same_as_preview": False}, scores])
    assert report["hashes"]["labels"] == SHA
    assert report["labels_as_previewed"] is False
    assert report["classes"]["classes"] == ["a", "b"]


def test_a_later_measurement_replaces_the_earlier(tmp_path):
    def told(group: str, metric: str, tuned: float) -> dict[str, Any]:
        return {"event": "comparison", "group": group, "metric": metric, "base": 1.0, "tuned": tuned}

    first = [told("text", "perplexity", 2.0), told("text", "bits per byte", 2.0), told("replies", "chrF", 2.0)]
    again = [{"event": "measurement"}, told("text", "perplexity", 3.0), told("replies", "chrF", 2.0)]
    report, _ = report_of(tmp_path, [RUN, step(1, 4.0), *first, *again])
    assert [(one["metric"], one["tuned"]) for one in report["comparisons"]] == [("perplexity", 3.0), ("chrF", 2.0)]
    choice = {"event": "choice", "step": 1, "of": 2, "why": "best"}
    report, _ = report_of(tmp_path, [RUN, step(1, 4.0), *first, choice, {"event": "test_opened", "times": 1}, step(2, 4.0)])
    assert (report["comparisons"], report["choice"]) == ([], None), "a step changes the weights that were measured"
    assert report["test_opened"] == 1, "and the test part was opened all the same"


def test_the_chosen_step_is_marked_even_where_another_was_best(tmp_path):
    events = [
        RUN,
        step(1, 4.0),
        validation(1, 3.0, True),
        step(2, 3.0),
        validation(2, 3.1, False),
        {"event": "choice", "step": 2, "of": 2, "why": "step 1 is damaged"},
    ]
    _, page = report_of(tmp_path, events)
    assert "chosen step 2: 3.1 at 2" in page
    assert "The tuned model is that of step 2 of 2: step 1 is damaged." in page


def test_looking_twice_at_the_test_part_is_said(tmp_path):
    _, page = report_of(tmp_path, [RUN, step(1, 4.0), {"event": "test_opened", "times": 3}])
    assert "The test part was opened 3 times: what is changed after the first time is fitted to the test." in page


@pytest.mark.parametrize("line", [
    b"\x00\x00\xff", b"[]", b'"step"', b'{"event": 3}', b'{"event": "step"}', b'{"event": "step", "step": "1"}', b'{"event": "comparison", "metric": "a"}',
    b'{"event": "resume"}', b'{"event": "data", "ledger": 3}', b'{"event": "note"}', b'{"event": "perplexity"}', b"[" * 50_000,
])  # fmt: skip
def test_a_line_that_is_no_event_is_a_note(tmp_path, line):
    whole = json.dumps(RUN).encode()
    (tmp_path / "events.jsonl").write_bytes(whole + b"\n" + line + b"\n" + json.dumps(step(1, 4.0)).encode() + b"\n")
    report = write_report(tmp_path)
    assert report["training"]["steps"] == 1
    assert report["notes"] == ["events.jsonl: line 2 is torn, as a crash leaves it, and is left out"]


def test_numbers_stand_on_one_line_of_the_json_and_strings_are_untouched(tmp_path):
    text = "[\n  1,\n  2\n]"
    report, _ = report_of(tmp_path, [RUN, step(1, 4.0), generation("a", text)])
    assert report["generations"][0]["tuned"] == text
    assert "[1, 4.0]" in (tmp_path / "report.json").read_text(encoding="utf-8")


def test_an_answer_of_ten_megabytes_is_cut_and_said(tmp_path):
    report, page = report_of(tmp_path, [RUN, step(1, 4.0), generation("p" * 5_000, "word " * 2_000_000)])
    assert len(report["generations"][0]["tuned"]) == 10_000_000
    assert len(page) < 60_000
    for form in (page, (tmp_path / "report.md").read_text(encoding="utf-8")):
        assert "cut here: 9,997,000 more characters in report.json" in form
        assert "cut here: 2,000 more characters in report.json" in form


def test_the_text_form_cannot_be_forged(tmp_path):
    """Outside of fences: no HTML, no heading, link or cell that is not ours."""
    write_report(RUNS["evil"](tmp_path))
    outside = without_fences((tmp_path / "report.md").read_text(encoding="utf-8"))
    assert "<" not in outside
    assert not re.search(r"https?://", outside)
    assert not re.search(r"(?<!\\)[`*_\[\]](?<!\*\*)", outside.replace("**", "")), "markup that is not escaped"
    assert "forged" not in outside
    width = None
    for line in outside.split("\n"):
        if line.startswith("|"):
            cells = len(re.findall(r"(?<!\\)\|", line))
            assert width in (None, cells), line
            width = cells
        else:
            width = None
    ours = {
        "Before and after",
        "A person’s judgement",
        "Answers",
        "Style or recital",
        "Classes",
        "Structure",
        "Training",
        "Data",
        "Plan",
        "Notes",
        "Run",
        "Recipe",
        "Next",
    }
    assert set(re.findall("^## (.*)$", outside, re.MULTILINE)) == ours


def without_fences(text: str) -> str:
    """As a reader of Markdown sees it: a fence ends at a line of at least as many marks."""
    outside, fence = [], ""
    for line in text.split("\n"):
        marks = re.match("`{3,}", line)
        if fence:
            fence = "" if line.strip("`") == "" and len(line) >= len(fence) else fence
        elif marks:
            fence = marks[0]
        else:
            outside.append(line)
    assert fence == ""
    return "\n".join(outside)


def test_seed_and_adapter_are_found_in_the_folder(tmp_path):
    report = write_report(write_run(tmp_path, [RUN]))
    assert (report["seed"], report["adapter_sha256"], report["licences"]["data"]) == (42, SHA[::2] * 2, "CC0-1.0")
    assert report["answers"] is None
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "answers.jsonl").write_text("{}\n")
    assert write_report(tmp_path)["answers"] == "evaluation/answers.jsonl"


def test_whatever_stands_in_a_figure_gives_a_report(tmp_path):
    """A file may hold anything: one value of a whole run after another is put in place of any other kind of value."""
    chance = random.Random(0)
    junk = [None, 3, "x", [], {}, [1], {"a": 1}, True, -1.5, 1e300, [None], [[1]], "", [{}]]
    for kind in ("labels", "replies", "structure"):
        run = RUNS[kind](tmp_path / kind)
        lines = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
        told = [event for event in lines if event.get("step", 1) == 1]
        for _ in range(25):
            events = copy.deepcopy(told)
            inner: Any = chance.choice(events)
            while True:
                key = chance.choice([name for name in inner if name != "event"] if isinstance(inner, dict) else range(len(inner)))
                if not inner[key] or not isinstance(inner[key], dict | list) or chance.random() < 0.3:
                    break
                inner = inner[key]
            inner[key] = chance.choice(junk)
            (run / "events.jsonl").write_text("\n".join(map(json.dumps, events)) + "\n", encoding="utf-8")
            assert write_report(run)["verdict"]["title"]


def test_the_report_that_says_finished_is_the_last(tmp_path, monkeypatch):
    """Guards against a kill between the reports: a finished run is never written to again, so a report.md that was missing then stayed so."""
    written, real = [], reports.write_whole
    monkeypatch.setattr(reports, "write_whole", lambda file, content: (written.append(file.name), real(file, content)))
    write_report(RUNS["text"](tmp_path))
    assert sorted(written) == ["report.html", "report.json", "report.md"]
    assert written[-1] == "report.json"
