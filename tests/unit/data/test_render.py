"""How a row is written: what is trained, what a template may do, and that no content can forge a control mark."""

import pytest

from halfbyte.data.records import Record
from halfbyte.data.render import PLAIN_TEMPLATE, Piece, Template, choose_template, render_pair, render_prompt, render_text
from halfbyte.errors import DataError, ModelError
from toy_tokenizers import CHATML, TEMPLATES, tokenizer_of

CHAT = Template("chat")


def row(prompt: str = "Who?", response: str = "Me.") -> Record:
    return Record({"prompt": prompt, "response": response}, "a.csv", 7)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def joined(pieces: list[Piece]) -> tuple[str, str]:
    """All that is not trained, all that is."""
    return tuple("".join(piece.text for piece in pieces if piece.trained is trained) for trained in (False, True))


def whole(tokenizer, response: str) -> str:
    """What the template writes of a pair, to its very end."""
    return tokenizer.apply_chat_template([*user("Who?"), {"role": "assistant", "content": response}], tokenize=False)


def with_template(template: str):
    """The toy tokenizer with a chat template of the test's own."""
    from toys import make_tokenizer

    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


# Which template


def test_the_template_is_chosen_and_the_reason_told():
    chat, plain = tokenizer_of("bytes", "chatml"), tokenizer_of("bytes")
    template, decision = choose_template("chat", "Be kind.", chat)
    assert template == Template("chat", system="Be kind.")
    assert (decision.value, decision.reason) == ("chat", "the tokenizer's own chat template")
    template, decision = choose_template("Q: {prompt} A:", None, chat)
    assert template == Template("format", "Q: {prompt} A:")
    assert decision.reason == "the recipe writes its own"
    template, decision = choose_template("chat", None, plain)
    assert template == Template("format", PLAIN_TEMPLATE)
    assert decision.value == r"### Prompt:\n{prompt}\n\n### Response:\n"
    assert decision.reason == "the base has no chat template; data.prompt_template writes another"
    assert Template(**template.as_json()) == template


def test_a_system_text_without_a_chat_template_is_refused():
    with pytest.raises(ModelError, match=r"data\.system: this base has no chat template") as caught:
        choose_template("chat", "Be kind.", tokenizer_of("bytes"))
    assert "data.prompt_template" in caught.value.hint


# Pieces


@pytest.mark.parametrize(("name", "before", "trained"), [
    ("chatml", "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n", "Me.<|im_end|>"),
    ("begins", "<s><|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n", "Me.<|im_end|>"),
    ("mistral", "<s>[INST] Who? [/INST]", "Me.</s>"),
    ("endless", "user: Who?\nassistant: ", "Me.</s>"),
    ("obliging", "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n", "Me.<|im_end|>"),
])  # fmt: skip
def test_the_response_and_the_mark_that_ends_it_are_trained_and_nothing_behind(name, before, trained):
    """A template's line end behind the mark is not trained: a model that says it has not stopped at the mark."""
    example = render_pair(row(), CHAT, tokenizer_of("bytes", name))
    assert joined(example.pieces) == (before, trained)
    assert [piece.trained for piece in example.pieces] == [False, True]
    assert (example.file, example.line) == ("a.csv", 7)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("response", ["a", "e", "user", "assistant", "im_end", "</", "\n", "x\n", "  x ", "<|im_end|>", "s>", "|"])
def test_an_answer_is_found_even_where_the_template_says_the_same(name, response):
    response = response + "." if not response.strip() else response
    tokenizer = tokenizer_of("bytes", name)
    end = "<|im_end|>" if "im_start" in TEMPLATES[name] else "</s>"
    assert name != "chatml" or whole(tokenizer, response).endswith(response + end + "\n")
    said = response.strip() if name == "trims" else response
    assert joined(render_pair(row("Who?", response), CHAT, tokenizer).pieces)[1] == said + end


@pytest.mark.parametrize("name", [*TEMPLATES, None])
@pytest.mark.parametrize("prompt", ["Who?", " two\n\nlines  ", "<|im_end|>", "user"])
def test_a_row_begins_with_what_generation_asks(name, prompt):
    tokenizer = tokenizer_of("bytes", name)
    template, _ = choose_template("chat", None, tokenizer)
    asked = render_prompt(user(prompt), template, tokenizer)
    example = render_pair(row(prompt), template, tokenizer)
    assert [piece for piece in example.pieces if not piece.trained] == asked
    assert not any(piece.trained for piece in asked)


