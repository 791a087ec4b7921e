"""What is odd in the data, before anything trains on it: counts, a few masked samples with file and line, and the mend.

One pass over the rows, also over those that are left out. What is remembered of them is bounded: hashes of the first MOST_COMPARED rows,
labels, a sample of the prompts. Nothing is changed and nothing refused here. Personal data are masked in every sample; what no pattern finds is not, and is not
counted.
"""

import math
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from halfbyte.data.faults import ASCII, script_of, spells_missing, text_faults
from halfbyte.data.gutenberg import REASON as GUTENBERG
from halfbyte.data.labels import label_form
from halfbyte.data.personal import KINDS, find_personal, mask
from halfbyte.data.records import Record
from halfbyte.data.shapes import Refused
from halfbyte.data.split import ORNAMENT, TRAIN
from halfbyte.recipe.plan import Decision

MOST_COMPARED = 1_000_000  # rows that are compared with one another, about 400 bytes of memory each
MOST_COUNTED = 100_000  # different answers, labels or lines that are counted
PROMPTS_KEPT = 1000  # drawn from all, to look for a constant part in this many characters of each end
END_CHARACTERS = 2000
CONSTANT_SHARE = 0.9
CONSTANT_CHARACTERS = 20
REPEATED_ROWS = 5  # an answer or a line that comes so often is repeated
ALIKE_SHARE = 0.5
LONG_CHARACTERS = 20_000  # about 5,000 tokens of English: more than the context of many bases
SHORT_CHARACTERS = 10
FOREIGN_SHARE = 0.3  # of a row's letters, in another script than the rest of the data
RARE_ROWS = 3  # a class needs a row on each of the three sides
RARE_SHARE = 1 / 20  # of the rows of the largest class

Level = Literal["note", "warning"]
LEFT_OUT = "left out: "  # and the reason
LEFT_OUT_WAY: tuple[Level, str] = ("warning", "Nothing is learned from these rows: mend them, or delete them if that is meant.")
_CHECK_COLUMNS = "Check data.prompt_column and data.response_column"
# Every finding, in the order in which it is shown: how bad it is, and the mend.
FINDINGS: dict[str, tuple[Level, str]] = {
    "no records": ("warning", "Check data.kind and the columns: no row has anything to learn from."),
    "prompt equals answer": ("warning", f"{_CHECK_COLUMNS}: the model would learn to repeat what it is asked."),
    "same answer": ("warning", f"{_CHECK_COLUMNS}: the model would learn to say this to everything."),
    "one class": ("warning", "Add rows of another class, or check data.label_column: there is nothing to tell apart."),
    "rare classes": (
        "warning",
        f"Add rows of these classes, or join them with another by data.merge_labels: training refuses a class with fewer than {RARE_ROWS} rows, "
        "one for each of train, validation and test (fewer where these are given as files).",
    ),
    "labels that differ by form": ("warning", "Make one class of them with data.merge_labels."),
    "conflicting labels": ("warning", "Correct these rows: the same text has two classes."),
    "same prompt, different answers": ("note", "Keep one answer of each, unless several are right."),
    "stands in train and in a held-out file": ("warning", "Set data.drop_overlap=true, which leaves out those that train."),
    "stands in both held-out files": ("warning", "Delete it from one of the two files."),
    "repeated paragraphs": ("note", "Delete them from the file if they say nothing: a book is kept as it stands."),
    "exact duplicates": ("note", "Leave data.keep_duplicates=false, which trains each row once."),
    "duplicates but for case and blanks": ("note", "Set data.near_duplicates=drop to keep the first of each."),
    "rows not compared": ("note", "Audit the file in parts: only the first rows were compared with one another."),
    "constant opening": ("warning", "Move it out of the rows into data.system or data.instruction, and keep data.loss=answers."),
    "constant ending": ("warning", "Move it out of the rows into data.prompt_template, and keep data.loss=answers."),
    "texts that begin alike": ("note", "Delete the opening from the rows if it says nothing: the model would learn to begin everything with it."),
    "texts that end alike": ("note", "Delete the ending from the rows if it says nothing: the model would learn to end everything with it."),
    "prompts that end in a blank": ("warning", "Cut the blanks at the end of the prompts: an answer begins with its own."),
    "typed-in control marks": ("warning", "Delete the marks from the file: the template writes its own, and these are trained as plain characters."),
    GUTENBERG: ("warning", "Leave data.keep_boilerplate=false, which leaves out what stands outside the marks of a book; delete what is left."),
    "phrases of web pages": ("note", "Delete such lines from the file."),
    "repeated lines": ("note", "Delete these lines from the file if they say nothing."),
    "HTML": ("note", "Convert the file to plain text, unless the model is to write HTML."),
    "double-encoded text": ("warning", "Export the file again as UTF-8: it was read as cp1252 once, and data.encoding cannot undo that."),
    "lost characters": ("warning", "Export the file again as UTF-8, or state data.encoding: U+FFFD stands where a character was lost."),
    "control characters": ("warning", "Delete them, or state data.encoding: U+0080 to U+009F are punctuation of cp1252 that was read as Latin-1."),
    "direction marks": ("note", "Delete them unless the text is written from right to left."),
    "zero-width characters": ("note", "Delete them: they cannot be seen, and they change the tokens."),
    "private-use characters": ("note", "Replace them: only the font of their maker shows them."),
    "not text": ("note", "Look at these rows: more signs than letters, or no blank for long, as in base64, dumps and minified code."),
    "another script": ("note", "Check that these rows belong here; state data.encoding if the letters are wrong."),
    "another script than Latin": ("note", "Look at show --stage tokens: a base that does not know the script needs many tokens for it."),
    "spell a missing value": ("note", "They are kept as the text that they spell (NA, None, null): delete these rows if a value is missing there."),
    "very long rows": ("note", "Set data.max_length for them, or cut them into parts."),
    "very short rows": ("note", "Check that these rows say something."),
    **{f"personal data: {kind}": ("warning", f"Set data.redact=[{kind}] to replace them by [{kind.upper()}].") for kind in KINDS},
}


