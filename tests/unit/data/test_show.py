"""What trains, made visible: the spans are the tokens themselves, and the page holds nothing that lies or calls out."""

import json
import random
import re
from html.parser import HTMLParser

import pytest

from halfbyte.data.batches import IGNORE, make_batch
from halfbyte.data.pack import join_documents
from halfbyte.data.records import Record
from halfbyte.data.render import Template, render_record
from halfbyte.data.show import Shown, Span, show_batch, show_examples, show_records, show_rows, to_page, visible
from halfbyte.data.tokens import Encoder, Tokens
from toy_tokenizers import BYTE_LEVEL, random_texts, tokenizer_of

CHAT = Template("chat")
TALK = Record("a.jsonl", 3, messages=(
    {"role": "user", "content": "who comes <b>there</b>?"}, {"role": "assistant", "content": "the keeper"},
    {"role": "user", "content": "and \u202ewhat\x1b[2J?"}, {"role": "assistant", "content": "the lamp\nis lit"},
), group="ann", label="x")  # fmt: skip


def row_of(record: Record, kind: str = "bytes", loss: str = "answers") -> Tokens:
    tokenizer = tokenizer_of(kind, "chatml")
    return Encoder(tokenizer).encode([render_record(record, CHAT, tokenizer, loss)])[0]


def text_of(shown: Shown, kind: str | None = None) -> str:
    return "".join(span.text for span in shown.spans if kind in (None, span.kind))


# Stages


def test_a_record_says_who_speaks_and_where_it_stands():
    (shown,) = show_records([TALK, TALK], 1)
    assert shown.title == "a.jsonl:3 · label 'x' · group 'ann'"
    assert [(span.kind, span.text) for span in shown.spans[:4]] == [
        ("role", "user"), ("context", "who comes <b>there</b>?"), ("role", "assistant"), ("trained", "the keeper"),
    ]  # fmt: skip
    (text,) = show_records([Record("b.txt", 1, text="a tale")], 5)
    assert (text.title, text.spans) == ("b.txt:1", [Span("a tale", "trained")])


@pytest.mark.parametrize("loss", ["answers", "last", "all"])
def test_an_example_shows_what_the_loss_says(loss):
    tokenizer = tokenizer_of("bytes", "chatml")
    (shown,) = show_examples([TALK], CHAT, tokenizer, loss, 3)
    pieces = render_record(TALK, CHAT, tokenizer, loss).pieces
    assert text_of(shown) == "".join(piece.text for piece in pieces)
    trained = {"answers": "the keeper<|im_end|>the lamp\nis lit<|im_end|>", "last": "the lamp\nis lit<|im_end|>", "all": text_of(shown)}
    assert text_of(shown, "trained") == trained[loss]


@pytest.mark.parametrize("kind", BYTE_LEVEL)
def test_tokens_are_shown_as_they_train(kind):
    """Every token once, in order; what is coloured is exactly what has a label."""
    tokenizer = tokenizer_of(kind, "chatml")
    texts = random_texts(80, 1)
    for place in range(0, len(texts) - 1, 2):
        record = Record("a", 1, messages=({"role": "user", "content": texts[place]}, {"role": "assistant", "content": texts[place + 1]}))
        row = row_of(record, kind)
        (shown,) = show_rows([row], tokenizer, 1)
        assert text_of(shown) == tokenizer.decode(row.ids)
        assert text_of(shown, "trained") == tokenizer.decode([token for token, flag in zip(row.ids, row.trained) if flag])
        assert shown.title == f"a:1 · {row.supervised} of {len(row.ids)} tokens trained"


@pytest.mark.parametrize("kind", ["blank", "first", "llama"])
def test_blanks_between_words_are_shown(kind):
    """Guards against `thekeeperlitthelamp`: these tokenizers take the blank off a token that is decoded alone."""
    row = row_of(Record("a", 1, messages=({"role": "user", "content": "the keeper lit"}, {"role": "assistant", "content": "the lamp and the sea"})), kind)
    (shown,) = show_rows([row], tokenizer_of(kind, "chatml"), 1)
    assert "the keeper lit" in text_of(shown, "context")
    assert "the lamp and the sea" in text_of(shown, "trained")


def test_a_character_of_several_tokens_is_shown_whole():
    (shown,) = show_rows([row_of(Record("a", 1, text="x \u65e5\u672c \U0001f600 y"))], tokenizer_of("bytes", "chatml"), 1)
    assert "\ufffd" not in text_of(shown)
    assert any(span.text.strip() == "\U0001f600" for span in shown.spans)


def test_half_a_character_at_a_border_is_not_joined_over_it():
    tokenizer = tokenizer_of("bytes", "chatml")
    ids = tokenizer("\U0001f600", add_special_tokens=False)["input_ids"]
    assert len(ids) == 4
    (shown,) = show_rows([Tokens(ids, [False, False, True, True], "a", 1)], tokenizer, 1)
    assert [span.kind for span in shown.spans] == ["context", "trained"]


def test_the_first_id_of_each_packed_document_is_not_trained():
    rows = [row_of(TALK, loss="all"), row_of(Record("a", 9, text="the lamp"))]
    (shown,) = show_rows([join_documents(rows)], tokenizer_of("bytes", "chatml"), 1)
    assert "2 documents" in shown.title
    begins = [place for place, span in enumerate(shown.spans) if span.text == "<s>"]
    assert {shown.spans[place].kind for place in begins} == {"context"}
    assert f"{sum(row.supervised for row in rows)} of {sum(len(row.ids) for row in rows)} tokens trained" in shown.title


