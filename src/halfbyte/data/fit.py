"""Records -> Tokens of at most max_length, and nothing cut silently: the answer is kept whole and the prompt gives way.

Of a conversation the oldest turns go first, as in chat; then the prompt of the last turn loses its middle, because what is asked stands
at its beginning or its end (head and tail kept: arXiv 1905.05583, section 5.3.1). A row whose last answer does not fit is left out and counted.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from halfbyte.data.records import Record
from halfbyte.data.render import Example, Template, render_record
from halfbyte.data.tokens import Encoder, Tokens
from halfbyte.errors import DataError

LEFT_OUT = " [...] "
# A prompt of which less than this would be left says nothing any more.
FEWEST_PROMPT_TOKENS = 8
# Characters that are always tokenised and counted, however short the rows.
MEGABYTE = 1_000_000
BILL_LENGTHS = (512, 1024, 2048, 4096)
# Tokens. Rows are counted by length in classes of this width, the last of which is open.
CLASS_WIDTH, CLASSES = 256, 33


@dataclass(frozen=True)
class Fitted:
    """What became of one record. `tokens` is None for a row that is left out: for `reason`, or because the template refuses it (`error`)."""

    tokens: Tokens | None
    shortened: bool = False
    reason: str = ""
    error: DataError | None = None


class Bill:
    """The truncation bill: answer tokens in all, and how many of them remain at each length, kept our way and cut at the end as others do.

    `kept` is reckoned from lengths, not rendered: a row that misses a length by fewer tokens than the marks of a turn may be counted as lost.
    """

    def __init__(self, max_length: int) -> None:
        """At BILL_LENGTHS, and at the length that the recipe asks for."""
        self.kept = dict.fromkeys(sorted({*BILL_LENGTHS, max_length}), 0)
        self.cut_at_end = dict(self.kept)
        self.shortest = min(self.kept)
        self.answer_tokens = self.longest = 0
        self.classes = [0] * CLASSES

    def add(self, row: Tokens, overhead: int) -> None:
        """`row` as it is without a limit; `overhead`: tokens around its answer that cannot be taken away."""
        length, answers = len(row.ids), row.supervised
        self.answer_tokens += answers
        self.longest = max(self.longest, length)
        self.classes[min((length - 1) // CLASS_WIDTH, CLASSES - 1)] += 1
        if length <= self.shortest:
            for limit in self.kept:
                self.kept[limit] += answers
                self.cut_at_end[limit] += answers
            return
        trained = np.array(row.trained)
        trained[:1] = False
        for limit in self.kept:
            whole = length <= limit
            self.kept[limit] += answers if whole else _kept_answers(trained, limit - overhead)
            self.cut_at_end[limit] += answers if whole else int(trained[:limit].sum())

    def enough(self, share: float = 0.99) -> int:
        """The shortest length, in steps of CLASS_WIDTH, at which this share of the rows is whole."""
        seen = np.cumsum(self.classes)
        number = int(np.argmax(seen >= share * seen[-1]))
        return (number + 1) * CLASS_WIDTH if number < CLASSES - 1 else self.longest

    def as_json(self) -> dict[str, object]:
        whole = max(1, self.answer_tokens)
        return {
            "answer_tokens": self.answer_tokens, "longest_row": self.longest, "length_for_99_percent": self.enough(),
            "kept": {str(limit): round(count / whole, 4) for limit, count in self.kept.items()},
            "cut_at_end": {str(limit): round(count / whole, 4) for limit, count in self.cut_at_end.items()},
        }  # fmt: skip


def _kept_answers(trained: np.ndarray, room: int) -> int:
    """Answer tokens of the latest turns that fit into `room`, or of the last answer alone, whose prompt gives way."""
    edges = np.flatnonzero(np.diff(trained.astype(np.int8), prepend=0, append=0))
    starts, ends = edges[::2], edges[1::2]
    if not len(ends):
        return 0
    last = int(ends[-1] - starts[-1])
    kept = [int(trained[end:].sum()) for end in ends[:-1] if len(trained) - end <= room]
    return max(kept, default=last if last <= room else 0)


class Fitter:
    """Renders, tokenises and fits the conversations of one data set."""

    def __init__(self, template: Template, encoder: Encoder, max_length: int, loss: str) -> None:
        self.template, self.encoder, self.max_length, self.loss = template, encoder, max_length, loss
        self.too_long = Fitted(None, reason=f"the answer does not fit into max_length {max_length}")
        self.dots = len(encoder.places(LEFT_OUT))
        shortest = self._encode(Record("", 0, messages=({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})), "answers")
        # A text of more characters has more tokens than a row, whatever it says.
        self.most_characters = max(MEGABYTE, max_length * max(map(len, encoder.tokenizer.get_vocab())))
        self.overhead = len(shortest.ids) - shortest.supervised - 1 + FEWEST_PROMPT_TOKENS + self.dots

    def fit(self, records: Sequence[Record], bill: Bill | None = None) -> list[Fitted]:
        """One for each record, in order. The rows of `records` are tokenised together, and counted in `bill`, but for those whose answer
        is too long by far: megabytes that are not worth tokenising."""
        clipped = [self._without_megabytes(record) for record in records]
        examples = [self.too_long if record is None else self._render(record) for record in clipped]
        rows = iter(self.encoder.encode([example for example in examples if isinstance(example, Example)]))
        fitted = []
        for record, short, example in zip(records, clipped, examples, strict=True):
            if isinstance(example, Fitted) or short is None:
                fitted.append(self.too_long)
            elif isinstance(example, DataError):
                fitted.append(Fitted(None, error=example))
            else:
                one = self._fit(short, next(rows), bill)
                fitted.append(replace(one, shortened=one.tokens is not None and (one.shortened or short is not record)))
        return fitted

    def _without_megabytes(self, record: Record) -> Record | None:
        """Without the middle of a prompt and the turns up to an answer that are too long by far; None where the last answer or a system text is."""
        large = [place for place, message in enumerate(record.messages) if len(message["content"]) > self.most_characters]
        if not large:
            return record
        answers = [place for place in large if record.messages[place]["role"] != "user"]
        last = max(place for place, message in enumerate(record.messages) if message["role"] == "assistant")
        if answers and (answers[0] == 0 or answers[-1] >= last):
            return None
        record = _from_turn(record, answers[-1] + 1) if answers else record
        half = self.most_characters // 2
        return replace(record, messages=tuple(
            {**message, "content": message["content"][:half] + LEFT_OUT + message["content"][-half:]} if len(message["content"]) > 2 * half else message
            for message in record.messages
        ))  # fmt: skip

    def _fit(self, record: Record, row: Tokens, bill: Bill | None) -> Fitted:
        if bill is not None:
            first = record.messages[0]
            own_system = len(self.encoder.places(first["content"])) if first["role"] == "system" else 0
            bill.add(row if self.loss != "all" else self._encode(record, "answers"), self.overhead + own_system)
        if not row.supervised:
            return Fitted(None, reason="nothing to learn from")
        return Fitted(row) if len(row.ids) <= self.max_length else self._shorten(record)

    def _shorten(self, record: Record) -> Fitted:
        """As many of the latest turns as fit, or the last one with a shorter prompt."""
        ends = [place + 1 for place, message in enumerate(record.messages) if message["role"] == "assistant"][:-1]
        first = bisect_left(ends, -self.max_length, key=lambda end: -len(self._encode(_from_turn(record, end)).ids))
        if ends:
            record = _from_turn(record, ends[min(first, len(ends) - 1)])
        row = self._encode(record)
        over = len(row.ids) - self.max_length
        fitting = self._with_shorter_prompt(record, over) if over > 0 else row
        return self.too_long if fitting is None else Fitted(fitting, shortened=True)

    def _with_shorter_prompt(self, record: Record, over: int) -> Tokens | None:
        """`over`: tokens that are too many. None where too little of the prompt would be left."""
        place = max(place for place, message in enumerate(record.messages) if message["role"] == "user")
        prompt = record.messages[place]["content"]
        places = self.encoder.places(prompt)
        keep = len(places) - self.dots
        while (keep := keep - over) >= FEWEST_PROMPT_TOKENS:
            shorter = {**record.messages[place], "content": _without_middle(prompt, places, keep)}
            row = self._encode(replace(record, messages=(*record.messages[:place], shorter, *record.messages[place + 1 :])))
            over = len(row.ids) - self.max_length
            if over <= 0:
                return row
        return None

    def _encode(self, record: Record, loss: str | None = None) -> Tokens:
        return self.encoder.encode([render_record(record, self.template, self.encoder.tokenizer, loss or self.loss)])[0]

    def _render(self, record: Record) -> Example | DataError:
        try:
            return render_record(record, self.template, self.encoder.tokenizer, self.loss)
        except DataError as error:
            return error


def _from_turn(record: Record, place: int) -> Record:
    """The messages from `place` on, behind the system text, unless they bring one of their own."""
    system, rest = record.messages[:1], record.messages[place:]
    keeps = system[0]["role"] == "system" != rest[0]["role"]
    return replace(record, messages=(*system, *rest) if keeps else rest)


def _without_middle(text: str, places: list[tuple[int, int]], keep: int) -> str:
    """The first and the last `keep` tokens of a text, half of them each; `places` are where its tokens stand in it."""
    head, tail = keep - keep // 2, keep // 2
    return text[: places[head - 1][1]].rstrip() + LEFT_OUT + text[places[len(places) - tail][0] :].lstrip()
