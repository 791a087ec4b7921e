"""Example -> Tokens: ids, and which of them are in the loss.

What stands before an answer is tokenised exactly as generation tokenises it, so the ids of a prompt are a
prefix of the ids of its row and the first trained token is the first one that a user's model will say.
"""

import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from operator import itemgetter
from typing import Any

from transformers import PreTrainedTokenizerBase

from halfbyte.data.render import Example, Piece

# A line end, or a control character where the text begins with line ends that would join it.
ANCHORS = ("\n", "\x01")
# Waking the threads of a batch takes longer than one or two texts do.
FEWEST_IN_A_BATCH = 4
# Characters without a blank, as in base64 or a Chinese novel, that are merged as one word: the time grows faster than the word.
LONGEST_WORD = 50_000


def too_long_word(length: int) -> re.Pattern[str]:
    """A word of more characters. Tried only where one begins: anywhere else it would be read again from each of its letters."""
    return re.compile(rf"(?<!\S)\S{{{length}}}\S+")


TOO_LONG_WORD = too_long_word(LONGEST_WORD)


@dataclass(frozen=True, slots=True)
class Tokens:
    """ids and trained have one length. The first id is never trained: nothing comes before it."""

    ids: list[int]
    trained: list[bool]
    file: str
    line: int
    documents: tuple[int, ...] = ()
    """Lengths of the documents that were packed into this row, in order; () for one."""

    @property
    def supervised(self) -> int:
        return sum(self.trained[1:])


