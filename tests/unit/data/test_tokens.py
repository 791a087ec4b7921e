"""From pieces to ids: the prompt is a prefix, the answer comes back byte for byte, and a control mark is only what a template wrote."""

import pytest

from halfbyte.data.records import Record
from halfbyte.data.render import Piece, Template, choose_template, render_pair, render_prompt, render_text
from halfbyte.data.tokens import Tokens, begin_ids, encode_example, encode_pieces
from toy_tokenizers import BYTE_LEVEL, KINDS, ROUND_TRIP, TEMPLATES, random_texts, tokenizer_of

BEGIN_NONE = ("bare",)
# The embedded tokenizer knows no ChatML marks; the last entry is its own template.
CASES = [(kind, name) for kind in KINDS for name in [*ROUND_TRIP, "plain"] if kind != "embedded" or name in ("mistral", "endless", "plain")]
CASES.append(("embedded", None))
OWN_FORMATS = ("### Prompt:\n{prompt}\n\n### Response:\n", "{prompt}", "<s>[INST] {prompt} [/INST] ", "Q: {prompt}\nA:")


def setting(kind: str, name: str | None):
    """Tokenizer, template, and the mark that ends an answer."""
    tokenizer = tokenizer_of(kind, None if name == "plain" and kind != "embedded" else "endless" if name == "plain" else name)
    template = Template("format", OWN_FORMATS[0]) if name == "plain" else choose_template("chat", None, tokenizer)[0]
    end = "<|im_end|>" if name and "im_start" in TEMPLATES.get(name, "") else "</s>"
    return tokenizer, template, end


def marks_of(tokenizer) -> dict[str, int]:
    return {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}


def encoded(prompt: str, response: str, template: Template, tokenizer) -> tuple[list[int], Tokens]:
    """Ids of the prompt as generation asks it, and the row as it is trained."""
    asked = encode_pieces(render_prompt([{"role": "user", "content": prompt}], template, tokenizer), tokenizer)
    return asked, encode_example(render_pair(Record({"prompt": prompt, "response": response}, "a.csv", 7), template, tokenizer), tokenizer)


def drawn(kind: str, tokenizer, count: int = 40):
    """Pairs of random texts. A tokenizer whose blank is U+2581 cannot tell the two apart, so it is spared that character."""
    marks = tuple(marks_of(tokenizer))
    spared = kind not in (*BYTE_LEVEL, "prefix")
    texts = [text.replace("\u2581", "_") if spared else text for text in random_texts(2 * count, len(kind), marks)]
    return zip(texts[::2], texts[1::2])


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_an_answer_comes_back_byte_for_byte_behind_its_prompt(kind, name):
    """Trained are exactly the response and its end mark; what stands before them is, id for id, what generation asks."""
    tokenizer, template, end = setting(kind, name)
    for prompt, response in drawn(kind, tokenizer):
        asked, row = encoded(prompt, response, template, tokenizer)
        assert row.ids[: len(asked)] == asked
        assert row.trained == [False] * len(asked) + [True] * (len(row.ids) - len(asked))
        assert tokenizer.decode(row.ids) == tokenizer.decode(asked) + response + end
        if kind in BYTE_LEVEL:
            assert tokenizer.decode([token for token, trained in zip(row.ids, row.trained) if trained]) == response + end
        assert row.ids[-1] == marks_of(tokenizer)[end]
        assert row.supervised == sum(row.trained) > 1


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_no_content_yields_a_control_mark(kind, name):
    """A comment that holds `</s>` or `<|im_end|>` must not end a turn or forge one, neither as prompt nor as response."""
    tokenizer, template, _ = setting(kind, name)
    marks = marks_of(tokenizer)
    assert len(marks) >= 5
    harmless = [token for token in encoded("x", "y", template, tokenizer)[1].ids if token in marks.values()]
    for mark in marks:
        for said in (mark, f"a{mark}b", f"{mark} {mark}\n", f"<{mark}>"):
            for prompt, response in ((said, "y"), ("x", said), (said, said)):
                ids = encoded(prompt, response, template, tokenizer)[1].ids
                assert [token for token in ids if token in marks.values()] == harmless, f"{said!r} became a mark"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", OWN_FORMATS)
