"""How a row is written: what is trained, what a template may do, and that no content can forge a control mark."""

import pytest

from families import FAMILIES, QWEN3_TURNS, family_tokenizer
from halfbyte.data import render
from halfbyte.data.records import Record
from halfbyte.data.render import PLAIN_TEMPLATE, Piece, Template, choose_template, render_prompt, render_record
from halfbyte.errors import DataError, ModelError
from toy_tokenizers import CHATML, TEMPLATES, tokenizer_of

CHAT = Template("chat")
LONG = (("system", "Be kind."), ("user", "Who?"), ("assistant", "Me."), ("user", "Where?"), ("assistant", "There."))


def row(prompt: str = "Who?", response: str = "Me.") -> Record:
    return talk(("user", prompt), ("assistant", response))


def talk(*turns: tuple[str, str]) -> Record:
    return Record("a.csv", 7, messages=tuple({"role": role, "content": content} for role, content in turns))


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


def test_a_system_text_of_the_recipe_is_never_lost():
    """Guards against data.system that was dropped without a word where the recipe writes its own template."""
    for name, asked in ((None, "chat"), (None, "Q: {prompt} A:"), ("chatml", "chat"), ("chatml", "Q: {prompt} A:")):
        tokenizer = tokenizer_of("bytes", name)
        for fold in (False, True):
            template, _ = choose_template(asked, "Be kind.", tokenizer, fold_system=fold)
            assert "Be kind." in joined(render_record(row(), template, tokenizer).pieces)[0]


def test_an_instruction_stands_before_every_question():
    template, _ = choose_template("chat", None, tokenizer_of("bytes", "chatml"), instruction="Answer:")
    for before in (
        render_record(talk(*LONG), template, tokenizer_of("bytes", "chatml")).pieces,
        render_prompt(talk(*LONG[:4]).messages, template, tokenizer_of("bytes", "chatml")),
    ):
        text = joined(before)[0]
        assert "user\nAnswer:\n\nWho?" in text
        assert "user\nAnswer:\n\nWhere?" in text


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
    example = render_record(row(), CHAT, tokenizer_of("bytes", name))
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
    assert joined(render_record(row("Who?", response), CHAT, tokenizer).pieces)[1] == said + end


@pytest.mark.parametrize("name", [*TEMPLATES, None])
@pytest.mark.parametrize("prompt", ["Who?", " two\n\nlines  ", "<|im_end|>", "user"])
def test_a_row_begins_with_what_generation_asks(name, prompt):
    tokenizer = tokenizer_of("bytes", name)
    template, _ = choose_template("chat", None, tokenizer)
    asked = render_prompt(user(prompt), template, tokenizer)
    example = render_record(row(prompt), template, tokenizer)
    assert [piece for piece in example.pieces if not piece.trained] == asked
    assert not any(piece.trained for piece in asked)


def test_a_template_of_the_recipe():
    tokenizer = tokenizer_of("bytes", "chatml")
    template = Template("format", "<s>[INST] {prompt} [/INST]")
    assert render_record(row("{prompt}", " Me."), template, tokenizer).pieces == [
        Piece("<s>[INST] {prompt} [/INST]", False), Piece(" Me.</s>", True, answer=True),
    ]  # fmt: skip


def test_a_text_is_trained_whole_and_read_literally():
    assert render_record(Record("a.txt", 3, text="a</s>"), Template("text"), tokenizer_of("bytes")).pieces == [Piece("a</s>", True, literal=True)]
    assert render_prompt(user("a</s>"), Template("text"), tokenizer_of("bytes")) == [Piece("a</s>", False, literal=True)]


def test_a_system_text_stands_in_every_prompt_and_in_place_of_the_templates_own():
    for name in ("chatml", "obliging"):
        before, _ = joined(render_record(row(), Template("chat", system="Be brief.</s>"), tokenizer_of("bytes", name)).pieces)
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
        pieces = render_record(row(f"a{mark}b", f"{mark}c{mark}"), template, tokenizer).pieces
        assert [piece[:3] for piece in pieces if piece.literal] == [(mark, False, True), (mark, True, True), (mark, True, True)]
        before, trained = joined(pieces)
        assert f"a{mark}b" in before
        assert trained.startswith(f"{mark}c{mark}")