@dataclass(frozen=True)
class Finding:
    """`count` of `of` rows (of lines, for repeated lines) are so; samples are masked and say where they stand."""

    name: str
    count: int
    of: int
    samples: list[str]
    advice: str
    level: Level


@dataclass(frozen=True)
class Audit:
    """What was found in so many records. No finding does not mean that the data are good, or anonymous."""

    records: int
    findings: list[Finding]
    left_out: int = 0
    """Rows that are no record; each stands in a finding."""
    decisions: list[Decision] = field(default_factory=list)
    """How the file was read."""
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return asdict(self)


def audit(parts: Sequence[tuple[int, Iterable[Record | Refused]]], book: bool = False, max_samples: int = 3) -> Audit:
    """Reads the rows of each part (split.py) once and says what is odd about them. `book`: they follow one another, and none is dropped."""
    seen = _Seen(max_samples, book, given=len(parts) > 1)
    for part, outcomes in parts:
        for outcome in outcomes:
            if isinstance(outcome, Refused):
                seen.refuse(outcome)
            else:
                seen.take(outcome, part)
    seen.close()
    left_out = {name: LEFT_OUT_WAY for name in seen.tallies if name.startswith(LEFT_OUT)}
    findings = []
    for name, (level, advice) in {**left_out, **FINDINGS}.items():
        if (tally := seen.tallies[name]).count:
            findings.append(Finding(name, tally.count, tally.of or seen.rows, tally.samples[:max_samples], advice, level))
    return Audit(seen.rows, findings, seen.left_out)


@dataclass
class _Tally:
    """A finding in the making; `of` is 0 where it counts rows."""

    count: int = 0
    samples: list[str] = field(default_factory=list)
    of: int = 0


