"""The chain of this room: file(s) -> records -> sides -> examples -> tokens -> rows on disk, with a ledger in which every row has one bin.

Two readings: the first surveys (a few numbers a row), the second renders and tokenises, so no data set is too large for memory.
What was prepared is kept (store.py) and found again as long as nothing that it depends on has changed.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from halfbyte.data.augment import changed_copies, check_kinds
from halfbyte.data.fit import Bill, Fitted, Fitter
from halfbyte.data.held_out import RecordWriter, StoredRecords
from halfbyte.data.pack import BlockCutter, PackedRows, best_fit
from halfbyte.data.parts import open_parts
from halfbyte.data.read import GUTENBERG, Reading
from halfbyte.data.records import Record
from halfbyte.data.render import Template, choose_template, render_record
from halfbyte.data.rows import Problems
from halfbyte.data.split import OUT, SIDES, SMALLEST_TRAIN_ROWS, TEST, TRAIN, VALIDATION, Split, split_records
from halfbyte.data.store import PARTS, RowWriter, cache_key, find_or_build, stored_rows, tokenizer_hash
from halfbyte.data.survey import Progress, Survey, survey_records
from halfbyte.data.tokens import Encoder, Tokens
from halfbyte.errors import DataError
from halfbyte.recipe.plan import Decision
from halfbyte.recipe.schema import ChatData, SettledData, SomeData, TextData

# Records that are rendered and tokenised together: so many, or so many characters of them.
BATCH = 500
BATCH_CHARACTERS = 1_000_000
# When the recipe asks nothing, the report shows answers to the first few held-out rows.
DEFAULT_PROMPTS = 3
OPENING_WORDS = 12
# Behind the name of a bin.
SHORTENED = ", prompt shortened"
BINS = tuple(name + how for name in ("trained", "validation", "test") for how in ("", SHORTENED))
HELD_OUT = ("validation", "test")
# The key that names the file of a part.
GIVEN = {TRAIN: "path", VALIDATION: "validation_path", TEST: "test_path"}
# Keys that change no row: where the files are is told by their content.
NOT_IN_ROWS = {"path", "validation_path", "test_path", "licence", "packing"}


@dataclass
class Prepared:
    """Rows of tokens for each use, and what became of every row that was read."""

    section: SettledData
    train: Sequence[Tokens]
    validation: Sequence[Tokens]
    test: Sequence[Tokens]
    validation_records: Sequence[Record]
    """Of each validation row what was said, in their order; none for texts."""
    test_records: Sequence[Record]
    train_labels: dict[str, int]
    """Training rows of each class; none where rows have no classes."""
    held_out_prompts: list[str]
    template: Template
    ledger: dict[str, Any]
    labels: str
    """Fingerprint of what trains (batches.labels_hash)."""
    fingerprint: str
    """Of all three parts, in their order."""
    decisions: list[Decision]
    notes: list[str]
    folder: Path
    sources: dict[str, dict[str, str]]
    """Key of the recipe (path, validation_path, test_path) -> each file that was read -> sha256 of its bytes."""


def prepare_data(section: SomeData, seed: int, tokenizer: PreTrainedTokenizerBase, progress: Progress | None = None, context: int | None = None) -> Prepared:
    """`context`: positions of the base, if it says. Raises DataError when a row cannot be read, or nothing is left to train on."""
    readings = open_parts(section)
    settled = readings[0][1].section
    check_kinds(settled)
    template, decisions = template_for(settled, tokenizer)
    key = cache_key(
        sources=[[part, reading.source.sha256, [os.path.realpath(name) for name in reading.source.files]] for part, reading in readings],
        section=settled.model_dump(mode="json", exclude=NOT_IN_ROWS), seed=seed, template=asdict(template), tokenizer=tokenizer_hash(tokenizer),
        context=context,
    )  # fmt: skip
    meta = find_or_build(key, lambda folder: _Build(readings, template, tokenizer, seed, folder, progress, context).run())
    return _opened(settled, readings, template, decisions, meta)


def template_for(section: SettledData, tokenizer: PreTrainedTokenizerBase) -> tuple[Template, list[Decision]]:
    if not isinstance(section, ChatData):
        return Template("text"), []
    template, decision = choose_template(
        section.prompt_template, section.system, tokenizer, fold_system=section.system_as == "user", instruction=getattr(section, "instruction", None)
    )
    return template, [decision]


def _opened(section: SettledData, readings: list[tuple[int, Reading]], template: Template, decisions: list[Decision], meta: dict[str, Any]) -> Prepared:
    rows: dict[str, Sequence[Tokens]] = {part: stored_rows(meta, part) for part in PARTS}
    ledger = meta["ledger"]
    if section.packing == "best_fit":
        documents = stored_rows(meta, "train")
        rows["train"] = PackedRows(documents, best_fit(documents.lengths, section.max_length))
        full = ledger["train_all_tokens"] / (len(rows["train"]) * section.max_length)
        decisions = [*decisions, Decision("packing", "best_fit", f"{len(documents)} documents in {len(rows['train'])} rows, {full:.1%} full")]
        ledger = {**ledger, "train_rows": len(rows["train"])}
    split, supervised = (Decision(*one) for one in meta["decisions"])
    validation, test = (StoredRecords(_records_file(Path(meta["folder"]), part)) for part in HELD_OUT)
    return Prepared(
        section, rows["train"], rows["validation"], rows["test"], validation, test, meta["labels"], meta["prompts"], template, ledger,
        meta["parts"]["train"]["labels"],
        meta["fingerprint"], [*readings[0][1].decisions, split, *decisions, supervised], meta["notes"], Path(meta["folder"]),
        {GIVEN[part]: _named([(source.name, source.sha256) for source in reading.source.parts]) for part, reading in readings},
    )  # fmt: skip


def _named(files: list[tuple[str, str]]) -> dict[str, str]:
    """By the last part of their path, which is told apart by a number where several files have it."""
    named: dict[str, str] = {}
    for path, digest in files:
        name = path if path.startswith("hub:") else Path(path).name
        count = 1 + sum(1 for other in named if other == name or other.startswith(f"{name} #"))
        named[name if count == 1 else f"{name} #{count}"] = digest
    return named


class _Build:
    """One preparation, from the first reading to the sums."""

    def __init__(
        self, readings: list[tuple[int, Reading]], template: Template, tokenizer: PreTrainedTokenizerBase, seed: int, folder: Path, progress: Progress | None,
        context: int | None,
    ) -> None:  # fmt: skip
        self.context = context
        self.readings, self.template, self.seed, self.progress = readings, template, seed, progress
        self.section = readings[0][1].section
        self.encoder = Encoder(tokenizer)
        largest_id = max(tokenizer.get_vocab().values())
        self.writers = [RowWriter(folder / f"{part}.arrow", largest_id) for part in PARTS]
        self.records = {part: RecordWriter(_records_file(folder, part)) for part in HELD_OUT} if isinstance(self.section, ChatData) else {}
        self.bins: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.train_labels: Counter[str] = Counter()
        self.augmented = 0
        self.bill = Bill(self.section.max_length)

    def run(self) -> dict[str, Any]:
        book = isinstance(self.section, TextData) and self.section.rows == "book"
        survey = survey_records(self.readings, not book and self.section.near_duplicates != "ignore", self.progress)
        skipped = sum((reading.source.left_out for _, reading in self.readings), Counter[str]())
        if not (survey.refused == 0).any():
            raise DataError(self._nothing_left(survey), hint="is this the right file?")
        split = split_records(survey, self.section, self.seed)
        prompts = self._write(survey, split)
        self.left_out += split.left_out + skipped
        for records in self.records.values():
            records.close()
        parts = {part: writer.close() for part, writer in zip(PARTS, self.writers, strict=True)}
        trained = sum(count for name, count in self.bins.items() if name.startswith("trained"))
        if not parts["train"]["rows"] or (trained < SMALLEST_TRAIN_ROWS and not book):
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
            seen = f"{self.section.paths[0]}: {trained} of {len(survey)} rows are left to train on: {reasons}"
            raise DataError(seen, hint="raise data.max_length, or look at the file")
        decisions = [split.decision, self._supervised(parts["train"])]
        return {
            "parts": parts, "labels": dict(self.train_labels),
            "ledger": self._ledger(len(survey) + skipped.total(), parts), "prompts": prompts, "notes": self._notes(survey, split),
            "decisions": [[d.name, d.value, d.reason] for d in decisions], "fingerprint": "-".join(parts[part]["order"][:16] for part in PARTS),
        }  # fmt: skip

    def _write(self, survey: Survey, split: Split) -> list[str]:
        """Second reading. Returns the prompts that the report shows when the recipe asks none."""
        test = np.flatnonzero(split.side == TEST)
        wanted = set(test[:: max(1, len(test) // DEFAULT_PROMPTS)][:DEFAULT_PROMPTS].tolist())
        prompts = []
        problems = Problems(self.section.on_bad_row)
        section = self.section
        sinks: list[_TextSink | _ChatSink]
        if isinstance(section, TextData):
            sinks = [_TextSink(self, side, section) for side in range(len(PARTS))]
        else:
            fitter = Fitter(self.template, self.encoder, section.max_length, section.loss)
            sinks = [_ChatSink(self, side, section, fitter, problems) for side in range(len(PARTS))]
        row = 0
        for _, reading in self.readings:
            for outcome in reading.outcomes():
                side = int(split.side[row])
                if isinstance(outcome, Record) and side != OUT:
                    sinks[side].take(outcome)
                    if row in wanted:
                        prompts.append(_prompt(outcome))
                row += 1
                if self.progress and row % BATCH == 0:
                    self.progress("tokenising", row)
        for sink in sinks:
            sink.close()
        problems.raise_if_any()
        self.left_out += problems.left_out
        return prompts

    def _ledger(self, rows_read: int, parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Raises AssertionError when a row is in no bin, or in two: our bug, never to be passed over."""
        counted = self.bins.total() + self.left_out.total()
        assert counted == rows_read, f"{rows_read} rows were read and {counted} are accounted for"
        return {
            "records_read": rows_read,
            "bins": {name: self.bins[name] for name in BINS if self.bins[name]},
            "left_out": [{"reason": reason, "count": count} for reason, count in self.left_out.items()],
            "augmented": self.augmented,
            **{f"{part}_rows": parts[part]["rows"] for part in PARTS},
            **{f"{part}_tokens": parts[part]["supervised"] for part in PARTS},
            **{f"{part}_all_tokens": parts[part]["tokens"] for part in PARTS},
            "truncation": None if isinstance(self.section, TextData) else self.bill.as_json(),
        }

    def _supervised(self, train: dict[str, Any]) -> Decision:
        share = train["supervised"] / max(1, train["tokens"])
        loss = "text" if isinstance(self.section, TextData) else self.section.loss
        what = {"text": "everything but the begin marks", "all": "prompts and answers", "last": "the last answers and their end marks"}
        return Decision(
            "supervised", f"{train['supervised']:,} of {train['tokens']:,} tokens ({share:.1%})",
            f"{what.get(loss, 'answers and their end marks')} are in the loss",
        )  # fmt: skip

    def _notes(self, survey: Survey, split: Split) -> list[str]:
        notes = [note for _, reading in self.readings for note in (*reading.source.notes, *reading.notes)] + split.notes
        reasons = [reason for reason in survey.reasons[1:] if reason != GUTENBERG]
        notes += [f"{_rows(self.left_out[reason])} left out: {reason} (first {survey.first_refused[reason]})" for reason in reasons]
        shortened = sum(count for name, count in self.bins.items() if name.endswith(SHORTENED))
        too_long = sum(count for reason, count in self.left_out.items() if reason.startswith("the answer does not fit"))
        if shortened or too_long:
            enough = self.bill.enough()
            mend = f"; data.max_length={enough} keeps 99 % of the rows whole" if enough > self.section.max_length else ""
            if mend and self.context and enough > self.context:
                mend = f"; {enough} would keep 99 % of the rows whole, but the base has {self.context} positions"
            notes.append(f"{_rows(shortened)} shortened, {_rows(too_long)} left out, because they are longer than max_length {self.section.max_length}{mend}")
        for side in (VALIDATION, TEST):
            if split.count(side) and not any(name.startswith(SIDES[side]) for name in self.bins):
                notes.append(f"none of the {_rows(split.count(side))} for {SIDES[side]} is left, so nothing is measured on them")
        if self.section.augment and not self.augmented:
            notes.append(f"data.augment made no copy: {', '.join(self.section.augment)} found nothing to change")
        return notes

    def _nothing_left(self, survey: Survey) -> str:
        reasons = ", ".join(f"{int((survey.refused == number).sum())} {reason}" for number, reason in enumerate(survey.reasons) if number)
        return f"{self.section.paths[0]}: 0 of {len(survey)} rows are left: {reasons or 'the file holds none'}"