def test_a_mark_inside_another_is_hidden_whole():
    tokenizer = with_template(CHATML)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<<s>>", "<|im_start|>", "<|im_end|>"]})
    pieces = render_record(row("x<<s>>y", "<|im_<|im_end|>end|>"), CHAT, tokenizer).pieces
    assert [piece.text for piece in pieces if piece.literal] == ["<<s>>", "<|im_end|>"]
    assert joined(pieces)[1] == "<|im_<|im_end|>end|><|im_end|>"


def test_a_content_may_hold_the_characters_that_stand_in_for_marks():
    """Guards against a private-use character of the user's that came back as </s>."""
    said = "\U000f0000</s>\U000f0001<s>\U000f0002"
    before, trained = joined(render_record(row(said, said), CHAT, tokenizer_of("bytes", "chatml")).pieces)
    assert said in before
    assert trained == said + "<|im_end|>"


# Conversations


def test_every_answer_of_a_conversation_is_trained_and_no_question():
    before, trained = joined(render_record(talk(*LONG), CHAT, tokenizer_of("bytes", "chatml")).pieces)
    assert trained == "Me.<|im_end|>There.<|im_end|>"
    assert before == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
        "\n<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_format_is_repeated_turn_by_turn():
    tokenizer = tokenizer_of("bytes")
    pieces = render_record(talk(*LONG), Template("format", "<s>[INST] {prompt} [/INST]"), tokenizer).pieces
    assert pieces == [
        Piece("<s>Be kind.\n\n[INST] Who? [/INST]", False), Piece("Me.</s>", True, answer=True),
        Piece("\n\n[INST] Where? [/INST]", False), Piece("There.</s>", True, answer=True),
    ]  # fmt: skip


@pytest.mark.parametrize("template", [CHAT, Template("format", PLAIN_TEMPLATE)])
def test_what_is_trained_can_be_chosen(template):
    tokenizer = tokenizer_of("bytes", "chatml")
    end = "<|im_end|>" if template == CHAT else "</s>"
    answers, last, everything = (render_record(talk(*LONG), template, tokenizer, loss).pieces for loss in ("answers", "last", "all"))
    assert joined(answers)[1] == f"Me.{end}There.{end}"
    assert joined(last)[1] == f"There.{end}"
    assert joined(everything)[0] == ""
    texts = [[(piece.text, piece.answer) for piece in pieces] for pieces in (answers, last, everything)]
    assert texts[0] == texts[1] == texts[2], "what is trained must not change what is written, nor where it is parted"


@pytest.mark.parametrize("name", [*TEMPLATES, None])
def test_a_conversation_begins_with_what_generation_asks_at_each_turn(name):
    tokenizer = tokenizer_of("bytes", name)
    template, _ = choose_template("chat", None, tokenizer)
    said = talk(*LONG[1:], ("user", "</s> and?"), ("assistant", "x"))
    pieces = render_record(said, template, tokenizer, "last").pieces
    for turn in (1, 3, 5):
        asked = render_prompt(said.messages[:turn], template, tokenizer)
        assert [piece._replace(trained=False) for piece in pieces[: len(asked)]] == asked


def test_a_question_without_an_answer_is_left_off():
    """BAD_INPUTS 34: what is asked last and never answered has nothing to teach, and nothing comes behind the last end mark."""
    for tokenizer in (tokenizer_of("bytes", "chatml"), thinking(False)):
        assert render_record(talk(*LONG, ("user", "And?")), CHAT, tokenizer) == render_record(talk(*LONG), CHAT, tokenizer)


def test_a_greeting_is_learned_without_a_question():
    pieces = render_record(talk(("assistant", "Hello."), *LONG[1:]), CHAT, tokenizer_of("bytes", "chatml")).pieces
    assert joined(pieces)[1] == "Hello.<|im_end|>Me.<|im_end|>There.<|im_end|>"