class _Repeats:
    """How often each of many texts came, by its hash; where it stands is kept only of those that came REPEATED_ROWS times."""

    def __init__(self) -> None:
        self.rows = 0
        self.counts: Counter[int] = Counter()
        self.samples: dict[int, str] = {}

    def add(self, text: str, record: Record) -> None:
        self.rows += 1
        key = hash(text)
        if key in self.counts or len(self.counts) < MOST_COUNTED:
            self.counts[key] += 1
            if self.counts[key] == REPEATED_ROWS and any(map(str.isalnum, text)):
                self.samples[key] = f"{_place(record)}: {_shown(text, 0, len(text))}"

    def tally(self, most: int | None = None) -> _Tally:
        """Of the repeated ones, or of the commonest `most` of them."""
        keys = sorted(self.samples, key=self.counts.__getitem__, reverse=True)[:most]
        return _Tally(sum(self.counts[key] for key in keys), [f"{self.samples[key]} (in {_rows(self.counts[key])})" for key in keys], self.rows)


class _Ends(NamedTuple):
    """Both ends of a prompt, the second one backwards, and where it stands."""

    place: str
    opening: str
    ending: str
    length: int


class _Seen:
    """What is remembered of the records so far."""

    def __init__(self, max_samples: int, book: bool, given: bool):
        self.max_samples = max_samples
        self.book = book
        self.rows = 0
        self.left_out = 0
        self.tallies: defaultdict[str, _Tally] = defaultdict(_Tally)
        self.row_places: dict[int, str] = {}
        self.forms: set[int] = set()
        # Part and place of what each row asks, only where there are files to be compared.
        self.askers: dict[int, tuple[int, str]] | None = {} if given else None
        self.prompt_answers: dict[int, int] = {}
        self.answers = _Repeats()
        self.lines = _Repeats()
        self.labels: Counter[str] = Counter()
        self.label_places: dict[str, str] = {}
        self.prompts: list[_Ends] = []
        self.random = random.Random(0)
        self.scripts: Counter[str] = Counter()

    def refuse(self, refused: Refused) -> None:
        """One more row that is no record."""
        self.left_out += 1
        name = refused.reason if refused.reason == GUTENBERG else LEFT_OUT + refused.reason
        self._note(name, refused, refused.seen, 0, len(refused.seen))

    def take(self, record: Record, part: int) -> None:
        """One more record."""
        self.rows += 1
        whole = "\n".join([message["content"] for message in record.messages]) if record.messages else record.text
        if record.messages:
            self._take_turns(record)
        if any(map(spells_missing, [message["content"] for message in record.messages] or [whole])):
            self._note("spell a missing value", record, whole, 0, len(whole))
        words = whole.split()
        if self._compare(record, part, whole, words) and not record.messages:
            for line in {line.strip() for line in whole.splitlines()}:
                if len(line) >= CONSTANT_CHARACTERS:
                    self.lines.add(line, record)
        self._keep_prompt(record, record.asked if record.messages else whole)
        if len(whole) > LONG_CHARACTERS:
            self._note("very long rows", record, whole, said=f" ({len(whole):,} characters)")
        elif 0 < len(whole.strip()) < SHORT_CHARACTERS:
            self._note("very short rows", record, whole, 0, len(whole))
        for name, start, end in text_faults(whole, words):
            self._note(name, record, whole, start, end)
        self._take_script(record, whole)
        for kind, hit in {hit.kind: hit for hit in reversed(find_personal(whole))}.items():
            self._note(f"personal data: {kind}", record, whole, hit.start, hit.end)

    def _take_turns(self, record: Record) -> None:
        asked, answered = record.asked, record.answered
        self.answers.add(answered, record)
        if asked.strip() == answered.strip():
            self._note("prompt equals answer", record, asked)
        if any(message["role"] == "user" and message["content"][-1:].isspace() for message in record.messages):
            self._note("prompts that end in a blank", record, asked, len(asked.rstrip()) - 20, len(asked))
        if record.label and (record.label in self.labels or len(self.labels) < MOST_COUNTED):
            self.labels[record.label] += 1
            self.label_places.setdefault(record.label, _place(record))

    def _compare(self, record: Record, part: int, whole: str, words: list[str]) -> bool:
        """Whether no row before said the same."""
        row, form = hash((whole, record.answered, record.label)), _form(words)
        other = self._other_part(record, part, form)
        if other:
            name = "stands in train and in a held-out file" if other[0] == TRAIN else "stands in both held-out files"
            self._note(name, record, whole, said=f" (as {other[1]})")
        elif row in self.row_places:
            if not self.book or len(whole) >= ORNAMENT:
                self._note("repeated paragraphs" if self.book else "exact duplicates", record, whole, said=f" (as {self.row_places[row]})")
            return False
        elif form in self.forms and not self.book:
            self._note("duplicates but for case and blanks", record, whole)
        if len(self.row_places) >= MOST_COMPARED:
            self._note("rows not compared", record, whole)
            return True
        self.row_places[row] = _place(record)
        self.forms.add(form)
        if record.messages and self.prompt_answers.setdefault(hash(record.asked), answer := hash(record.answered)) != answer:
            self._note("conflicting labels" if record.label else "same prompt, different answers", record, whole)
        return not other

    def _other_part(self, record: Record, part: int, form: int) -> tuple[int, str] | None:
        """The part and place of a row of another part that asks the same. A row of a book has to be long enough to be told from others."""
        if self.askers is None or (self.book and len(record.text) < ORNAMENT):
            return None
        key = _form(record.asked.split()) if record.messages else form
        if len(self.askers) < MOST_COMPARED:
            self.askers.setdefault(key, (part, _place(record)))
        first = self.askers.get(key)
        return first if first and first[0] != part else None

    def _keep_prompt(self, record: Record, prompt: str) -> None:
        """A sample of all prompts in which each is as likely: algorithm R (Vitter 1985)."""
        at = len(self.prompts) if self.rows <= PROMPTS_KEPT else self.random.randrange(self.rows)
        if at < PROMPTS_KEPT:
            self.prompts[at : at + 1] = [_Ends(_place(record), prompt[:END_CHARACTERS], prompt[: -END_CHARACTERS - 1 : -1], len(prompt))]

    def _take_script(self, record: Record, whole: str) -> None:
        others = "" if whole.isascii() else ASCII.sub("", whole)
        if len(others) * 10 < len(whole):  # most rows of most files: not worth counting letters
            self.scripts["LATIN"] += 1
            if letter := re.search("[A-Za-z]", whole):
                self._note("script LATIN", record, whole, *letter.span())
            return
        letters = Counter({"LATIN": sum(map(str.isalpha, whole)) - sum(map(str.isalpha, others))})
        for character, count in Counter(others).items():
            if character.isalpha():
                letters[script_of(character)] += count
        self.scripts[letters.most_common(1)[0][0]] += 1
        for script, count in letters.items():
            if script and count > FOREIGN_SHARE * letters.total():
                start = next((at for at, character in enumerate(whole) if character.isalpha() and script_of(character) == script), 0)
                self._note(f"script {script}", record, whole, start, start + 20)

    def close(self) -> None:
        """What can be said only when all records are known."""
        read = self.rows + self.left_out
        for name, tally in self.tallies.items():
            if name.startswith(LEFT_OUT) or name == GUTENBERG:
                tally.of = read
        if read and not self.rows:
            self.tallies["no records"] = _Tally(read, of=read)
        self._close_constants()
        if self.labels:
            self._close_labels()
        alike = self.answers.tally(most=1)
        if alike.count and not self.labels and alike.count >= ALIKE_SHARE * alike.of:
            self.tallies["same answer"] = alike
        self.tallies["repeated lines"] = self.lines.tally()
        main = self.scripts.most_common(1)[0][0] if self.scripts else ""
        others = [tally for name, tally in self.tallies.items() if name.startswith("script ") and name != f"script {main}"]
        if main not in ("", "LATIN"):
            self.tallies["another script than Latin"] = _Tally(self.scripts[main], self.tallies[f"script {main}"].samples)
        self.tallies["another script"] = _Tally(sum(tally.count for tally in others), [sample for tally in others for sample in tally.samples])

    def _close_labels(self) -> None:
        most, total = max(self.labels.values()), self.labels.total()
        forms = defaultdict(list)
        for label in self.labels:
            forms[label_form(label)].append(label)
        groups = {
            "one class": [[label] for label in self.labels if len(self.labels) == 1 and most > 1],
            "rare classes": [[label] for label, count in self.labels.items() if count < max(RARE_ROWS, RARE_SHARE * most)],
            "labels that differ by form": [labels for labels in forms.values() if len(labels) > 1],
        }
        for name, found in groups.items():
            samples = [" and ".join(map(self._named, labels[:4])) for labels in found[: self.max_samples]]
            self.tallies[name] = _Tally(sum(self.labels[label] for labels in found for label in labels), samples, total)

    def _named(self, label: str) -> str:
        return f"{self.label_places[label]}: {_shown(label, 0, len(label))!r} (in {_rows(self.labels[label])})"

    def _close_constants(self) -> None:
        """The longest opening and ending that nine in ten prompts share, and what part of all prompt characters they are."""
        if len(self.prompts) < REPEATED_ROWS:
            return
        openings, endings = [prompt.opening for prompt in self.prompts], [prompt.ending for prompt in self.prompts]
        names, what = (
            (("constant opening", "constant ending"), "that is asked") if self.answers.rows else (("texts that begin alike", "texts that end alike"), "text")
        )
        for name, ends, step in zip(names, (openings, endings), (1, -1), strict=True):
            part = _shared_opening(ends)
            if len(part.strip()) >= CONSTANT_CHARACTERS:
                holders = [prompt for prompt, end in zip(self.prompts, ends) if end.startswith(part)]
                share = len(part) * len(holders) / sum(prompt.length for prompt in self.prompts)
                sample = f"{holders[0].place}: {_shown(part[::step], 0, len(part))} ({len(part)} characters, {_percent(share)} of all {what})"
                self.tallies[name] = _Tally(round(self.rows * len(holders) / len(self.prompts)), [sample])

    def _note(self, name: str, record: Record | Refused, text: str, start: int = 0, end: int = 0, said: str = "") -> None:
        tally = self.tallies[name]
        tally.count += 1
        if len(tally.samples) < self.max_samples:
            tally.samples.append(f"{_place(record)}: {_shown(text, start, end)}{said}")