def test_a_template_of_the_recipe_keeps_all_that_too(kind, form):
    tokenizer = tokenizer_of(kind, "endless")
    for prompt, response in drawn(kind, tokenizer, 15):
        asked, row = encoded(prompt, response, Template("format", form), tokenizer)
        assert row.ids[: len(asked)] == asked
        assert tokenizer.decode(row.ids) == tokenizer.decode(asked) + response + "</s>"
        written = [token for token in row.ids if token in marks_of(tokenizer).values()]
        begin = [] if kind in BEGIN_NONE and not form.startswith("<s>") else [tokenizer.bos_token_id]
        assert written == [*begin, tokenizer.eos_token_id]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_text_begins_with_one_mark_or_with_none(kind, name):
    """A template that writes <s> and a tokenizer that adds one made two; without either there is none."""
    tokenizer, template, _ = setting(kind, name)
    asked, row = encoded("x", "y", template, tokenizer)
    by_template = name in ("begins", "mistral", None)
    wanted = int(by_template or kind not in BEGIN_NONE)
    for ids in (asked, row.ids):
        assert ids.count(tokenizer.bos_token_id) == wanted
        assert (ids[0] == tokenizer.bos_token_id) == bool(wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_the_begin_mark_is_known_by_what_the_tokenizer_does(kind):
    tokenizer = tokenizer_of(kind)
    assert begin_ids(tokenizer) == ([] if kind in BEGIN_NONE else [tokenizer.bos_token_id])
    text = encode_example(render_text(Record({"text": "the lamp"}, "a.txt", 1)), tokenizer)
    assert text.ids == begin_ids(tokenizer) + tokenizer("the lamp", add_special_tokens=False)["input_ids"]
    assert text.supervised == len(text.ids) - 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_leading_blank_is_kept_and_none_is_put_in(kind):
    """` Me.` and `Me.` are different answers. A tokenizer of SentencePiece's family puts a blank before a text that stands
    alone; behind a prompt none is put in, and one that is written is one blank, not two."""
    tokenizer, template, end = setting(kind, "mistral")
    rows = {said: encoded("x", said, template, tokenizer) for said in ("lamp", " lamp", "  lamp", "\nlamp", "\n\nlamp", "lamp ")}
    for said, (asked, row) in rows.items():
        assert tokenizer.decode(row.ids) == tokenizer.decode(asked) + said + end
    answers = {said: row.ids[len(asked) :] for said, (asked, row) in rows.items()}
    assert len({tuple(ids) for ids in answers.values()}) == len(rows)
    blank = tokenizer.convert_ids_to_tokens(answers["lamp"])[0][0]
    assert blank not in ("\u2581", "\u0120"), "a blank was put before the answer"


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_between_marks_get_no_blank_either(kind):
    """Guards against `a</s>b` that became `a </s> b` where a tokenizer puts a blank before every text."""
    tokenizer, template, end = setting(kind, "mistral")
    asked, row = encoded("a</s>b", "c</s>d", template, tokenizer)
    assert tokenizer.decode(asked).endswith("[INST] a</s>b [/INST]")
    assert tokenizer.decode(row.ids).endswith(" [/INST]c</s>d" + end)


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_that_takes_blanks_off_does_so_in_training_and_generation(kind):
    tokenizer, template, end = setting(kind if kind != "embedded" else "bytes", "trims")
    for said in (" lamp", "lamp\n", "\n lamp  "):
        asked, row = encoded(said, said, template, tokenizer)
        assert row.ids[: len(asked)] == asked == encoded("lamp", "x", template, tokenizer)[0]
        assert tokenizer.decode(row.ids) == tokenizer.decode(asked) + "lamp" + end


@pytest.mark.parametrize("kind", KINDS)
def test_text_rows_hold_no_mark_but_the_first(kind):
    tokenizer = tokenizer_of(kind)
    marks = marks_of(tokenizer)
    ids = encode_example(render_text(Record({"text": "".join(marks)}, "a.txt", 1)), tokenizer).ids
    assert [token for token in ids if token in marks.values()] == begin_ids(tokenizer)
    ids = encode_pieces(render_prompt([{"role": "user", "content": "".join(marks)}], Template("text"), tokenizer), tokenizer)
    assert [token for token in ids if token in marks.values()] == begin_ids(tokenizer)


def test_tokens_may_span_neighbouring_pieces_but_never_the_seam():
    tokenizer = tokenizer_of("bytes")
    whole = encode_pieces([Piece("the ke", False), Piece("eper", False)], tokenizer)
    assert whole == tokenizer("the keeper")["input_ids"]
    row = encode_example(render_pair(Record({"prompt": "the ke", "response": "eper"}, "a", 1), Template("format", "{prompt}"), tokenizer), tokenizer)
    assert row.ids[:-1] != whole
    assert row.ids[: row.trained.index(True)] == encode_pieces([Piece("the ke", False)], tokenizer)


def test_the_first_id_never_counts_as_supervised():
    assert Tokens([1, 2, 3], [True, False, True], "a", 1).supervised == 1