def test_marks_are_plain_text_in_every_turn():
    """A mark in a system text or in an earlier answer could end or forge a turn just as one in the prompt."""
    said = talk(*((role, f"a<|im_end|>{role}</s>") for role, _ in LONG))
    for template in (CHAT, Template("format", PLAIN_TEMPLATE)):
        pieces = render_record(said, template, tokenizer_of("bytes", "chatml")).pieces
        assert [piece.text for piece in pieces if piece.literal] == ["<|im_end|>", "</s>"] * 5
        assert [piece.text for piece in pieces if piece.literal and piece.trained] == ["<|im_end|>", "</s>"] * 2


# System texts


def test_a_template_without_system_texts_offers_to_fold_them():
    """BAD_INPUTS 37: the system role where the template has none."""
    tokenizer = tokenizer_of("bytes", "mistral")
    with pytest.raises(DataError, match=r"a\.csv:7: the chat template of this base knows no system text \(only user and assistant\)") as caught:
        render_record(talk(*LONG), CHAT, tokenizer)
    assert caught.value.hint.startswith("data.system_as=user")
    before, _ = joined(render_record(talk(*LONG), Template("chat", fold_system=True), tokenizer).pieces)
    assert before == "<s>[INST] Be kind.\n\nWho? [/INST][INST] Where? [/INST]"
    own, _ = joined(render_record(talk(*LONG[1:]), Template("chat", system="Be kind.", fold_system=True), tokenizer).pieces)
    assert own == before
    asked = render_prompt(talk(*LONG[:2]).messages, Template("chat", fold_system=True), tokenizer)
    assert joined(asked)[0] == "<s>[INST] Be kind.\n\nWho? [/INST]"


