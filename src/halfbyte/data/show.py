"""What trains, made visible: records, examples, tokens or a batch as spans of text, each trained or not; and one offline page of them.

The terminal and the page show the same spans, and the spans of tokens come from the very rows that train.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate, islice
from typing import Literal

from transformers import PreTrainedTokenizerBase

from halfbyte.data.batches import IGNORE, Batch
from halfbyte.data.records import Record
from halfbyte.data.render import Template, render_record
from halfbyte.data.tokens import Tokens

Kind = Literal["trained", "context", "padding", "role"]
# Bytes of one character may stand in up to four tokens.
TOKENS_OF_A_CHARACTER = 4
HALF = "\ufffd"
LEGEND: dict[Kind, str] = {"trained": "trained (in the loss)", "context": "read, not trained", "padding": "padding", "role": "who speaks"}
# Which of them a stage has, and how what trains is called before its length was looked at.
KINDS_OF_STAGE: dict[str, tuple[Kind, ...]] = {
    "record": ("trained", "context", "role"), "example": ("trained", "context"), "tokens": ("trained", "context"), "batch": ("trained", "context", "padding"),
}  # fmt: skip
BEFORE_FITTING = "to be trained, if the row is kept and fits"


@dataclass(frozen=True)
class Span:
    """A piece of text, a token or the few tokens of one character."""

    text: str
    kind: Kind


@dataclass(frozen=True)
class Shown:
    """One record, example, row or row of a batch."""

    title: str
    spans: list[Span]


def show_records(records: Iterable[Record], count: int) -> Iterator[Shown]:
    for record in islice(records, count):
        turns = [span for m in record.messages for span in (Span(m["role"], "role"), Span(m["content"], "trained" if m["role"] == "assistant" else "context"))]
        label = f" · label {record.label!r}" if record.label else ""
        group = f" · group {record.group!r}" if record.group else ""
        yield Shown(f"{record.file}:{record.line}{label}{group}", turns or [Span(record.text, "trained")])


def show_examples(records: Iterable[Record], template: Template, tokenizer: PreTrainedTokenizerBase, loss: str, count: int) -> Iterator[Shown]:
    for record in islice(records, count):
        pieces = render_record(record, template, tokenizer, loss).pieces
        yield Shown(f"{record.file}:{record.line}", [Span(piece.text, "trained" if piece.trained else "context") for piece in pieces])


def show_rows(rows: Iterable[Tokens], tokenizer: PreTrainedTokenizerBase, count: int) -> Iterator[Shown]:
    for row in islice(rows, count):
        documents = f", {len(row.documents)} documents" if len(row.documents) > 1 else ""
        title = f"{row.file}:{row.line} · {row.supervised} of {len(row.ids)} tokens trained{documents}"
        starts = {0, *accumulate(row.documents)}
        trained = [flag and place not in starts for place, flag in enumerate(row.trained)]
        yield Shown(title, _token_spans(row.ids, ["trained" if flag else "context" for flag in trained], tokenizer))


def show_batch(batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Iterator[Shown]:
    """From the tensors themselves."""
    for row, length in enumerate(batch.lengths):
        labels = batch.labels[row].tolist()
        kinds: list[Kind] = ["padding" if place >= length else "context" if label == IGNORE else "trained" for place, label in enumerate(labels)]
        spans = _token_spans(batch.ids[row].tolist()[:length], kinds[:length], tokenizer)
        if len(labels) > length:
            spans.append(Span(f"{len(labels) - length} x padding", "padding"))
        yield Shown(f"row {row + 1} · {kinds.count('trained')} of {length} tokens trained, {len(labels) - length} padding", spans)


def _token_spans(ids: Sequence[int], kinds: Sequence[Kind], tokenizer: PreTrainedTokenizerBase) -> list[Span]:
    """Each token as it reads behind the ones before it, since many tokenizers take the blank off a text that stands alone."""
    spans: list[Span] = []
    before: list[int] = []
    held: list[int] = []
    for place, token in enumerate(ids):
        held.append(token)
        known, text = (tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in (before, before + held))
        text = text.removeprefix(known) if text.startswith(known) else tokenizer.decode(held, clean_up_tokenization_spaces=False)
        last = place + 1 == len(ids) or kinds[place + 1] != kinds[place]
        if HALF in text and len(held) < TOKENS_OF_A_CHARACTER and not last:
            continue
        spans.append(Span(text, kinds[place]))
        before, held = [] if HALF in text else held, []
    return spans


def legend_of(stage: str) -> list[tuple[Kind, str]]:
    """What the colours of a stage mean."""
    early = {"trained": BEFORE_FITTING} if stage in ("record", "example") else {}
    return [(kind, early.get(kind, LEGEND[kind])) for kind in KINDS_OF_STAGE[stage]]


def to_page(shown: Iterable[Shown], title: str, facts: Sequence[tuple[str, str]], stage: str) -> str:
    """One HTML file that needs no network. `facts` stand above the rows."""
    head = "".join(f"<tr><th scope=row>{_escaped(name)}</th><td>{_escaped(value)}</td></tr>" for name, value in facts)
    rows = "".join(f"<section><h2>{_escaped(one.title)}</h2><p class=text>{_marked(one.spans)}</p></section>\n" for one in shown)
    legend = "".join(f"<li><span class={kind}>{escape(meaning)}</span></li>" for kind, meaning in legend_of(stage))
    return _PAGE.format(title=_escaped(title), facts=head, legend=legend, rows=rows)


def _marked(spans: Sequence[Span]) -> str:
    """Neighbouring tokens of one kind take turns in shade, so that each is seen."""
    said = []
    for number, span in enumerate(spans):
        shade = " b" if number % 2 and span.kind in ("trained", "context") else ""
        text = _escaped(span.text).replace("\n", "<i>\u21b5</i>\n")
        said.append(f'<span class="{span.kind}{shade}">{text}</span>')
    return "".join(said)


def _escaped(text: str) -> str:
    return escape(visible(text))


def visible(text: str) -> str:
    """Control and bidirectional characters by their code, so that nothing on the screen lies; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else f"\u27e8{ord(c):04X}\u27e9" for c in text)