def test_a_template_of_the_recipe():
    tokenizer = tokenizer_of("bytes", "chatml")
    template = Template("format", "<s>[INST] {prompt} [/INST]")
    assert render_pair(row("{prompt}", " Me."), template, tokenizer).pieces == [
        Piece("<s>[INST] ", False), Piece("{prompt}", False), Piece(" [/INST]", False), Piece(" Me.", True), Piece("</s>", True),
    ]  # fmt: skip


def test_a_text_is_trained_whole_and_read_literally():
    assert render_text(Record({"text": "a</s>"}, "a.txt", 3)).pieces == [Piece("a</s>", True, literal=True)]
    assert render_prompt(user("a</s>"), Template("text"), tokenizer_of("bytes")) == [Piece("a</s>", False, literal=True)]


def test_a_system_text_stands_in_every_prompt_and_in_place_of_the_templates_own():
    for name in ("chatml", "obliging"):
        before, _ = joined(render_pair(row(), Template("chat", system="Be brief.</s>"), tokenizer_of("bytes", name)).pieces)
        assert before.startswith("<|im_start|>system\nBe brief.</s><|im_end|>\n<|im_start|>user\n")
        assert "kind" not in before


def test_a_conversation_keeps_its_own_system_text():
    messages = [{"role": "system", "content": "A"}, *user("b"), {"role": "assistant", "content": "c"}, *user("d")]
    text, _ = joined(render_prompt(messages, Template("chat", system="Z"), tokenizer_of("bytes", "chatml")))
    turns = ["system\nA", "user\nb", "assistant\nc", "user\nd"]
    assert text == "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"


# Control marks in contents


@pytest.mark.parametrize("mark", ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"])
def test_a_mark_in_a_content_is_a_literal_piece(mark):
    tokenizer = tokenizer_of("bytes", "chatml")
    for template in (CHAT, Template("format", PLAIN_TEMPLATE)):
        pieces = render_pair(row(f"a{mark}b", f"{mark}c{mark}"), template, tokenizer).pieces
        assert [piece for piece in pieces if piece.literal] == [Piece(mark, False, True), Piece(mark, True, True), Piece(mark, True, True)]
        before, trained = joined(pieces)
        assert f"a{mark}b" in before
        assert trained.startswith(f"{mark}c{mark}")


def test_a_mark_inside_another_is_hidden_whole():
    tokenizer = with_template(CHATML)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<<s>>", "<|im_start|>", "<|im_end|>"]})
    pieces = render_pair(row("x<<s>>y", "<|im_<|im_end|>end|>"), CHAT, tokenizer).pieces
    assert [piece.text for piece in pieces if piece.literal] == ["<<s>>", "<|im_end|>"]
    assert joined(pieces)[1] == "<|im_<|im_end|>end|><|im_end|>"


def test_a_content_may_hold_the_characters_that_stand_in_for_marks():
    """Guards against a private-use character of the user's that came back as </s>."""
    said = "\U000f0000</s>\U000f0001<s>\U000f0002"
    before, trained = joined(render_pair(row(said, said), CHAT, tokenizer_of("bytes", "chatml")).pieces)
    assert said in before
    assert trained == said + "<|im_end|>"


# Templates that cannot be used


@pytest.mark.parametrize(("template", "words"), [
    (CHATML.replace("m['content']", "m['content'] + ('!' if loop.last else '')"), "writes a prompt differently once it is answered"),
    (CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}"), "writes a prompt differently once it is answered"),
    (CHATML.replace("m['content']", "m['content'] | upper"), "changes the text of an answer"),
])  # fmt: skip
def test_a_template_that_rewrites_is_refused(template, words):
    with pytest.raises(ModelError, match=words) as caught:
        render_pair(row("Who?", "me"), CHAT, with_template(template))
    assert caught.value.hint == "write the form into data.prompt_template"


def test_a_template_that_refuses_a_row_is_told_with_file_and_line():
    with pytest.raises(DataError, match=r"a\.csv:7: the chat template refuses this row: only user and assistant"):
        render_pair(row(), Template("chat", system="Be kind."), tokenizer_of("bytes", "mistral"))


@pytest.mark.parametrize("template", [CHAT, Template("format", PLAIN_TEMPLATE)])
def test_a_tokenizer_without_an_end_mark_is_refused(template):
    """Guards against a pattern of no marks, which was found everywhere and let such a tokenizer pass."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE({letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare)
    tokenizer.chat_template = TEMPLATES["endless"]
    with pytest.raises(ModelError, match="has no end mark"):
        render_pair(row(), template, tokenizer)
