"""What is odd in the data, before anything trains on it: counts, a few masked samples with file and line, and the mend.

One pass over the records. What is remembered of them is bounded: hashes of the first MOST_COMPARED rows, labels, a sample of the prompts.
Nothing is changed and nothing refused here. Personal data are masked in every sample; what no pattern finds is not, and is not counted.
"""

import math
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from functools import cache
from typing import Any, Literal, NamedTuple

from halfbyte.data.personal import KINDS, find_personal, mask
from halfbyte.data.records import Record

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
RUN_CHARACTERS = 80  # no word is so long in a script that writes blanks
SIGN_SHARE = 0.5

_CHECK_COLUMNS = "Check data.prompt_column and data.response_column"
# Every finding, in the order in which it is shown: how bad it is, and the mend.
FINDINGS: dict[str, tuple[Literal["note", "warning"], str]] = {
    "empty answers": ("warning", "Fill them in, or leave such rows out with data.on_bad_row=skip."),
    "empty texts": ("note", "Delete these rows: there is nothing to learn from them."),
    "prompt equals answer": ("warning", f"{_CHECK_COLUMNS}: the model would learn to repeat what it is asked."),
    "same answer": ("warning", f"{_CHECK_COLUMNS}: the model would learn to say this to everything."),
    "one class": ("warning", "Add rows of another class, or check data.label_column: there is nothing to tell apart."),
    "rare classes": ("warning", "Add rows of these classes, or join them with another by data.merge_labels."),
    "labels that differ by form": ("warning", "Make one class of them with data.merge_labels."),
    "conflicting labels": ("warning", "Correct these rows: the same text has two classes."),
    "same prompt, different answers": ("note", "Keep one answer of each, unless several are right."),
    "exact duplicates": ("note", "Leave data.keep_duplicates=false, which trains each row once."),
    "duplicates but for case and blanks": ("note", "Set data.near_duplicates=drop to keep the first of each."),
    "rows not compared": ("note", "Audit the file in parts: only the first rows were compared with one another."),
    "constant opening": ("warning", "Move it out of the rows into data.system or data.instruction, and keep data.loss=answers."),
    "constant ending": ("warning", "Move it out of the rows into data.prompt_template, and keep data.loss=answers."),
    "prompts that end in a blank": ("warning", "Cut the blanks at the end of the prompts: an answer begins with its own."),
    "typed-in control marks": ("warning", "Delete the marks from the file: the template writes its own, and these are trained as plain characters."),
    "Project Gutenberg header or licence": (
        "warning",
        "Leave data.keep_boilerplate=false, which cuts them from a book; delete what is left.",
    ),
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
    level: Literal["note", "warning"]


@dataclass(frozen=True)
class Audit:
    """What was found in so many records. No finding does not mean that the data are good, or anonymous."""

    records: int
    findings: list[Finding]

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return asdict(self)


def audit(records: Iterable[Record], max_samples: int = 3) -> Audit:
    """Reads the records once and says what is odd about them."""
    seen = _Seen(max_samples)
    for record in records:
        seen.take(record)
    seen.close()
    findings = []
    for name, (level, advice) in FINDINGS.items():
        if (tally := seen.tallies[name]).count:
            findings.append(Finding(name, tally.count, tally.of or seen.rows, tally.samples[:max_samples], advice, level))
    return Audit(seen.rows, findings)


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
        return _Tally(sum(self.counts[key] for key in keys), [f"{self.samples[key]} (in {self.counts[key]} rows)" for key in keys], self.rows)


class _Ends(NamedTuple):
    """Both ends of a prompt, the second one backwards, and where it stands."""

    place: str
    opening: str
    ending: str
    length: int


class _Seen:
    """What is remembered of the records so far."""

    def __init__(self, max_samples: int):
        self.max_samples = max_samples
        self.rows = 0
        self.tallies: defaultdict[str, _Tally] = defaultdict(_Tally)
        self.row_places: dict[int, str] = {}
        self.forms: set[int] = set()
        self.prompt_answers: dict[int, int] = {}
        self.answers = _Repeats()
        self.lines = _Repeats()
        self.labels: Counter[str] = Counter()
        self.label_places: dict[str, str] = {}
        self.prompts: list[_Ends] = []
        self.random = random.Random(0)
        self.scripts: Counter[str] = Counter()

    def take(self, record: Record) -> None:
        """One more record."""
        self.rows += 1
        whole = "\n".join([message["content"] for message in record.messages]) if record.messages else record.text
        if record.messages:
            self._take_turns(record)
        elif not whole.strip():
            self._note("empty texts", record, whole)
        words = whole.split()
        if self._compare(record, whole, words) and not record.messages:
            for line in {line.strip() for line in whole.splitlines()}:
                if len(line) >= CONSTANT_CHARACTERS:
                    self.lines.add(line, record)
        self._keep_prompt(record, record.asked if record.messages else whole)
        if len(whole) > LONG_CHARACTERS:
            self._note("very long rows", record, whole, said=f" ({len(whole):,} characters)")
        elif 0 < len(whole.strip()) < SHORT_CHARACTERS:
            self._note("very short rows", record, whole, 0, len(whole))
        for name, start, end in _text_faults(whole, words):
            self._note(name, record, whole, start, end)
        self._take_script(record, whole)
        for kind, hit in {hit.kind: hit for hit in reversed(find_personal(whole))}.items():
            self._note(f"personal data: {kind}", record, whole, hit.start, hit.end)

    def _take_turns(self, record: Record) -> None:
        asked, answered = record.asked, record.answered
        if any(message["role"] == "assistant" and not message["content"].strip() for message in record.messages):
            self._note("empty answers", record, asked)
        else:
            self.answers.add(answered, record)
            if asked.strip() == answered.strip():
                self._note("prompt equals answer", record, asked)
        if any(message["role"] == "user" and message["content"][-1:].isspace() for message in record.messages):
            self._note("prompts that end in a blank", record, asked, len(asked.rstrip()) - 20, len(asked))
        if record.label and (record.label in self.labels or len(self.labels) < MOST_COUNTED):
            self.labels[record.label] += 1
            self.label_places.setdefault(record.label, _place(record))

    def _compare(self, record: Record, whole: str, words: list[str]) -> bool:
        """Whether no row before said the same."""
        row, form = hash((whole, record.answered, record.label)), hash(unicodedata.normalize("NFKC", " ".join(words)).casefold())
        if row in self.row_places:
            self._note("exact duplicates", record, whole, said=f" (as {self.row_places[row]})")
            return False
        if form in self.forms:
            self._note("duplicates but for case and blanks", record, whole)
        if len(self.row_places) >= MOST_COMPARED:
            self._note("rows not compared", record, whole)
            return True
        self.row_places[row] = _place(record)
        self.forms.add(form)
        if record.messages and self.prompt_answers.setdefault(hash(record.asked), answer := hash(record.answered)) != answer:
            self._note("conflicting labels" if record.label else "same prompt, different answers", record, whole)
        return True

    def _keep_prompt(self, record: Record, prompt: str) -> None:
        """A sample of all prompts in which each is as likely: algorithm R (Vitter 1985)."""
        at = len(self.prompts) if self.rows <= PROMPTS_KEPT else self.random.randrange(self.rows)
        if at < PROMPTS_KEPT:
            self.prompts[at : at + 1] = [_Ends(_place(record), prompt[:END_CHARACTERS], prompt[: -END_CHARACTERS - 1 : -1], len(prompt))]

    def _take_script(self, record: Record, whole: str) -> None:
        others = "" if whole.isascii() else _ASCII.sub("", whole)
        if len(others) * 10 < len(whole):  # most rows of most files: not worth counting letters
            self.scripts["LATIN"] += 1
            if letter := re.search("[A-Za-z]", whole):
                self._note("script LATIN", record, whole, *letter.span())
            return
        letters = Counter({"LATIN": sum(map(str.isalpha, whole)) - sum(map(str.isalpha, others))})
        for character, count in Counter(others).items():
            if character.isalpha():
                letters[_script(character)] += count
        self.scripts[letters.most_common(1)[0][0]] += 1
        for script, count in letters.items():
            if script and count > FOREIGN_SHARE * letters.total():
                start = next((at for at, character in enumerate(whole) if character.isalpha() and _script(character) == script), 0)
                self._note(f"script {script}", record, whole, start, start + 20)

    def close(self) -> None:
        """What can be said only when all records are known."""
        self._close_constants()
        if self.labels:
            self._close_labels()
        alike = self.answers.tally(most=1)
        if alike.count and not self.labels and alike.count >= ALIKE_SHARE * alike.of:
            self.tallies["same answer"] = alike
        self.tallies["repeated lines"] = self.lines.tally()
        main = self.scripts.most_common(1)[0][0] if self.scripts else ""
        others = [tally for name, tally in self.tallies.items() if name.startswith("script ") and name != f"script {main}"]
        self.tallies["another script"] = _Tally(sum(tally.count for tally in others), [sample for tally in others for sample in tally.samples])

    def _close_labels(self) -> None:
        most, total = max(self.labels.values()), self.labels.total()
        forms = defaultdict(list)
        for label in self.labels:
            forms[_label_form(label)].append(label)
        groups = {
            "one class": [[label] for label in self.labels if len(self.labels) == 1 and most > 1],
            "rare classes": [[label] for label, count in self.labels.items() if count < max(RARE_ROWS, RARE_SHARE * most)],
            "labels that differ by form": [labels for labels in forms.values() if len(labels) > 1],
        }
        for name, found in groups.items():
            samples = [" and ".join(map(self._named, labels[:4])) for labels in found[: self.max_samples]]
            self.tallies[name] = _Tally(sum(self.labels[label] for labels in found for label in labels), samples, total)

    def _named(self, label: str) -> str:
        return f"{self.label_places[label]}: {_shown(label, 0, len(label))!r} (in {self.labels[label]} rows)"

    def _close_constants(self) -> None:
        """The longest opening and ending that nine in ten prompts share, and what part of all prompt characters they are."""
        if len(self.prompts) < REPEATED_ROWS:
            return
        openings, endings = [prompt.opening for prompt in self.prompts], [prompt.ending for prompt in self.prompts]
        for name, ends, step in (("constant opening", openings, 1), ("constant ending", endings, -1)):
            part = _shared_opening(ends)
            if len(part.strip()) >= CONSTANT_CHARACTERS:
                holders = [prompt for prompt, end in zip(self.prompts, ends) if end.startswith(part)]
                share = len(part) * len(holders) / sum(prompt.length for prompt in self.prompts)
                sample = f"{holders[0].place}: {_shown(part[::step], 0, len(part))} ({len(part)} characters, {share:.0%} of all that is asked)"
                self.tallies[name] = _Tally(round(self.rows * len(holders) / len(self.prompts)), [sample])

    def _note(self, name: str, record: Record, text: str, start: int = 0, end: int = 0, said: str = "") -> None:
        tally = self.tallies[name]
        tally.count += 1
        if len(tally.samples) < self.max_samples:
            tally.samples.append(f"{_place(record)}: {_shown(text, start, end)}{said}")


def _place(record: Record) -> str:
    return f"{record.file}:{record.line}"


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


def _label_form(label: str) -> str:
    """What two labels have in common that differ only by case, blanks or the form of a number."""
    form = " ".join(unicodedata.normalize("NFKC", label).casefold().split())
    return str(Decimal(form).normalize()) if re.fullmatch(r"[+-]?[0-9]{1,20}(\.[0-9]{1,20})?", form) else form


# --- faults of a text, whatever the other rows say ---

_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ \n\t"
_ASCII = re.compile("[\x00-\x7f]+")
_MARKS = re.compile(
    r"</?s>|\[/?INST\]|<</?SYS>>|<[|｜][\w▁ -]{1,40}[|｜]>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk|mask)>"
    r"|\[(?:CLS|SEP|PAD|MASK|UNK)\]|<(?:HUMAN|ASSISTANT)>:"
)
_GUTENBERG = re.compile(r"\*{3} ?(?:START|END) OF TH(?:E|IS) PROJECT GUTENBERG|Project Gutenberg(?:™|-tm| License| Literary| eBook)|gutenberg\.(?:org|net)")
_PHRASES = (
    "sign up for our newsletter", "subscribe to our newsletter", "all rights reserved", "accept all cookies", "we use cookies", "privacy policy",
    "terms of service", "share this article", "click here to", "read more:", "advertisement\n", "please enable javascript", "skip to main content",
)  # fmt: skip
_HTML = re.compile(
    r"</?(?:p|br|div|span|a|b|i|u|em|strong|font|table|tr|td|th|ul|ol|li|h[1-6]|img|html|head|body|script|style|center|blockquote)(?:\s[^<>]{0,200})?/?>"
    r"|&(?:amp|lt|gt|quot|nbsp|apos|mdash|ndash|hellip|rsquo|lsquo|#[0-9]{1,6}|#x[0-9a-fA-F]{1,5});"
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f]")  # a form feed and U+0085 break pages and lines
# Name, what stands in every text that can have it, and how it looks.
_SEARCHED = (
    ("typed-in control marks", ("<", "["), _MARKS),
    ("HTML", ("<", "&"), _HTML),
    ("Project Gutenberg header or licence", ("utenberg", "UTENBERG"), _GUTENBERG),
    ("control characters", ("",), _CONTROL),
)
_ODD = {
    "lost characters": {"\ufffd"},
    "direction marks": set(map(chr, (0x200E, 0x200F, 0x61C, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))),
    "zero-width characters": set("\u00ad\u200b\u2060\ufeff"),  # not the joiners, which emoji, Persian and Hindi need
    "private-use characters": set(map(chr, range(0xE000, 0xF900))),
}
# Bytes as cp1252 or Latin-1 shows them.
_BYTES = {shown: byte for byte in range(0x80, 0x100) for charset in ("latin-1", "cp1252") for shown in bytes([byte]).decode(charset, "ignore")}
_TAIL = f"[{re.escape(''.join(character for character, byte in _BYTES.items() if byte < 0xC0))}]"
# UTF-8 sequences shown byte by byte: Latin-1 letters, punctuation, emoji; the rest only in pairs, since "René——" and „KÜ“ are honest text.
_TWICE = re.compile(f"[ÂÃ]{_TAIL}|[âï]{_TAIL}{{2}}|ð{_TAIL}{{3}}|(?:[Ä-ß]{_TAIL}|[à-î]{_TAIL}{{2}}){{2,}}")


def _text_faults(text: str, words: list[str]) -> Iterator[tuple[str, int, int]]:
    """(name, start, end) of the first of each kind."""
    for name, signs, pattern in _SEARCHED:
        if any(sign in text for sign in signs) and (found := pattern.search(text)):
            yield (name, *found.span())
    lowered = text.lower()
    for phrase in _PHRASES:
        if (at := lowered.find(phrase)) >= 0:
            yield ("phrases of web pages", at, at + len(phrase))
            break
    longest = max(words if text.isascii() else filter(str.isascii, words), key=len, default="")
    is_dump = len(longest) >= RUN_CHARACTERS and "://" not in longest and len(set(longest)) > 3  # no link, and no rule drawn of a few signs
    if is_dump or (text.isascii() and len(text) >= RUN_CHARACTERS and len(text.encode().translate(None, _LETTERS)) > SIGN_SHARE * len(text)):
        at = text.find(longest)
        yield ("not text", at, at + len(longest))
    others = set() if text.isascii() else set(_ASCII.sub("", text))
    for name, characters in _ODD.items():
        if here := others & characters:
            at = min(map(text.find, here))
            yield (name, at, at + 1)
    for found in _TWICE.finditer(text) if len(others & _BYTES.keys()) > 1 else ():
        try:
            bytes([_BYTES[character] for character in found[0]]).decode()
        except UnicodeDecodeError:
            continue
        yield ("double-encoded text", *found.span())
        break


@cache
def _script(character: str) -> str:
    """The script of a letter by the first word of its name; those that one language mixes count as one."""
    script = unicodedata.name(character, "").split(" ")[0].split("-")[0]
    return "CJK" if script in ("HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO") else script