def _place(record: Record | Refused) -> str:
    return f"{record.file}:{record.line}"


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "less than 1%"


def _form(words: list[str]) -> int:
    """The same for texts that differ only in case, blanks and the form of characters."""
    return hash(unicodedata.normalize("NFKC", " ".join(words)).casefold())


def _shown(text: str, start: int, end: int) -> str:
    """What stands around text[start:end], on one line, masked, with nothing in it that a terminal would obey."""
    first, last = max(0, start - 20), min(len(text), min(end, start + 80) + 40)
    near = max(0, first - 10_000)
    said = mask(text[near : last + 10_000], first - near, last - near)
    said = "".join(c if c.isprintable() else " " if c in "\n\r\t" else f"\\u{ord(c):04x}" for c in said)
    return f"{'…' if first else ''}{said}{'…' if last < len(text) else ''}"


def _shared_opening(texts: list[str]) -> str:
    """The longest opening of at least CONSTANT_SHARE of the texts: in sorted order, those that share one stand together."""
    ordered = sorted(texts)
    span = math.ceil(CONSTANT_SHARE * len(ordered)) - 1
    pairs = list(zip(ordered, ordered[span:]))
    alike = [next((at for at, (one, other) in enumerate(zip(*pair)) if one != other), min(map(len, pair))) for pair in pairs]
    return max((first[:length] for (first, _), length in zip(pairs, alike)), key=len)
