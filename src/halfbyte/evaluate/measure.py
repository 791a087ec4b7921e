"""Base against tuned on rows that neither was trained on: every figure of the report comes from `measure`.

    what                       asked of each model                      compared by
    texts                      losses in sliding windows                perplexity, bits per byte
    answers of every kind      losses of the file's own answers         perplexity of the answers
    classes                    the likelihood of each class, answers    macro F1, accuracy, calibration
    structures                 answers                                  exact match, act, slots
    replies                    answers                                  chrF, BLEU, ROUGE-L, length, variety, endings
    neutral text               losses                                   perplexity: what was forgotten

The base is the same model with its adapter switched off, so nothing else can differ. Each figure is a function of summed rows
(metrics.py), and uncertainty.compare says from the rows of both what a difference is worth.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from halfbyte.data.prepare import Prepared
from halfbyte.data.records import Record
from halfbyte.data.render import Template, render_prompt
from halfbyte.data.tokens import Encoder, Tokens
from halfbyte.errors import ModelError
from halfbyte.evaluate.asking import evenly, last_ids, prompt_of, units_of
from halfbyte.evaluate.bits_per_byte import bits_per_byte, row_bytes, token_bytes
from halfbyte.evaluate.calibration import answered, calibration_rows, expected_calibration_error, judged
from halfbyte.evaluate.classify import Scorer, answer_ids, fit_scorer, label_scores
from halfbyte.evaluate.labels import accuracy_rows, confusion, macro, macro_f1_rows, majority_baseline, micro, parse_label, per_class, unseen_labels
from halfbyte.evaluate.loss import RowLosses, perplexity_scores, row_losses
from halfbyte.evaluate.metrics import Metric, Scores, value_of
from halfbyte.evaluate.neutral import neutral_rows
from halfbyte.evaluate.overlap import recitals
from halfbyte.evaluate.replies import count_empty, reply_scores
from halfbyte.evaluate.runs import Answer, Measured
from halfbyte.evaluate.save import Evaluation
from halfbyte.evaluate.structure import count_unparsable, slot_table, structure_scores
from halfbyte.evaluate.windows import sliding_windows
from halfbyte.generate.engine import Answer as Said
from halfbyte.generate.engine import Marks, Sampling, generate_answers
from halfbyte.model.adapter import without_adapter
from halfbyte.model.room import AtATime
from halfbyte.recipe.schema import ChatData, Evaluate, LabelData, SettledData, StructureData, TextData

Result = TypeVar("Result")
Event = dict[str, Any]
SIDES = ("base", "tuned")
# Answers to test rows that the report shows, beside those to the prompts of the recipe.
SHOWN_ANSWERS = 5
# Best at 1, so it has no better and worse; `length error` is compared instead.
LENGTH_RATIO = "length ratio"
# Prompts of which all classes are scored at a time: more were no faster.
MOST_PROMPTS = 16
# With fewer documents each window of a text is a unit of its own: one document alone has no other to be compared with.
FEWEST_DOCUMENTS = 10


@dataclass(frozen=True)
class Subject:
    """What is measured, and all that turns rows into figures."""

    model: Any
    """With its adapter (peft)."""
    tokenizer: PreTrainedTokenizerBase
    marks: Marks
    dtype: torch.dtype
    prepared: Prepared
    settings: Evaluate
    batch_size: int
    context: int | None
    """Positions of the base, if it says."""
    prompts: list[str]
    """Of the recipe, or the first held-out ones: answered side by side."""
    tell: Callable[[str, int], None]
    """Hears what is measured and how many rows of it are done."""
    at_a_time: AtATime | None = None
    """Keeps how many rows there is room for, once memory has run out."""

    @property
    def template(self) -> Template:
        return self.prepared.template

    def both(self, what: str, ask: Callable[[Callable[[int], None]], Result]) -> tuple[Result, Result]:
        """What the base says and what the tuned model says. `ask` gets what it tells its progress."""
        with without_adapter(self.model):
            base = ask(lambda done: self.tell(f"base: {what}", done))
        return base, ask(lambda done: self.tell(f"tuned: {what}", done))

    def losses(self, what: str, rows: Sequence[Tokens]) -> tuple[RowLosses, RowLosses]:
        """Raises ModelError where a model has no finite loss: such a figure is not left out, it is what is wrong."""

        def ask(told: Callable[[int], None]) -> RowLosses:
            return row_losses(self.model, rows, self.dtype, self.batch_size, self.marks.pad, lambda done, _: told(done), self.at_a_time)

        found = self.both(what, ask)
        for side, losses in zip(SIDES, found, strict=True):
            if not np.isfinite(losses.loss).all():
                row = rows[int(np.flatnonzero(~np.isfinite(losses.loss))[0])]
                hint = "compute in bfloat16 or float32 (train.precision), or train again with a lower train.learning_rate"
                raise ModelError(f"{row.file}:{row.line}: the loss of the {side} model is not a number on this row of {what}", hint=hint)
        return found

    def answers(self, what: str, prompts: list[list[int]]) -> tuple[list[Said], list[Said]]:
        sampling = Sampling(self.settings.max_new_tokens, repetition_penalty=self.settings.repetition_penalty)
        return self.both(what, lambda told: generate_answers(self.model, prompts, self.marks, sampling, self.dtype, self.batch_size, told, self.at_a_time))

    def text_of(self, said: Said) -> str:
        text = self.tokenizer.decode(said.ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return text


def primary(section: SettledData, found: Evaluation) -> Measured | None:
    """What the verdict of a run rests on: of classes the macro F1 by likelihood, of structures the slots, of all else the perplexity."""
    wanted = [("text", "perplexity")]
    if isinstance(section, LabelData):
        wanted = [("labels", "macro F1"), *wanted]
    elif isinstance(section, StructureData):
        wanted = [("structure", "slot F1"), ("structure", "exact match"), *wanted]
    by_name = {(one.group, one.metric.name): one for one in found.measured}
    return next((by_name[name] for name in wanted if name in by_name), None)


def measure(subject: Subject, log: Callable[[Event], None]) -> Evaluation:
    """Everything that is measured of a run; events are logged as they are known, comparisons by the caller."""
    section, prepared = subject.prepared.section, subject.prepared
    found = Evaluation()
    if len(prepared.test):
        found += _likelihood(subject, log)
    if isinstance(section, LabelData) and len(prepared.test):
        found += _classes(subject, section, log)
    if isinstance(section, ChatData) and len(prepared.test) and subject.settings.max_answers:
        found += _answers(subject, log)
    found += _neutral(subject)
    _side_by_side(subject, {answer.prompt for answer in _shown(subject, found.answers)}, log)
    for one in found.measured:
        if not _is_known(one):
            log({"event": "note", "message": f"{one.metric.name} is not compared: there was nothing to count, as in answers of one word or none"})
    found.measured = [one for one in found.measured if _is_known(one)]
    return found


def _is_known(one: Measured) -> bool:
    return all(math.isfinite(value_of(one.metric, rows)) for rows in (one.base, one.tuned))


# Likelihood of text


def _likelihood(subject: Subject, log: Callable[[Event], None]) -> Evaluation:
    """Of the file's own words: texts in sliding windows, answers behind their prompts."""
    prepared, section = subject.prepared, subject.prepared.section
    rows: Sequence[Tokens] = prepared.test
    everything = isinstance(section, ChatData) and section.loss == "all"
    units, unit = units_of(prepared.test_records), "prompts and answers of the test rows" if everything else "answers of the test rows"
    if isinstance(section, TextData):
        room = section.max_length - max(1, len(Encoder(subject.tokenizer).begin))
        stride = min(subject.settings.stride or section.max_length // 2, room)
        rows, documents = sliding_windows(prepared.test, Encoder(subject.tokenizer).begin, section.max_length, max(1, stride))
        alone = documents.max(initial=0) + 1 < FEWEST_DOCUMENTS
        units = None if alone else documents
        unit = f"test text (windows of {section.max_length} tokens, stride {max(1, stride)}{', drawn one by one' if alone else ''})"
    base, tuned = subject.losses("test rows", rows)
    for name, losses in zip(SIDES, (base, tuned), strict=True):
        total = losses.total
        log({"event": "perplexity", "model": name, "loss": total.mean, "perplexity": total.perplexity, "tokens": total.tokens})
    per_row = row_bytes(rows, token_bytes(subject.tokenizer))
    perplexity = Metric("perplexity", "exp_ratio", higher_is_better=False, unit=unit)
    measured = [Measured(perplexity, "text", perplexity_scores(base), perplexity_scores(tuned), units)]
    if per_row.sum():
        metric = Metric("bits per byte", "ratio", higher_is_better=False, unit=unit)
        measured.append(Measured(metric, "text", bits_per_byte(base, per_row), bits_per_byte(tuned, per_row), units))
    return Evaluation(measured)


def _neutral(subject: Subject) -> Evaluation:
    """What the model has forgotten of everything else."""
    section, path = subject.prepared.section, subject.settings.neutral_path
    rows = neutral_rows(subject.tokenizer, section.max_length, path)
    units = np.array([row.line for row in rows])  # a document begins at its line
    base, tuned = subject.losses("neutral text", rows)
    metric = Metric("perplexity", "exp_ratio", higher_is_better=False, unit=path or "neutral text: everyday English")
    return Evaluation([Measured(metric, "neutral text", perplexity_scores(base), perplexity_scores(tuned), units)])


# Classes


def _classes(subject: Subject, section: LabelData, log: Callable[[Event], None]) -> Evaluation:
    """By the likelihood of each class. The scorer of each model is fitted on its own validation rows."""
    prepared = subject.prepared
    gold, chosen_on = ([record.label for record in records] for records in (prepared.test_records, prepared.validation_records))
    encoder = Encoder(subject.tokenizer)
    known, unseen, note = _known_classes(subject, section, gold)
    classes = [*known, *unseen]
    answers = answer_ids(known, subject.template, encoder)

    room = (subject.context or math.inf) - max(map(len, answers))
    prompts = {
        part: [last_ids(prompt_of(section, subject.template, encoder, row, record), room) for row, record in zip(rows, records, strict=True)]
        for part, rows, records in (("validation", prepared.validation, prepared.validation_records), ("test", prepared.test, prepared.test_records))
    }

    def judge(told: Callable[[int], None]) -> tuple[Scorer, np.ndarray]:
        scores = {}
        for part, asked in prompts.items():
            rows = min(subject.batch_size, MOST_PROMPTS)
            scores[part] = label_scores(subject.model, asked, answers, subject.dtype, rows, subject.marks.pad, subject.at_a_time)
            told(len(asked))
        scorer = fit_scorer(known, scores["validation"], chosen_on, subject.template.instruction, subject.settings.wanted_accuracy)
        return scorer, scorer.probabilities(scores["test"])

    (_, base), (scorer, tuned) = pair = subject.both("classes", judge)
    places = {label: number for number, label in enumerate(known)}
    true = np.array([places.get(label, -1) for label in gold])
    said = [[known[place] for place in probabilities.argmax(axis=1)] for probabilities in (base, tuned)]
    matrices = [confusion(gold, one, classes) for one in said]
    log({
        "event": "classes", "classes": classes, "rows": len(gold), "majority": majority_baseline(prepared.train_labels, gold)._asdict(), "unseen": unseen,
        "confusion": _by_side(matrix.tolist() for matrix in matrices),
        "per_class": _by_side([score._asdict() for score in per_class(matrix, classes)] for matrix in matrices),
        "averages": _by_side({"macro": macro(matrix)._asdict(), "micro": micro(matrix)._asdict()} for matrix in matrices),
        "by_likelihood": _by_side(_scorer_figures(one, probabilities, true) for one, probabilities in pair),
        "notes": [*scorer.calibration.notes, *([note] if note else [])],
    })  # fmt: skip
    unit, units = f"{len(gold)} test rows, by likelihood", units_of(prepared.test_records)
    confidences = [calibration_rows(*judged(probabilities, true)) for probabilities in (base, tuned)]
    return Evaluation(
        [
            *_class_scores("labels", gold, said, classes, unit, units),
            Measured(Metric("calibration error", "calibration", higher_is_better=False, unit=unit), "labels", confidences[0], confidences[1], units),
        ],
        scorer=scorer if len(known) > 1 else None,  # one class alone needs none
    )


def _known_classes(subject: Subject, section: LabelData, gold: list[str]) -> tuple[list[str], list[str], str]:
    """Classes that may be said: of the training rows and of the recipe. What the test part adds to them is never said, so its rows are wrong; and a note."""
    known = sorted({*subject.prepared.train_labels, *section.labels})
    unseen, note = unseen_labels(dict.fromkeys(known, 1), gold)
    return known, unseen, note


def _class_scores(group: str, gold: list[str], said: Sequence[Sequence[str | None]], classes: list[str], unit: str, units: np.ndarray | None) -> list[Measured]:
    """`said`: the class of each row by base and by tuned."""
    f1, accuracy = ([rows(gold, one) for one in said] for rows in (lambda gold, one: macro_f1_rows(gold, one, classes), accuracy_rows))
    return [
        Measured(Metric("macro F1", "macro_f1", higher_is_better=True, unit=unit, labels=tuple(classes)), group, f1[0], f1[1], units),
        Measured(Metric("accuracy", "mean", higher_is_better=True, unit=unit), group, accuracy[0], accuracy[1], units),
    ]


def _scorer_figures(scorer: Scorer, probabilities: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    """What the scorer is worth on the test rows."""
    confidence, right = judged(probabilities, true)
    kept = answered(confidence, right, scorer.calibration.threshold)
    return {
        "accuracy": float(right.mean()), "ece": expected_calibration_error(confidence, right), "temperature": scorer.calibration.temperature,
        "prior_corrected": scorer.calibration.log_prior is not None, "threshold": scorer.calibration.threshold,
        "coverage": kept.coverage, "accuracy_of_answered": kept.accuracy,
    }  # fmt: skip


# Answers


def _answers(subject: Subject, log: Callable[[Event], None]) -> Evaluation:
    """What both models say to test rows, scored against the file's own answers."""
    prepared, section, encoder = subject.prepared, subject.prepared.section, Encoder(subject.tokenizer)
    chosen = evenly(len(prepared.test), subject.settings.max_answers)
    room = (subject.context or math.inf) - subject.settings.max_new_tokens
    asked = [(prepared.test_records[row], prompt_of(section, subject.template, encoder, prepared.test[row], prepared.test_records[row])) for row in chosen]
    fitting = [(record, prompt) for record, prompt in asked if len(prompt) <= room]
    if len(fitting) < len(asked):
        many = f"{len(asked) - len(fitting)} of {len(asked)} test rows are not answered"
        log({"event": "note", "message": f"{many}: their prompts leave no room for evaluate.max_new_tokens {subject.settings.max_new_tokens}"})
    if not fitting:
        return Evaluation()
    records, prompts = [record for record, _ in fitting], [prompt for _, prompt in fitting]
    said = subject.answers("answers", prompts)
    texts = [[subject.text_of(one) for one in side] for side in said]
    references, units = [record.reference for record in records], units_of(records)
    if isinstance(section, LabelData):
        measured = _answered_classes(subject, section, texts, records, log)
    elif isinstance(section, StructureData):
        measured = _paired("structure", [structure_scores(side, references) for side in texts], units)
        log({
            "event": "structure", "rows": len(records), "unparsable": _by_side(count_unparsable(side) for side in texts),
            "per_slot": _by_side(slot_table(side, references) for side in texts),
        })  # fmt: skip
    else:
        ended = [[one.ended for one in side] for side in said]
        scores = [reply_scores(side, references, how) for side, how in zip(texts, ended, strict=True)]
        measured = [one for one in _paired("replies", scores, units) if one.metric.name != LENGTH_RATIO]
        told = recitals(_by_side([one.ids for one in side] for side in said), prepared.train, subject.tokenizer)
        log({
            "event": "replies", "rows": len(records), "empty": _by_side(count_empty(side) for side in texts),
            "recital": {name: vars(one) for name, one in told.items()},
            "length_ratio": _by_side(next(one.value for one in side if one.metric.name == LENGTH_RATIO) for side in scores),
        })  # fmt: skip
    kept = [
        Answer(f"{record.file}:{record.line}", record.prompt, record.reference, *told, *(one.ended for one in ids))
        for record, told, ids in zip(records, zip(*texts, strict=True), zip(*said, strict=True), strict=True)
    ]
    for answer in _shown(subject, kept):
        log({"event": "generation", **asdict(answer)})
    return Evaluation(measured, answers=kept)


def _answered_classes(subject: Subject, section: LabelData, texts: list[list[str]], records: list[Record], log: Callable[[Event], None]) -> list[Measured]:
    """An answer that names no class is wrong."""
    gold = [record.label for record in records]
    known, unseen, _ = _known_classes(subject, section, gold)
    classes = [*known, *unseen]
    named = [[parse_label(text, known) for text in side] for side in texts]
    log({
        "event": "answered_classes", "classes": classes, "rows": len(gold), "unparsable": _by_side(side.count(None) for side in named),
        "confusion": _by_side(confusion(gold, side, classes).tolist() for side in named),
    })  # fmt: skip
    unit, units = f"{len(gold)} test rows, as answered", units_of(records)
    return _class_scores("answers", gold, named, classes, unit, units)


def _shown(subject: Subject, answers: list[Answer]) -> list[Answer]:
    """The first, and those to test rows that are among the prompts too: they have a reference."""
    return [answer for place, answer in enumerate(answers) if place < SHOWN_ANSWERS or answer.prompt in subject.prompts]


def _side_by_side(subject: Subject, known: set[str], log: Callable[[Event], None]) -> None:
    """Both models' answers to the prompts of the recipe, but for those that are `known` with their reference."""
    prompts = [prompt for prompt in subject.prompts if prompt not in known]
    if not prompts:
        return
    encoder = Encoder(subject.tokenizer)
    asked = [encoder.prompt(render_prompt([{"role": "user", "content": prompt}], subject.template, subject.tokenizer)) for prompt in prompts]
    goes_on = isinstance(subject.prepared.section, TextData)  # a text that is gone on with need not end
    for number, (prompt, base, tuned) in enumerate(zip(prompts, *subject.answers("prompts", asked), strict=True), 1):
        log({
            "event": "generation", "row": f"prompt {number}", "prompt": prompt, "reference": None,
            "base": subject.text_of(base), "tuned": subject.text_of(tuned),
            "base_ended": goes_on or base.ended, "tuned_ended": goes_on or tuned.ended,
        })  # fmt: skip


def _by_side(figures: Iterable[Result]) -> dict[str, Result]:
    return dict(zip(SIDES, figures, strict=True))


def _paired(group: str, scores: list[list[Scores]], units: np.ndarray | None) -> list[Measured]:
    return [Measured(base.metric, group, base.rows, tuned.rows, units) for base, tuned in zip(*scores, strict=True)]
