"""Example -> Tokens: ids, and which of them are in the loss.

The part before the answer is tokenised exactly as generation tokenises it, so the ids of a prompt are a
prefix of the ids of its row and the first trained token is the first one that a user's model will say.
"""

from dataclasses import dataclass
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from halfbyte.data.render import Example, Piece


@dataclass(frozen=True)
class Tokens:
    """ids and trained have one length. The first id is never trained: nothing comes before it."""

    ids: list[int]
    trained: list[bool]
    file: str
    line: int

    @property
    def supervised(self) -> int:
        return sum(self.trained[1:])


def encode_example(example: Example, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """Tokenises the untrained and the trained pieces apart, so that no token straddles the two."""
    ids: list[int] = []
    trained: list[bool] = []
    for is_trained, group in groupby(example.pieces, key=lambda piece: piece.trained):
        pieces = list(group)
        new = _encode_after(ids, pieces, tokenizer) if ids else encode_pieces(pieces, tokenizer)
        ids += new
        trained += [is_trained] * len(new)
    return Tokens(ids, trained, example.file, example.line)


def encode_pieces(pieces: list[Piece], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a prompt. The begin mark stands first if the tokenizer begins its texts with one and the text does not."""
    ids = [token for piece in _joined(pieces) for token in _ids(piece, tokenizer)]
    begin = begin_ids(tokenizer)
    return ids if ids[: len(begin)] == begin else begin + ids


def begin_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """[bos] for tokenizers that begin every text with it (Llama, Mistral), [] for others (Falcon, GPT-2)."""
    ids = tokenizer("a")["input_ids"]
    return [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id] else []


def _encode_after(before: list[int], pieces: list[Piece], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the answer. Some tokenizers (SentencePiece) put a blank before a text that stands alone: it is taken off
    by tokenising behind a line end, which such tokenizers keep as a token of its own."""
    alone = [token for piece in _joined(pieces) for token in _ids(piece, tokenizer)]
    if tokenizer.decode(alone[:1]).startswith(" ") == pieces[0].text.startswith(" ") and not _adds_blank(tokenizer):
        return alone
    anchor = _ids(Piece("\n", False), tokenizer)
    first, *rest = _joined(pieces)
    behind = _ids(Piece("\n" + first.text, first.trained, first.literal), tokenizer)
    if behind[: len(anchor)] != anchor:
        return alone
    return behind[len(anchor) :] + [token for piece in rest for token in _ids(piece, tokenizer)]


def _adds_blank(tokenizer: PreTrainedTokenizerBase) -> bool:
    alone = tokenizer("a", add_special_tokens=False)["input_ids"]
    behind = tokenizer("\na", add_special_tokens=False)["input_ids"]
    return behind[-len(alone) :] != alone


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbours that are tokenised alike become one piece, so that tokens may span them."""
    return [
        Piece("".join(piece.text for piece in group), trained=False, literal=literal)
        for literal, group in ((key, list(items)) for key, items in groupby(pieces, key=lambda piece: piece.literal))
    ]


def _ids(piece: Piece, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if not piece.text:
        return []
    return list(tokenizer(piece.text, add_special_tokens=False, split_special_tokens=piece.literal, verbose=False)["input_ids"])