_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">
<meta http-equiv=Content-Security-Policy content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --back: #fcfcfa; --fore: #1f2328; --dim: #59636e; --line: #d8dce0;
  --trained: #b6e3c1; --trained-b: #93d3a4; --context: #eef0f2; --context-b: #e0e4e8; --padding: #f6e2c8; }}
@media (prefers-color-scheme: dark) {{ :root {{ --back: #14171a; --fore: #e6e8ea; --dim: #9aa4ae; --line: #30363d;
  --trained: #1e5130; --trained-b: #2a6a40; --context: #22272d; --context-b: #2c333a; --padding: #4d3a1f; }} }}
body {{ background: var(--back); color: var(--fore); font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: .85rem; font-weight: 600; color: var(--dim); margin: 1.6rem 0 .3rem; overflow-wrap: anywhere; }}
table {{ border-collapse: collapse; margin: 1rem 0; }} th, td {{ text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; }}
th {{ font-weight: 600; white-space: nowrap; }} td {{ color: var(--dim); overflow-wrap: anywhere; }}
ul {{ list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .5rem 1.2rem; }}
.text {{ font: 14px/1.75 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); border-radius: 6px;
  padding: .7rem .9rem; margin: 0; }}
.trained {{ background: var(--trained); }} .trained.b {{ background: var(--trained-b); }}
.context {{ background: var(--context); }} .context.b {{ background: var(--context-b); }}
.padding {{ background: var(--padding); }} .role {{ font-weight: 700; color: var(--dim); }}
.role::after {{ content: ": "; }} .role:not(:first-child)::before {{ content: "\\a"; }}
.text span {{ border-radius: 3px; padding: .12em 0; unicode-bidi: isolate; }} i {{ color: var(--dim); font-style: normal; }}
</style>
<h1>{title}</h1>
<table>{facts}</table>
<ul>{legend}</ul>
{rows}</html>
"""
