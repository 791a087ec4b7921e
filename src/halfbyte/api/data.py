"""What the data say, before anything trains: prepare, audit and show."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from halfbyte.data.audit import Audit
from halfbyte.data.audit import audit as audit_parts
from halfbyte.data.batches import epoch_steps
from halfbyte.data.parts import open_parts
from halfbyte.data.prepare import Prepared, prepare_data, template_for
from halfbyte.data.show import Shown, show_batch, show_examples, show_records, show_rows
from halfbyte.errors import DataError
from halfbyte.generate.prompts import pad_id
from halfbyte.model.base import Base, check_length, find_base
from halfbyte.model.load import load_tokenizer
from halfbyte.recipe.load import Loaded
from halfbyte.recipe.plan import Decision
from halfbyte.recipe.schema import ChatData, Recipe, SomeData, TextData
from halfbyte.runs.events import Event

# A listener hears of progress so often.
ROWS_BETWEEN_WORDS = 1000
Listener = Callable[[Event], None]
T = TypeVar("T")


def prepare(loaded: Loaded, listener: Listener | None = None) -> Prepared:
    """From the file to the rows that train, validate and test, kept for the runs to come. Every row read is kept, held out or counted as left out."""
    base = find_base(loaded.recipe.base)
    return prepare_for(loaded.recipe, base, load_tokenizer(base), listener)


def audit(section: SomeData, listener: Listener | None = None) -> Audit:
    """What a person should know of the data before training on them."""
    readings = open_parts(section)
    first = readings[0][1].section
    found = audit_parts([(part, _told(reading.outcomes(), listener)) for part, reading in readings], isinstance(first, TextData) and first.rows == "book")
    decisions = dict.fromkeys(decision for _, reading in readings for decision in reading.decisions)
    notes = [note for _, reading in readings for note in (*reading.source.notes, *reading.notes)]
    notes += [f"{count} row{'s' * (count != 1)} left out: {reason}" for _, reading in readings for reason, count in reading.source.left_out.items()]
    unread = sum(reading.source.left_out.total() for _, reading in readings)
    return replace(found, left_out=found.left_out + unread, decisions=list(decisions), notes=notes)


def show(loaded: Loaded, stage: str, count: int, line: int | None = None, listener: Listener | None = None) -> tuple[list[Shown], list[tuple[str, str]]]:
    """The first records, examples, rows of tokens, or the first batch of a recipe (`line`: those from there on), and the facts about them."""
    recipe = loaded.recipe
    if stage in ("record", "example"):
        shown, decisions = _show_read(recipe, stage, count, line)
        facts = []
    else:
        prepared, shown = _show_prepared(recipe, stage, count, line, listener)
        decisions, facts = prepared.decisions, [("labels", prepared.labels)]
    if not shown and line is not None and stage == "tokens" and isinstance(recipe.data, TextData) and recipe.data.rows != "separate":
        raise DataError(
            f"{', '.join(recipe.data.paths)}: a block of a book names the line where its text begins, not {line}", hint="--stage record shows its lines"
        )
    if not shown:
        where = "" if line is None else f" from line {line} on"
        raise DataError(f"{', '.join(recipe.data.paths)}: no {stage} to show{where}", hint="halfbyte prepare tells what became of every row")
    return shown, [("recipe", recipe.name), *((d.name, f"{d.value} ({d.reason})") for d in decisions), *facts]


def _show_read(recipe: Recipe, stage: str, count: int, line: int | None) -> tuple[list[Shown], list[Decision]]:
    readings = open_parts(recipe.data)
    section = readings[0][1].section
    records = (record for _, reading in readings for record in reading.records() if line is None or record.line >= line)
    if stage == "record":
        return list(show_records(records, count)), readings[0][1].decisions
    tokenizer = load_tokenizer(find_base(recipe.base))
    template, decisions = template_for(section, tokenizer)
    loss = section.loss if isinstance(section, ChatData) else "answers"
    return list(show_examples(records, template, tokenizer, loss, count)), [*readings[0][1].decisions, *decisions]


def _show_prepared(recipe: Recipe, stage: str, count: int, line: int | None, listener: Listener | None) -> tuple[Prepared, list[Shown]]:
    base = find_base(recipe.base)
    tokenizer = load_tokenizer(base)
    prepared = prepare_for(recipe, base, tokenizer, listener)
    if stage == "batch":
        steps = epoch_steps(prepared.train, recipe.train.batch_size, recipe.train.gradient_accumulation_steps, pad_id(tokenizer), recipe.seed, epoch=0)
        return prepared, [one for batch in next(steps) for one in show_batch(batch, tokenizer)]
    rows = (row for row in prepared.train if line is None or row.line >= line)
    return prepared, list(show_rows(rows, tokenizer, count))


def _told(records: Iterable[T], listener: Listener | None) -> Iterator[T]:
    """The same rows; the listener hears how many there were."""
    for number, record in enumerate(records, 1):
        if listener and number % ROWS_BETWEEN_WORDS == 0:
            listener({"event": "progress", "stage": "reading", "rows": number})
        yield record


def prepare_for(recipe: Recipe, base: Base, tokenizer: PreTrainedTokenizerBase, listener: Listener | None) -> Prepared:
    """Raises RecipeError for rows longer than the base has positions."""
    progress = (lambda stage, rows: listener({"event": "progress", "stage": stage, "rows": rows})) if listener else None
    check_length(recipe.data.max_length, base)
    return prepare_data(recipe.data, recipe.seed, tokenizer, progress, base.context)