def test_a_template_that_drops_a_system_text_is_refused():
    """Mistral v0.3 writes the system text into the last prompt only, so an answered conversation loses it without a word."""
    for template in (FAMILIES["mistral-v0.3"].template, CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")):
        with pytest.raises(DataError, match=r"a\.csv:7: the chat template leaves out turn 1 \(system\)") as caught:
            render_record(talk(*LONG), CHAT, with_template(template))
        assert caught.value.hint.startswith("data.system_as=user")


# Templates that look at what is said


def thinking(prompt_opens: bool):
    return with_template(FAMILIES["qwen-3-thinking" if prompt_opens else "qwen-3"].template)


def test_thoughts_are_learned_in_the_last_answer_and_dropped_in_earlier_ones():
    """The template says which: Qwen 3 takes the thoughts out of earlier turns and writes empty ones where the last has none."""
    said = (("user", "Who?"), ("assistant", "<think>\nHm.\n</think>\n\nMe."), ("user", "Where?"))
    last = "<think>\nSo.\n</think>\n\nThere."
    for opens in (False, True):
        begin = "<think>\n" if opens else ""
        learned = joined(render_record(talk(*said, ("assistant", last)), CHAT, thinking(opens)).pieces)[1]
        assert learned == "Me.<|im_end|>" + last.removeprefix(begin) + "<|im_end|>"
        learned = joined(render_record(talk(*said, ("assistant", "There.")), CHAT, thinking(opens)).pieces)[1]
        assert learned == "Me.<|im_end|>" + "<think>\n\n</think>\n\nThere.".removeprefix(begin) + "<|im_end|>"
        with pytest.raises(DataError, match=r"a\.csv:7: the chat template changes the text of an answer \(turn 4\)"):
            render_record(talk(*said, ("assistant", "So <think>be</think> it.")), CHAT, thinking(opens))


def test_a_template_that_changes_contents_is_refused_where_it_changes_an_answer():
    """Falcon 7B Instruct's template takes blank lines out: of a question that is its way, of an answer it would be our loss."""
    tokenizer = with_template(CHATML.replace("m['content']", "m['content'].strip().replace('\\n\\n', '\\n')"))
    before, trained = joined(render_record(row("a\n\nb", "c\nd "), CHAT, tokenizer).pieces)
    assert "a\nb" in before
    assert trained == "c\nd<|im_end|>"
    with pytest.raises(DataError, match=r"a\.csv:7: the chat template changes the text of an answer \(turn 2\)"):
        render_record(row("a", "c\n\nd"), CHAT, tokenizer)


LOOKS = [
    "m['content'] | trim", "m['content'].lstrip('x')", "m['content'].split('</x>')[-1]", "m['content'] | replace('</x>', '!')", "m['content'] | upper",
    "m['content'] | lower", "m['content'] | string", "m['content'] | tojson", "m['content'] | e", "m['content'][:9]", "m['content'] | truncate(12)",
    "('long' if m['content'] | length > 9 else m['content'])", "('no' if '</x>' in m['content'] else m['content'])", "'%s' % m['content']",
    "'{}'.format(m['content'])", "(m['content'] ~ '.')", "('a ' + m['content'] + ' b').strip()", "m['content'].removeprefix('x')", "[m['content']] | join",
    "('yes' if m['content'] == 'x' else m['content'])", "('yes' if m['content'] in ['x', 'y'] else m['content'])",
    "(m['content'] + '!' if m['role'] == 'user' and 'B' in m['content'] else m['content'])", "({'x': 'yes'}[m['content']] or m['content'])",
    "(m['content'] | list | join)", "m['content'].encode().decode()", "('yes' if m['content'] is upper else m['content'])",
    "('yes' if m['content'] is string else m['content'])", "('yes' if m['content'].startswith(('x', '</x>')) else m['content'])",
]  # fmt: skip
WRAPPED = [
    "{% macro said(c) %}{{ c }}{% endmacro %}{% for m in messages %}{% set c = said(m['content']) %}",
    "{% for m in messages %}{% set c %}{{ m['content'] }}{% endset %}",
]  # fmt: skip
ENDS = "{{ '<|im_start|>' + m['role'] + '\n' + (c.split('</x>')[-1] if '</x>' in c else c) + '<|im_end|>\n' }}{% endfor %}" + CHATML.split("{% endfor %}")[1]


@pytest.mark.parametrize("template", [*(CHATML.replace("m['content']", look) for look in LOOKS), *(head + ENDS for head in WRAPPED), QWEN3_TURNS])
def test_a_form_once_learned_writes_what_the_template_writes(template, monkeypatch):
    """Rows are filled into a form that was learned from a probe: for every content it must be what the template itself writes, or not be used."""
    contents = [
        "x",
        "y",
        "plain",
        "X",
        "aB",
        " blank",
        "blank\n",
        "a</x>b",
        "<x>",
        '"q" & <b>',
        "xylophone",
        "\u0130\u00df",
        "{0}",
        "{",
        "%s",
        "1234567890 123",
    ]
    rows = [row(asked, said) for asked in contents for said in contents]
    learned, run = with_template(template), with_template(template)
    filled = [outcome(one, learned) for one in rows]
    monkeypatch.setattr(render._Writer, "_learn_form", render._Writer._check_that_all_is_kept)
    assert filled == [outcome(one, run) for one in rows]


def outcome(record: Record, tokenizer) -> object:
    """What is rendered, or the words with which it is refused."""
    try:
        return render_record(record, CHAT, tokenizer)
    except (DataError, ModelError) as error:
        return error.message


@pytest.mark.parametrize("name", [*TEMPLATES, *FAMILIES])
def test_most_rows_are_filled_into_a_form(name, monkeypatch):
    """Rendering must cost little beside tokenising, so plain contents must not be run through the template one by one."""
    tokenizer = tokenizer_of("bytes", name) if name in TEMPLATES else family_tokenizer(name)
    template = CHAT if name in TEMPLATES else FAMILIES[name].form
    render_record(row(), template, tokenizer)
    monkeypatch.setattr(render._Writer, "_run_template", None)
    assert render_record(row("Is it <b> {0}\n\n&c?", "x < y, |</"), template, tokenizer).pieces


def test_a_template_may_be_exchanged():
    """A writer is kept for each tokenizer; one that is given another template or new tokens is not served the old one."""
    tokenizer = with_template(CHATML)
    assert joined(render_record(row(), CHAT, tokenizer).pieces)[1] == "Me.<|im_end|>"
    tokenizer.chat_template = TEMPLATES["endless"]
    assert joined(render_record(row("a<new>"), CHAT, tokenizer).pieces) == ("user: a<new>\nassistant: ", "Me.</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<new>"]})
    assert [piece.text for piece in render_record(row("a<new>"), CHAT, tokenizer).pieces if piece.literal] == ["<new>"]