class Encoder:
    """Tokenises many examples in one call, so that all cores work. It knows how its tokenizer begins a text and treats blanks."""

    begin: list[int]
    """[bos] for tokenizers that begin every text with it (Llama, Mistral), [] for others (Falcon, GPT-2)."""
    end_id: int | None

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.begin = begin_ids(tokenizer)
        self.end_id = tokenizer.eos_token_id
        # SentencePiece and its like put a blank before a text that stands alone. Behind another text
        # it is taken off by tokenising it behind a character that they keep as tokens of its own.
        alone, behind = self._ids(["a", "\na"], literal=False)
        adds_blank = behind[-len(alone) :] != alone
        self.anchors = list(zip(ANCHORS, self._ids(ANCHORS, literal=False))) if adds_blank else []

    def encode(self, examples: Sequence[Example]) -> list[Tokens]:
        """Prompts and answers are tokenised apart, so that no token straddles the two."""
        rows = [_segments(example.pieces) for example in examples]
        texts: dict[bool, list[str]] = {False: [], True: []}
        for row in rows:
            anchor = ""
            for segment in row:
                texts[segment.literal].append(anchor + segment.text)
                anchor = self.anchors[0][0] if self.anchors else ""
        with _without_looking_for_cycles():
            plain, literal = (iter(self._ids(asked, literal)) for literal, asked in texts.items())
            return [self._tokens(example, row, plain, literal) for example, row in zip(examples, rows)]

    def prompt(self, pieces: Sequence[Piece]) -> list[int]:
        """Ids of a prompt. The begin mark stands first if the tokenizer begins its texts with one and the text does not."""
        return self.encode([Example(list(pieces), "", 0)])[0].ids

    def text(self, text: str, begins: bool) -> list[int]:
        """Ids of plain text; `begins`: it stands at the start and not behind other text."""
        if begins or not self.anchors:
            ids = self._ids([text], literal=True)[0]
            return self.begin + ids if begins else ids
        return self._without_anchor(self._ids([self.anchors[0][0] + text], literal=True)[0], Piece(text, trained=True, literal=True))

    def places(self, text: str) -> list[tuple[int, int]]:
        """Where each token of a plain text, control marks too, begins and ends in it; by characters for tokenizers that do not tell."""
        if not self.tokenizer.is_fast:
            return [(place, place + 1) for place in range(len(text))]
        with self._backend(literal=True) as backend:
            return [place for place in backend.encode(text, add_special_tokens=False).offsets if place[1] > place[0]]

    def _tokens(self, example: Example, row: Sequence[Piece], plain: Iterator[list[int]], literal: Iterator[list[int]]) -> Tokens:
        ids: list[int] = [] if row else list(self.begin)
        trained = [False] * len(ids)
        for segment in row:
            new = next(literal if segment.literal else plain)
            if segment is not row[0] and self.anchors:
                new = self._without_anchor(new, segment)
            if not ids and new[: len(self.begin)] != self.begin:
                new = self.begin + new
            trained += [segment.trained] * len(new)
            if ids:
                ids += new
            else:
                ids = new
        return Tokens(ids, trained, example.file, example.line)

    def _without_anchor(self, ids: list[int], segment: Piece) -> list[int]:
        """`ids` are those of the first anchor and the segment; where the two were joined, the next anchor is tried."""
        before = self.anchors[0][1]
        if ids[: len(before)] == before:
            return ids[len(before) :]
        for anchor, before in self.anchors[1:]:
            ids = self._ids([anchor + segment.text], segment.literal)[0]
            if ids[: len(before)] == before:
                return ids[len(before) :]
        return self._ids([segment.text], segment.literal)[0]

    def _ids(self, texts: Sequence[str], literal: bool) -> list[list[int]]:
        """`literal`: control marks in the texts are plain text."""
        if not texts:
            return []
        if max(map(len, texts)) > LONGEST_WORD:
            return [self._ids_of_pieces(text, literal) for text in texts]
        return self._ids_of_batch(texts, literal)

    def _ids_of_batch(self, texts: Sequence[str], literal: bool) -> list[list[int]]:
        if not self.tokenizer.is_fast:
            return [list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=literal, verbose=False)["input_ids"]) for text in texts]
        with self._backend(literal) as backend:
            if len(texts) < FEWEST_IN_A_BATCH:
                return [backend.encode(text, add_special_tokens=False).ids for text in texts]
            return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _ids_of_pieces(self, text: str, literal: bool) -> list[int]:
        """Cut inside words that are too long to be merged as one; any other text in one piece."""
        cuts = [place for found in TOO_LONG_WORD.finditer(text) for place in range(found.start() + LONGEST_WORD, found.end(), LONGEST_WORD)]
        pieces = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
        if len(pieces) < 2:
            return self._ids_of_batch(pieces, literal)[0]
        anchor = self.anchors[0][0] if self.anchors else ""
        first, *others = self._ids_of_batch([pieces[0], *(anchor + piece for piece in pieces[1:])], literal)
        if anchor:
            others = [self._without_anchor(ids, Piece(piece, trained=True, literal=literal)) for ids, piece in zip(others, pieces[1:], strict=True)]
        return list(chain(first, *others))

    @contextmanager
    def _backend(self, literal: bool) -> Iterator[Any]:
        """The tokenizer of the `tokenizers` library, without the truncation and padding that an earlier call may have left switched on."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = literal
        try:
            yield backend
        finally:
            backend.encode_special_tokens = False


@contextmanager
def _without_looking_for_cycles() -> Iterator[None]:
    """A batch makes thousands of lists that stay; looking through them again and again took a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def encode_example(example: Example, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    return Encoder(tokenizer).encode([example])[0]


def encode_pieces(pieces: Sequence[Piece], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return Encoder(tokenizer).prompt(pieces)


def begin_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The begin mark, if the tokenizer puts one before every text."""
    ids = tokenizer("a")["input_ids"]
    return [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id] else []


def _segments(pieces: Sequence[Piece]) -> Sequence[Piece]:
    """Neighbours that are tokenised alike become one, so that tokens may span them."""
    before = None
    for piece in pieces:
        if not piece.text or piece[1:] == before:
            break
        before = piece[1:]
    else:
        return pieces  # as it is in most rows
    groups = (list(group) for _, group in groupby((piece for piece in pieces if piece.text), key=itemgetter(1, 2, 3)))
    return [group[0]._replace(text="".join(piece.text for piece in group)) for group in groups]
