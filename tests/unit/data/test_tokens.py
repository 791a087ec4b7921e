"""From pieces to ids: the prompt is a prefix, the answer comes back byte for byte, and a control mark is only what a template wrote."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from families import FAMILIES, compared, faults, random_conversation
from halfbyte.data import tokens
from halfbyte.data.records import Record
from halfbyte.data.render import Example, Piece, Template, choose_template, render_prompt, render_record
from halfbyte.data.tokens import Encoder, Tokens, begin_ids, encode_example, encode_pieces
from toy_tokenizers import BYTE_LEVEL, KINDS, ROUND_TRIP, TEMPLATES, random_texts, tokenizer_of
from toys import make_tokenizer

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


def pair(prompt: str, response: str) -> Record:
    return Record("a.csv", 7, messages=({"role": "user", "content": prompt}, {"role": "assistant", "content": response}))


def marks_of(tokenizer) -> dict[str, int]:
    return {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}


def encoded(prompt: str, response: str, template: Template, tokenizer) -> tuple[list[int], Tokens]:
    """Ids of the prompt as generation asks it, and the row as it is trained."""
    asked = encode_pieces(render_prompt([{"role": "user", "content": prompt}], template, tokenizer), tokenizer)
    return asked, encode_example(render_record(pair(prompt, response), template, tokenizer), tokenizer)


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
    text = encode_example(render_record(Record("a.txt", 1, text="the lamp"), Template("text"), tokenizer), tokenizer)
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
    ids = encode_example(render_record(Record("a.txt", 1, text="".join(marks)), Template("text"), tokenizer), tokenizer).ids
    assert [token for token in ids if token in marks.values()] == begin_ids(tokenizer)
    ids = encode_pieces(render_prompt([{"role": "user", "content": "".join(marks)}], Template("text"), tokenizer), tokenizer)
    assert [token for token in ids if token in marks.values()] == begin_ids(tokenizer)


def test_tokens_may_span_neighbouring_pieces_but_never_the_seam():
    tokenizer = tokenizer_of("bytes")
    whole = encode_pieces([Piece("the ke", False), Piece("eper", False)], tokenizer)
    assert whole == tokenizer("the keeper")["input_ids"]
    row = encode_example(render_record(pair("the ke", "eper"), Template("format", "{prompt}"), tokenizer), tokenizer)
    assert row.ids[:-1] != whole
    assert row.ids[: row.trained.index(True)] == encode_pieces([Piece("the ke", False)], tokenizer)


def test_the_first_id_never_counts_as_supervised():
    assert Tokens([1, 2, 3], [True, False, True], "a", 1).supervised == 1


# Many at a time


@pytest.mark.parametrize("kind", KINDS)
def test_many_at_a_time_are_what_each_is_alone(kind):
    """Marks in contents, empty pieces and rows of any length must not shift what belongs to which row."""
    tokenizer, template, _ = setting(kind, "mistral" if kind != "embedded" else None)
    said = [*drawn(kind, tokenizer, 25), ("</s>", "<s></s>"), ("x", "</s>x"), ("\n\nx", "\n\n\ny")]
    examples = [render_record(pair(*texts), template, tokenizer) for texts in said]
    examples += [render_record(Record("a.txt", 1, text=text), Template("text"), tokenizer) for text in ("the lamp</s>", "x")]
    examples += [Example([], "a", 1), Example([Piece("", False), Piece("x", True), Piece("", True)], "a", 2)]
    many = Encoder(tokenizer).encode(examples)
    assert many == [encode_example(example, tokenizer) for example in examples]
    assert [row.line for row in many[-2:]] == [1, 2]
    assert Encoder(tokenizer).encode([]) == []


def test_an_earlier_call_that_cut_or_padded_changes_nothing():
    """transformers leaves truncation and padding switched on in the tokenizer after a call that asked for them."""
    tokenizer = make_tokenizer()
    example = Example([Piece("the keeper lit the lamp", False), Piece("x", True)], "a", 1)
    wanted = encode_example(example, tokenizer)
    encoder = Encoder(tokenizer)
    tokenizer(["the keeper lit the lamp", "x"], padding="max_length", truncation=True, max_length=5)
    assert encoder.encode([example]) == [wanted]
    assert len(encoder.places("the keeper lit the lamp")) > 5


@pytest.mark.parametrize("kind", ["bytes", "llama"])
def test_a_slow_tokenizer_gives_the_same_ids(kind, monkeypatch):
    """One that does not run on the `tokenizers` library is called text by text."""
    tokenizer, template, _ = setting(kind, "mistral")
    examples = [render_record(pair(*texts), template, tokenizer) for texts in (("Who </s>?", "Me."), (" x", "\n\n</s>y"))]
    fast = Encoder(tokenizer).encode(examples)
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    monkeypatch.setattr(type(tokenizer), "backend_tokenizer", None)
    assert Encoder(tokenizer).encode(examples) == fast


# Conversations


TALK = (("system", "Be kind.</s>"), ("user", "Who </s>?"), ("assistant", "Me."), ("user", "Where?"), ("assistant", " There</s>."))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [Template("chat", fold_system=True), Template("format", "{prompt}"), Template("format", OWN_FORMATS[0])])
def test_what_is_trained_changes_no_id_and_every_prompt_is_a_prefix(kind, template):
    tokenizer = tokenizer_of(kind, "mistral")
    record = Record("a.csv", 7, messages=tuple({"role": role, "content": content} for role, content in TALK))
    answers, last, everything = (encode_example(render_record(record, template, tokenizer, loss), tokenizer) for loss in ("answers", "last", "all"))
    assert answers.ids == last.ids == everything.ids
    assert last.trained == [one and place > len(last.ids) - sum(last.trained) - 1 for place, one in enumerate(answers.trained)]
    assert last.supervised < answers.supervised < everything.supervised == len(everything.ids) - 1
    for turn in (2, 4):
        asked = encode_pieces(render_prompt(record.messages[:turn], template, tokenizer), tokenizer)
        assert answers.ids[: len(asked)] == asked
        assert answers.trained[len(asked) - 1 : len(asked) + 1] == [False, True]


def test_a_text_can_be_tokenised_in_parts():
    """A book is too long to be tokenised whole; a later part begins with no mark and no blank."""
    for kind in KINDS:
        encoder = Encoder(tokenizer_of(kind))
        whole = encoder.text("the lamp</s>\nthe keeper", begins=True)
        assert whole[: len(encoder.begin)] == encoder.begin
        assert encoder.end_id not in whole
        parts = encoder.text("the lamp</s>", begins=True) + encoder.text("\nthe keeper", begins=False)
        assert encoder.tokenizer.decode(parts) == encoder.tokenizer.decode(whole)


def test_the_places_of_tokens_cover_the_text():
    encoder = Encoder(tokenizer_of("bytes"))
    places = encoder.places("the lamp was lit")
    assert [place[0] for place in places[1:]] == [place[1] for place in places[:-1]]
    assert (places[0][0], places[-1][1]) == (0, len("the lamp was lit"))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(draw=st.randoms(use_true_random=False), name=st.sampled_from(list(FAMILIES)), loss=st.sampled_from(["answers", "last"]))
def test_what_is_learned_of_a_random_conversation_is_its_answers(draw, name, loss):
    """Over all families and the plain template: the supervised tokens say the answers and their end marks, byte for byte (CORRECTNESS 1.1, 1.2, 1.7)."""
    assert faults(name, random_conversation(draw, FAMILIES[name]), loss) == []


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.chats])
def test_ids_are_those_of_transformers(name):
    """Of plain contents the ids are those of apply_chat_template, when the pieces are joined; BPE may part words otherwise at their borders only."""
    for seed in range(20):
        messages = random_conversation(random.Random(seed), FAMILIES[name], marks=False)
        assert compared(name, messages)["text"]
        assert compared(name, messages)["joined ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_of_megabytes_is_cut_and_loses_nothing(monkeypatch, kind):
    """Merging twelve million letters as one word took more than ten seconds; a text with blanks is tokenised as ever."""
    encoder = Encoder(tokenizer_of(kind))
    text = "the lamp " * 30 + "lamp" * 100 + " the lamp\n" + "lamp" * 30
    whole, short = encoder.text(text, begins=True), encoder.text("the lamp " * 30, begins=True)
    monkeypatch.setattr(tokens, "LONGEST_WORD", 50)
    monkeypatch.setattr(tokens, "TOO_LONG_WORD", tokens.too_long_word(50))
    cut = encoder.text(text, begins=True)
    decode = encoder.tokenizer.decode
    assert decode(cut) == decode(whole)
    assert len(whole) <= len(cut) <= len(whole) + 12
    assert encoder.text("the lamp " * 30, begins=True) == short