# Templates that cannot be used


@pytest.mark.parametrize(("template", "words"), [
    (CHATML.replace("m['content']", "m['content'] + ('!' if loop.last else '')"), "writes a prompt differently once it is answered"),
    (CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}"), "writes a prompt differently once it is answered"),
    (CHATML.replace("m['content']", "m['content'] | upper"), "changes the text of an answer"),
])  # fmt: skip
def test_a_template_that_rewrites_is_refused(template, words):
    with pytest.raises((ModelError, DataError), match=r"a\.csv:7: the chat template " + words) as caught:
        render_record(row("Who?", "me"), CHAT, with_template(template))
    assert caught.value.hint == "write the form into data.prompt_template"


def test_a_template_that_refuses_a_row_is_told_with_file_and_line():
    tokenizer = with_template("{% if messages | length > 2 %}{{ raise_exception('only one turn') }}{% endif %}" + CHATML)
    assert render_record(row(), CHAT, tokenizer).pieces
    with pytest.raises(DataError, match=r"a\.csv:7: the chat template refuses this row: only one turn"):
        render_record(talk(*LONG[1:]), CHAT, tokenizer)
    with pytest.raises(DataError, match=r"^the chat template refuses this row: only one turn"):
        render_prompt(talk(*LONG[1:4]).messages, CHAT, tokenizer)


@pytest.mark.parametrize(
    "broken", ["{{ messages[7]['content'] }}", "{{ 'a' + 1 }}", "{{ ''.nothing() }}", "{{ messages[0].__class__.__mro__ }}", "{{ [] | first + '' }}"]
)
def test_a_template_with_a_fault_is_refused_and_not_a_traceback(broken):
    with pytest.raises(DataError, match=r"a\.csv:7: the chat template refuses this row"):
        render_record(row(), CHAT, with_template(CHATML + broken))


@pytest.mark.parametrize("template", [CHAT, Template("format", PLAIN_TEMPLATE)])
def test_two_turns_of_one_role_are_refused(template):
    tokenizer = tokenizer_of("bytes", "chatml")
    with pytest.raises(DataError, match=r"a\.csv:7: turns 2 and 3 are both of the user") as caught:
        render_record(talk(LONG[0], ("user", "Hm."), *LONG[1:]), template, tokenizer)
    assert "join them" in caught.value.hint


def test_a_system_text_in_the_middle_has_no_place_in_a_format():
    with pytest.raises(DataError, match=r"a\.csv:7: turn 3 is a system text"):
        render_record(talk(*LONG[1:3], *LONG[:3]), Template("format", PLAIN_TEMPLATE), tokenizer_of("bytes"))


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
        render_record(row(), template, tokenizer)


@pytest.mark.parametrize("reach", [
    "{{ ''.__class__.__mro__ }}", "{{ messages[0].content.__class__ }}", "{{ messages[0].content._asked }}",
    "{{ (messages[0].content ~ '{0.__class__}').format(messages) }}", "{{ messages[0].content.format.__globals__ }}",
    "{{ messages[0].content.strip.__globals__ }}", "{{ '{0.__class__.__mro__}'.format(messages[0].content) }}",
])  # fmt: skip
def test_a_template_reaches_nothing_through_a_content(reach):
    """SECURITY: a template comes with a base from anywhere. The content that watches it has methods in Python, which must not be a way out of the sandbox."""
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}" + reach
    try:
        said = "".join(piece.text for piece in render_record(row(), Template("chat"), with_template(template)).pieces)
    except (DataError, ModelError) as error:
        said = error.message
    assert not any(word in said for word in ("class 'str'", "class 'object'", "Asked(", "Probe", "<class", "builtins"))