class _ChatSink:
    """Conversations of one side: rendered, tokenised and fitted many at a time."""

    def __init__(self, build: _Build, side: int, section: ChatData, fitter: Fitter, problems: Problems) -> None:
        self.build, self.side, self.fitter, self.problems = build, side, fitter, problems
        self.name = "trained" if side == TRAIN else SIDES[side]
        self.changed = partial(changed_copies, kinds=section.augment, copies=section.augment_copies, seed=build.seed)
        self.augments = bool(section.augment) and side == TRAIN
        self.held: list[Record] = []
        self.characters = 0

    def take(self, record: Record) -> None:
        self.held.append(record)
        self.characters += sum(len(message["content"]) for message in record.messages)
        if len(self.held) == BATCH or self.characters >= BATCH_CHARACTERS:
            self.close()

    def close(self) -> None:
        build = self.build
        fitted = self.fitter.fit(self.held, build.bill)
        for record, one in zip(self.held, fitted, strict=True):
            if one.error is not None:
                what = one.error.message.removeprefix(f"{record.file}:{record.line}: ")
                self.problems.add(f"{record.file}:{record.line}", what, "the template refuses it", one.error.hint)
            elif one.tokens is None:
                build.left_out[one.reason] += 1
            else:
                build.bins[self.name + SHORTENED * one.shortened] += 1
        kept = [record for record, one in zip(self.held, fitted, strict=True) if one.tokens is not None]
        copies: list[Fitted] = []
        if self.augments:
            copies = [one for one in self.fitter.fit([copy for record in kept for copy in self.changed(record)]) if one.tokens is not None]
            build.augmented += len(copies)
        build.writers[self.side].append([one.tokens for one in (*fitted, *copies) if one.tokens is not None])
        if self.side == TRAIN:
            build.train_labels.update(record.label for record in kept if record.label)
        else:
            build.records[PARTS[self.side]].append(kept)
        self.held, self.characters = [], 0


