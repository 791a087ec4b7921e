"""Example -> Tokens: ids, and which of them are in the loss.

The part before the answer is tokenised exactly as generation tokenises it, so the ids of a prompt are a
prefix of the ids of its row and the first trained token is the first one that a user's model will say.
"""

from dataclasses import dataclass
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from halfbyte.data.render import Example, Piece

# A line end, or a control character where the text begins with line ends that would join it.
ANCHORS = ("\n", "\x01")


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
        new = _encode(pieces, tokenizer, starts=False) if ids else encode_pieces(pieces, tokenizer)
        ids += new
        trained += [is_trained] * len(new)
    return Tokens(ids, trained, example.file, example.line)


def encode_pieces(pieces: list[Piece], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a prompt. The begin mark stands first if the tokenizer begins its texts with one and the text does not."""
    ids = _encode(pieces, tokenizer, starts=True)
    begin = begin_ids(tokenizer)
    return ids if ids[: len(begin)] == begin else begin + ids


def begin_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """[bos] for tokenizers that begin every text with it (Llama, Mistral), [] for others (Falcon, GPT-2)."""
    ids = tokenizer("a")["input_ids"]
    return [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id] else []


def _encode(pieces: list[Piece], tokenizer: PreTrainedTokenizerBase, starts: bool) -> list[int]:
    """`starts`: the first piece starts a text, so it is tokenised as the tokenizer tokenises a text that stands alone."""
    ids: list[int] = []
    for number, piece in enumerate(_joined(pieces)):
        ids += _ids(piece, tokenizer) if starts and number == 0 else _ids_behind(piece, tokenizer)
    return ids


def _ids_behind(piece: Piece, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a piece that stands behind another. Some tokenizers (SentencePiece) put a blank before a text that stands
    alone: it is taken off by tokenising behind a character that they keep as tokens of its own."""
    if piece.text and _adds_blank(tokenizer):
        for anchor in ANCHORS:
            before = _ids(Piece(anchor, False), tokenizer)
            both = _ids(Piece(anchor + piece.text, False, piece.literal), tokenizer)
            if both[: len(before)] == before:
                return both[len(before) :]
    return _ids(piece, tokenizer)


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