@pytest.mark.parametrize("kind", ["bytes", "bare"])
def test_the_first_id_of_a_row_is_not_trained(kind):
    """Nothing stands before it that could predict it: what is coloured is what has a label."""
    row = row_of(TALK, kind, loss="all")
    assert row.trained[0]
    (shown,) = show_rows([row], tokenizer_of(kind, "chatml"), 1)
    assert [span.kind for span in shown.spans[:2]] == ["context", "trained"]


def test_a_batch_is_shown_from_its_tensors():
    rows = [row_of(TALK), row_of(Record("a", 9, messages=TALK.messages[:2]))]
    batch = make_batch(rows, 2)
    shown = list(show_batch(batch, tokenizer_of("bytes", "chatml")))
    for one, row, labels in zip(shown, rows, batch.labels.tolist()):
        decode = tokenizer_of("bytes", "chatml").decode
        assert text_of(one, "trained") == decode([label for label in labels if label != IGNORE])
        assert text_of(one, "trained") + text_of(one, "context") != ""
        assert f"{row.supervised} of {len(row.ids)} tokens trained" in one.title
    padding = len(rows[0].ids) - len(rows[1].ids)
    assert [text_of(one, "padding") for one in shown] == ["", f"{padding} x padding"]
    batch.labels[0, 5] = 7  # what is shown is what the tensors say, not what the row said
    assert next(iter(show_batch(batch, tokenizer_of("bytes", "chatml")))).title != shown[0].title


# The page

WICKED = [
    "<script>alert(1)</script>", "</p></section></html>", "\u202egnorw\u202c", "\x1b[31mred\x07", "a\u200bb\ufeff", '" onload="x', "{title} {rows} {0}",
    "\ud800", "\x00", "&lt;b&gt;", "\u2028", "<!--", "]]>", "a\nb", "https://example.org/x.js",
]  # fmt: skip


class Page(HTMLParser):
    """Tags that are open, and the text between."""

    VOID = {"meta", "br", "link", "img"}

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.said = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said += data


def test_the_page_holds_the_text_and_nothing_of_it_is_markup():
    """BAD_INPUTS 58: control and direction characters are made visible; a script in the data stays text."""
    shown = [
        Shown(f"{text}:1 · label {text!r}", [Span(text, kind), Span("x", "context")]) for text in WICKED for kind in ("trained", "context", "padding", "role")
    ]
    page = to_page(shown, "a & <b> {x}", [(f"name {text}", text) for text in WICKED], "record")
    parsed = Page(page)
    assert parsed.open == []
    assert set(parsed.tags) == {"html", "meta", "title", "style", "h1", "table", "tr", "th", "td", "ul", "li", "span", "section", "h2", "p", "i"}
    assert all(visible(text).replace("\n", "\u21b5\n") in parsed.said for text in WICKED)
    assert not [c for c in page if not c.isprintable() and c != "\n"]
    page.encode("utf-8")
    assert all(name in ("lang", "charset", "name", "content", "http-equiv", "scope", "class") for name, _ in parsed.attributes)


def test_the_page_needs_no_network():
    page = to_page([Shown("a", [Span("the lamp", "trained")])], "t", [("a", "b")], "tokens")
    assert not re.search(r"https?:|//|url\(|@import|src=|href=|<script", page)
    assert "default-src 'none'" in page


def test_the_page_of_real_rows_shows_each_token_once():
    row = row_of(TALK)
    tokenizer = tokenizer_of("bytes", "chatml")
    page = Page(to_page(show_rows([row], tokenizer, 1), "t", [], "tokens"))
    text = page.said.split("trained\n")[-1]
    assert page.said.replace("\u21b5\n", "\n").count("the lamp\nis lit<|im_end|>") == 1
    assert "who comes <b>there</b>?" in page.said
    assert "\u27e8202E\u27e9" in page.said
    assert "\u27e8001B\u27e9" in page.said
    assert text


def test_neighbouring_tokens_are_told_apart():
    page = to_page([Shown("a", [Span("the", "trained"), Span(" lamp", "trained"), Span(" x", "trained")])], "t", [], "tokens")
    assert re.findall(r'<span class="(.*?)">', page) == ["trained", "trained b", "trained"]


@pytest.mark.parametrize(("text", "seen"), [
    ("a\nb", "a\nb"), ("\t", "\u27e80009\u27e9"), ("\u202e", "\u27e8202E\u27e9"), ("\u05d0", "\u05d0"), ("\U0001f600", "\U0001f600"), 
    ("\r", "\u27e8000D\u27e9"), ("\xa0", "\u27e800A0\u27e9"), ("\ud83d", "\u27e8D83D\u27e9"),
])  # fmt: skip
def test_what_cannot_be_seen_is_written_as_its_code(text, seen):
    assert visible(text) == seen


def test_random_text_survives_the_page():
    draw = random.Random(3)
    for text in random_texts(60, 4, marks=("<script>", "&amp;", "</i>")):
        spans = [Span(part, draw.choice(["trained", "context"])) for part in re.findall(r"(?s).{1,3}", text)]
        said = Page(to_page([Shown(json.dumps(text), spans)], "t", [], "tokens")).said
        assert visible(text).replace("\n", "\u21b5\n") in said