class _TextSink:
    """Texts of one side: a book is joined and cut into blocks as it comes, other texts are cut one by one."""

    def __init__(self, build: _Build, side: int, section: TextData) -> None:
        self.build, self.side, self.section = build, side, section
        self.name = "trained" if side == TRAIN else SIDES[side]
        self.held: list[Record] = []
        self.characters = 0
        self.file: str | None = None
        self.book: list[BlockCutter] = []
        """Of the book that is being cut; none before its first piece."""

    def take(self, record: Record) -> None:
        if self.section.rows == "book" and self.file not in (None, record.file):
            self.close()  # a file is a text of its own
        self.file = record.file
        self.held.append(record)
        self.characters += len(record.text)
        if self.characters >= BATCH_CHARACTERS or (self.section.rows == "separate" and len(self.held) == BATCH):
            self._cut_held()

    def close(self) -> None:
        self._cut_held()
        self._end_book()

    def _cut_held(self) -> None:
        if self.section.rows == "separate":
            self._cut_separate()
        elif self.held:
            self._cut_book()
        self.held, self.characters = [], 0

    def _cut_separate(self) -> None:
        encoder = self.build.encoder
        for text in encoder.encode([render_record(record, self.build.template, encoder.tokenizer) for record in self.held]):
            blocks = [cutter.feed(text.ids) + cutter.close() for cutter in self._cutters(text.file, text.line)]
            if blocks[0]:
                self.build.bins[self.name] += 1
            else:
                self.build.left_out["nothing to learn from"] += 1
            self._write(blocks)

    def _cut_book(self) -> None:
        """What is held goes on where the last piece ended."""
        begins = not self.book
        if begins:
            self.book = self._cutters(self.held[0].file, self.held[0].line)
        said = self.section.separator.join(record.text for record in self.held)
        ids = self.build.encoder.text(said if begins else self.section.separator + said, begins)
        self.build.bins[self.name] += len(self.held)
        self._write([cutter.feed(ids) for cutter in self.book])

    def _end_book(self) -> None:
        self._write([cutter.close() for cutter in self.book])
        self.book = []

    def _cutters(self, file: str, line: int) -> list[BlockCutter]:
        """One, and for `shift` some more whose blocks begin later, each a part of a block further."""
        encoder, length = self.build.encoder, self.section.max_length
        copies = self.section.augment_copies if self.side == TRAIN and self.section.augment else 0
        skips = [length * number // (copies + 1) for number in range(copies + 1)]
        return [BlockCutter(encoder.begin, encoder.end_id, length, file, line, skip) for skip in skips]

    def _write(self, blocks: list[list[Tokens]]) -> None:
        """`blocks`: of each cutter; those behind the first are copies."""
        self.build.augmented += sum(map(len, blocks[1:]))
        for own in blocks:
            self.build.writers[self.side].append(own)


def _records_file(folder: Path, part: str) -> Path:
    return folder / f"{part}.jsonl"


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"


def _prompt(record: Record) -> str:
    """The question of a held-out conversation's first turn, or the opening words of a held-out passage."""
    users = [message["content"] for message in record.messages if message["role"] == "user"]
    return users[0] if users else " ".join(record.text.split()[:OPENING_WORDS])
