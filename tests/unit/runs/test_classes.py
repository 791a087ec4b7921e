"""Classes: the picture of the confusion matrix and the words around it."""

import re

from halfbyte.runs.classes import MOST_CLASSES, class_parts, class_rows, heat, scorer_rows, told_of_classes
from halfbyte.runs.findings import score_rows


def cells(html: str) -> list[list[str]]:
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)[1:]]


def test_a_row_of_the_picture_is_a_class_and_its_shading_a_share():
    html = heat("base", ["a", "b"], [[3, 0, 1], [2, 2, 0]])
    assert cells(html) == [["3", "·", "1"], ["2", "2", "·"]]
    assert re.findall(r"--share:(\d+)%", html) == ["75", "0", "25", "50", "50", "0"]
    assert [bool(re.search("right", kinds)) for kinds in re.findall(r'<td class="([^"]*)"', html)] == [True, False, False, False, True, False]
    assert "no class" in html


def test_the_column_of_answers_without_a_class_is_there_only_with_one():
    html = heat("tuned", ["a", "b"], [[3, 0, 0], [2, 2, 0]])
    assert cells(html) == [["3", "·"], ["2", "2"]]
    assert "no class" not in html


def test_too_many_classes_are_left_to_the_json():
    names = [f"c{number}" for number in range(MOST_CLASSES + 1)]
    html = class_parts({"classes": {"classes": names, "confusion": {"base": [[1] * (len(names) + 1)] * len(names)}}, "answered_classes": None})
    assert "The table of 31 classes against each other is in report.json." in html
    assert "heat" not in html


def test_what_must_be_known_is_said():
    scored = {"majority": {"label": "inform", "accuracy": 0.3795}, "unseen": ["x", "y"], "notes": ["few rows"]}
    answered = {"unparsable": {"base": 741, "tuned": 4}}
    assert told_of_classes({"classes": scored, "answered_classes": answered}) == [
        "Always answering “inform” would be right in 38.0\u00a0% of the rows.",
        "Answers that name no class count as wrong: 741 of the base model and 4 of the tuned model.",
        "In the test rows but never in training: x, y.",
        "few rows",
    ]
    assert told_of_classes({"classes": None, "answered_classes": None}) == []


def test_figures_of_base_and_tuned_stand_in_pairs():
    base = [{"label": "a", "precision": 0.1, "recall": 0.2, "f1": 0.3, "rows": 7}]
    tuned = [{"label": "b", "precision": 0.4, "recall": 0.5, "f1": 0.6, "rows": 8}, {"label": "a", "precision": 0.7, "recall": 0.8, "f1": 0.9, "rows": 7}]
    assert score_rows({"base": base, "tuned": tuned}, "label", "rows") == [
        ["a", "7", "0.10", "0.70", "0.20", "0.80", "0.30", "0.90"], ["b", "8", "–", "0.40", "–", "0.50", "–", "0.60"],
    ]  # fmt: skip


def test_the_scorer_tells_what_it_was_measured_with():
    found = {"by_likelihood": {"base": {"accuracy": 0.302, "threshold": None}, "tuned": {"accuracy": 0.887, "threshold": 0.71}}}
    assert scorer_rows(found) == [["accuracy", "30.2\u00a0%", "88.7\u00a0%"], ["abstains below a confidence of", "–", "0.71"]]
    assert scorer_rows({}) == []


def test_averages_stand_below_the_classes():
    figures = {"macro": {"precision": 0.1, "recall": 0.2, "f1": 0.3}, "micro": {"precision": 0.4, "recall": 0.5, "f1": 0.6}}
    assert class_rows({"per_class": {}, "averages": {"base": figures, "tuned": figures}}) == [
        ["average of the classes", "", "0.10", "0.10", "0.20", "0.20", "0.30", "0.30"],
        ["average of the rows", "", "0.40", "0.40", "0.50", "0.50", "0.60", "0.60"],
    ]
    assert class_rows({}) == []
