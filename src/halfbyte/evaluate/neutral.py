"""Forgetting: text that has nothing to do with what was trained, on which a tuned model should be no worse than its base.

The one that ships is modern English on everyday matters, of many short documents, so that the bootstrap can draw them.
"""

import re
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from halfbyte.data.pack import cut_blocks
from halfbyte.data.streams import examine, reading_text
from halfbyte.data.tokens import Encoder, Tokens

NEUTRAL_TEXT = Path(__file__).parent.parent / "samples" / "neutral.txt"
# Of characters. What is shorter, a title for instance, goes with what follows it.
SHORTEST_DOCUMENT = 200
# Documents are parted by two blank lines or more, or, where a file has none, by one.
WIDE_BORDER, BORDER = (re.compile(rf"\n(?:[ \t]*\n){{{blank},}}") for blank in (2, 1))


def neutral_rows(tokenizer: PreTrainedTokenizerBase, max_length: int, path: str | None = None) -> list[Tokens]:
    """Blocks of the neutral text, or of the text file `path`; `line` of a row is where its document begins.

    No end mark stands behind a document: whether a model ends is what tuning teaches it, not what it forgets. Raises DataError for
    a file that cannot be read.
    """
    with reading_text(examine(path or str(NEUTRAL_TEXT), None)) as stream:
        text = stream.read()
    encoder, name = Encoder(tokenizer), Path(path or NEUTRAL_TEXT).name
    documents = [(line, encoder.text(document, begins=True)) for line, document in split_documents(text)]
    return cut_blocks([Tokens(ids, [True] * len(ids), name, line) for line, ids in documents], encoder.begin, None, max_length)


def split_documents(text: str) -> list[tuple[int, str]]:
    """Line and text of each document."""
    border = WIDE_BORDER if WIDE_BORDER.search(text.strip()) else BORDER
    documents, start = [], len(text) - len(text.lstrip())
    ends = [(found.start(), found.end()) for found in border.finditer(text.rstrip(), start)]
    for end, next_start in [*ends, (len(text), len(text))]:
        if end - start >= SHORTEST_DOCUMENT or end == len(text):
            documents.append((text.count("\n", 0, start) + 1, text[start:end].strip()))
            start = next_start
    return documents
