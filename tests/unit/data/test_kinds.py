"""The kind of a file and its columns are found by looking, told with a reason, and refused where two readings are equally good."""

import csv
import json
import random
import re
import shlex
from pathlib import Path

import pytest

from halfbyte.data.read import Reading, read_records
from halfbyte.errors import DataError
from halfbyte.recipe.schema import (
    AutoData,
    InstructionData,
    LabelData,
    MessagesData,
    PairData,
    SettledData,
    TaggedData,
    TextData,
)  # fmt: skip

MESSAGES = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
SHAREGPT = [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]


@pytest.fixture
def write(tmp_path):
    """A function: rows of cells -> path of a CSV or JSONL file with them."""

    def to(rows: list[dict], name: str = "a.jsonl") -> Path:
        file = tmp_path / name
        if name.endswith(".csv"):
            with open(file, "w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        else:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file

    return to


def auto(file: Path, **more) -> Reading:
    return read_records(AutoData(path=str(file), **more))


def named(section: SettledData) -> dict[str, str]:
    """The columns that were found."""
    return {key: value for key, value in section.model_dump(exclude_unset=True).items() if key == "column" or key.endswith("_column")}


def refusal(call, *args, **more) -> DataError:
    with pytest.raises(DataError) as caught:
        call(*args, **more)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return caught.value


# Found by looking


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize(("columns", "kind", "found"), [
    ("prompt,response", "prompt_response", {"prompt_column": "prompt", "response_column": "response"}),
    ("Comment,Response", "prompt_response", {"prompt_column": "Comment", "response_column": "Response"}),
    ("id, Question ,ANSWER", "prompt_response", {"prompt_column": " Question ", "response_column": "ANSWER"}),
    ("human,assistant,source", "prompt_response", {"prompt_column": "human", "response_column": "assistant"}),
    ("input,output", "prompt_response", {"prompt_column": "input", "response_column": "output"}),
    ("prompt,prompt_id,completion", "prompt_response", {"prompt_column": "prompt", "response_column": "completion"}),
    ("mr,ref", "structure", {"prompt_column": "ref", "response_column": "mr"}),
    ("gem_id,target,meaning_representation", "structure", {"prompt_column": "target", "response_column": "meaning_representation"}),
    ("instruction,output", "instruction", {"instruction_column": "instruction", "output_column": "output"}),
    ("instruction,input,output", "instruction", {"instruction_column": "instruction", "input_column": "input", "output_column": "output"}),
    ("instruction,input,Response", "instruction", {"instruction_column": "instruction", "input_column": "input", "output_column": "Response"}),
    ("instruction,context,response", "instruction", {"instruction_column": "instruction", "input_column": "context", "output_column": "response"}),
    ("instruction,input,context,output", "instruction", {"instruction_column": "instruction", "input_column": "input", "output_column": "output"}),
    ("instruction,response", "prompt_response", {"prompt_column": "instruction", "response_column": "response"}),
    ("text,prompt,response", "prompt_response", {"prompt_column": "prompt", "response_column": "response"}),
    ("id,Text", "text", {"column": "Text"}),
    ("words", "text", {"column": "words"}),
])  # fmt: skip
def test_columns_are_known_by_their_names(write, ending, columns, kind, found):
    """Alpaca's `input` was left out without a word once, and then Dolly's `context`."""
    names = columns.split(",")
    reading = auto(write([{name: f"in {name}" for name in names}], f"a.{ending}"))
    assert reading.section.kind == kind
    assert named(reading.section) == found
    decision = next(decision for decision in reading.decisions if decision.name == "data")
    assert decision.value == kind
    assert all(repr(name) in decision.reason for name in found.values())
    unused = [name for name in names if name not in found.values()]
    assert ("not used: " + ", ".join(unused) in decision.reason) == bool(unused)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_column_of_few_values_beside_a_text_is_a_class(write, ending):
    rows = [{"text": f"text {i}", "label": "good" if i % 3 else "bad"} for i in range(30)]
    reading = auto(write(rows, f"a.{ending}"))
    assert (reading.section.kind, named(reading.section)) == ("label", {"text_column": "text", "label_column": "label"})
    assert "column 'label' has 2 values in 30 rows beside the text 'text'" in reading.decisions[-1].reason
    assert auto(write([{"question": row["text"], "intent": row["label"]} for row in rows])).section.kind == "label"


def test_a_column_of_many_values_is_no_class(write):
    reading = auto(write([{"text": f"text {i}", "label": f"label {i}"} for i in range(30)]))
    assert (reading.section.kind, named(reading.section)) == ("text", {"column": "text"})
    assert "not used: label" in reading.decisions[0].reason
    assert auto(write([{"text": f"text {i}", "label": f"label {i % 51}"} for i in range(200)])).section.kind == "text"
    assert auto(write([{"text": f"text {i}", "label": f"label {i % 50}"} for i in range(200)])).section.kind == "label"


@pytest.mark.parametrize(("column", "cell", "kind"), [
    ("messages", MESSAGES, "messages"), ("conversations", SHAREGPT, "sharegpt"), ("messages", SHAREGPT, "sharegpt"), ("Conversation", MESSAGES, "messages"),
    ("messages", [{"role": "human", "content": "a?"}, {"role": "gpt", "content": "b"}], "sharegpt"),
])  # fmt: skip
def test_lists_of_turns_are_conversations(write, column, cell, kind):
    reading = auto(write([{"id": "1", column: cell}]))
    assert (reading.section.kind, named(reading.section)) == (kind, {"column": column})
    assert [record.answered for record in reading.records()] == ["b"]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize(("user", "assistant"), [("<HUMAN>:", "<ASSISTANT>:"), ("### Human:", "### Assistant:"), ("User:", "Assistant:")])
def test_tags_part_the_turns_of_one_column(write, ending, user, assistant):
    reading = auto(write([{"text": f"{user} a{i}?\n{assistant} b"} for i in range(10)], f"a.{ending}"))
    assert isinstance(reading.section, TaggedData)
    assert (reading.section.column, reading.section.user_tag, reading.section.assistant_tag) == ("text", user, assistant)
    assert f"behind {user} and {assistant}" in reading.decisions[-1].reason


def test_tags_in_one_row_of_ten_make_no_conversations(write):
    rows = [{"text": "<HUMAN>: a?\n<ASSISTANT>: b"}] + [{"text": "a plain text"}] * 9
    assert auto(write(rows)).section.kind == "text"


def test_a_word_inside_a_sentence_is_no_tag(write):
    """'User:' stands in letters and logs; only where a line begins it parts turns."""
    assert auto(write([{"text": "User: Bob met the Assistant: he smiled."}] * 3)).section.kind == "text"


def test_a_text_file_is_a_book_or_tagged_turns(tmp_path):
    (tmp_path / "a.txt").write_text("One\n\nTwo\n")
    assert (auto(tmp_path / "a.txt").section.kind, auto(tmp_path / "a.txt").section.rows) == ("text", "book")
    (tmp_path / "b.txt").write_text("User: a?\nAssistant: b\n\nUser: c?\nAssistant: d\n")
    assert [record.asked for record in auto(tmp_path / "b.txt").records()] == ["a?", "c?"]


# Refused


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize(
    "columns", ["context,label", "prompts,responses", "user_id,answered", "contents,id", "ref,label", "target,response_id", "prompt_id,answer"]
)
def test_part_of_a_name_is_not_the_name(write, ending, columns):
    """'context' holds 'text' and 'prompt_id' holds 'prompt': a guess by parts of words would train on the wrong column."""
    error = refusal(auto, write([{name: f"in {name}" for name in columns.split(",")}], f"a.{ending}"))
    assert f"cannot tell what the columns {columns.replace(',', ', ')} are for" in error.message
    assert "data.kind=prompt_response" in error.hint


@pytest.mark.parametrize(("columns", "words"), [
    ("Prompt,prompt,response", ["which of the columns Prompt, prompt is the prompt?"]),
    ("question,answer,completion", ["which of the columns answer, completion is the response?"]),
    ("text,content", ["which of the columns text, content holds the text?"]),
    ("ref,mr,prompt,response", ["2 ways", "structure (columns 'ref' and 'mr'", "or prompt_response (columns 'prompt' and 'response'"]),
    ("ref,mr,target,meaning_representation", ["2 ways", "'ref' and 'mr'", "'target' and 'meaning_representation'"]),
    ("prompt,response,text,label", ["2 ways", "prompt_response", "label (column 'label' has 1 value in 1 rows"]),
    ("text,label,rating", ["2 ways", "column 'label'", "column 'rating'"]),
])  # fmt: skip
def test_two_readings_that_are_equally_good_are_refused_with_both_named(write, columns, words):
    """A second class column made the file plain text, and both labels were lost without a word."""
    file = write([{name: f"in {name}" for name in columns.split(",")}])
    error = refusal(auto, file)
    assert error.message.startswith(f"{file}: ")
    assert all(word in error.message for word in words)
    assert "state it" in error.hint


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize(("text", "response"), [("text", "response"), ("content", "answer"), ("sentence", "output"), ("the id, Body", "Reply")])
def test_a_text_beside_a_response_is_refused_with_both_commands(write, ending, text, response):
    """The texts were trained and the answers were not: `not used: response` was all that was said."""
    *others, text = text.split(",")
    file = write([{name: f"in {name}" for name in (*others, text, response)}], f"a.{ending}")
    error = refusal(auto, file)
    assert error.message.startswith(f"{file}: can be read in 2 ways: text (column {text!r}")
    assert f"or prompt_response (columns {text!r} and {response!r} are known names of text and response)" in error.message
    typed = shlex.quote(text)
    assert f"data.kind=text data.column={typed}, or data.kind=prompt_response data.prompt_column={typed} data.response_column={response}" in error.hint
    assert auto(file, loss="last").section.kind == "prompt_response", "a text has no answers"
    assert auto(file, column=text).section.kind == "text", "a pair has no `column`"


def test_two_lists_of_turns_are_refused(write):
    error = refusal(auto, write([{"messages": MESSAGES, "conversations": SHAREGPT}]))
    assert "2 ways: messages (column 'messages'" in error.message
    assert "sharegpt (column 'conversations'" in error.message
    assert "3 ways" in refusal(auto, write([{"messages": MESSAGES, "chat": MESSAGES, "prompt": "a", "response": "b"}])).message


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_messages_as_text_are_refused(write, ending):
    """BAD_INPUTS 31: a list written into a cell as text."""
    file = write([{"id": "1", "messages": json.dumps(MESSAGES)}] * 2, f"a.{ending}")
    error = refusal(auto, file)
    assert error.message == f"{file}:{1 if ending == 'jsonl' else 2}: messages is text, not a list"
    assert "parse it once more" in error.hint
    assert refusal(read_records, MessagesData(kind="messages", path=str(file))).message == error.message


def test_a_column_called_messages_may_hold_texts(write):
    """SMS collections call them so; the first row was refused as a conversation that is text."""
    assert auto(write([{"messages": "see you at five"}], "a.csv")).section.kind == "text"


# Stated


@pytest.mark.parametrize(("asked", "near"), [("respons", "Response"), ("response", "Response"), ("Response ", "Response"), ("zen", None)])
def test_a_missing_column_is_named_with_what_was_meant(write, asked, near):
    """BAD_INPUTS 11 and 13."""
    file = write([{"Comment": "a", "Response": "b"}])
    error = refusal(read_records, PairData(kind="prompt_response", path=str(file), prompt_column="Comment", response_column=asked))
    assert error.message == f"{file}: no column {asked!r} (data.response_column); columns are Comment, Response"
    assert error.hint == (f"did you mean {near!r}?" if near else "name one of them")
    shouted = PairData(kind="prompt_response", path=str(write([{"COMMENT": "a", "RESPONSE": "b"}])), prompt_column="comment", response_column="response")
    assert refusal(read_records, shouted).hint == "did you mean data.prompt_column='COMMENT' data.response_column='RESPONSE'?"


@pytest.mark.parametrize("section", [
    TextData(kind="text", path="", column="x"), InstructionData(kind="instruction", path="", instruction_column="x"),
    TaggedData(kind="tagged", path="", column="x"),
    LabelData(kind="label", path="", text_column="Comment", label_column="x"), MessagesData(kind="messages", path="", column="x"),
    PairData(kind="prompt_response", path="", prompt_column="Comment", response_column="Comment", group_column="x"),
])  # fmt: skip
def test_every_column_that_is_stated_is_looked_for(write, section):
    file = write([{"Comment": "a", "Response": "b"}])
    assert "no column 'x' (data." in refusal(read_records, section.model_copy(update={"path": str(file)})).message


def test_a_stated_kind_is_taken_as_it_is_and_told(write):
    file = write([{"prompt": "a", "response": "b", "text": "c"}])
    reading = read_records(TextData(kind="text", path=str(file)))
    assert [record.text for record in reading.records()] == ["c"]
    assert [(decision.name, decision.value, decision.reason) for decision in reading.decisions[:2]] == [
        ("data", "text", "as stated; not used: prompt, response"), ("column", "text", "the known name of a text column"),
    ]  # fmt: skip
    section = PairData(kind="prompt_response", path=str(file), prompt_column="text", response_column="prompt")
    assert read_records(section).decisions[0].reason == "as stated: text, prompt; not used: response"
    assert "which of the columns a, b holds the text?" in refusal(read_records, TextData(kind="text", path=str(write([{"a": "1", "b": "2"}])))).message


def test_a_column_that_is_stated_without_a_kind_is_the_one_that_is_looked_at(write):
    """The known name beside it was taken instead; or the kind was said to be the recipe's, which states none."""
    tagged = "User: a?\nAssistant: b"
    file = write([{"text": "a", "words": "b", "turns": MESSAGES, "tagged": tagged, "prompt": "c", "response": "d"}])
    for column, kind in (("words", "text"), ("text", "text"), ("turns", "messages"), ("tagged", "tagged")):
        reading = auto(file, column=column)
        assert (reading.section.kind, named(reading.section)) == (kind, {"column": column})
        assert "as stated" not in reading.decisions[0].reason
        assert repr(column) in reading.decisions[0].reason
        assert "not used: " in reading.decisions[0].reason
    assert refusal(auto, file, column="word").hint == "did you mean 'words'?"
    assert "as stated" not in auto(write([{"prompt": "c", "response": "d"}]), instruction="Be brief.").decisions[0].reason
    error = refusal(auto, write([{"instruction": "a", "output": "b"}]), instruction="Be brief.")
    assert "data.instruction: instruction data have no such key" in error.message


@pytest.mark.parametrize(("section", "words", "hint"), [
    (PairData(kind="prompt_response", path="", prompt_column="a", response_column="b"), "a text has no columns, and prompt_response needs", "kind=text"),
    (TextData(kind="text", path="", column="body"), "there is no 'body' (data.column)", "leave data.column out"),
    (TextData(kind="text", path="", group_column="author"), "there is no 'author' (data.group_column)", "leave data.group_column out"),
    (TaggedData(kind="tagged", path="", column="body"), "there is no 'body' (data.column)", "leave data.column out"),
])  # fmt: skip
def test_columns_of_a_text_file_are_refused(tmp_path, section, words, hint):
    """`column` of a .txt made every paragraph empty, and a group column was read by nothing."""
    (tmp_path / "a.txt").write_text("One\n\nTwo\n")
    error = refusal(read_records, section.model_copy(update={"path": str(tmp_path / "a.txt")}))
    assert words in error.message
    assert hint in error.hint


def test_the_rows_of_a_text_file_may_be_called_text(tmp_path):
    (tmp_path / "a.txt").write_text("One\n\nTwo\n")
    assert [record.text for record in read_records(TextData(kind="text", path=str(tmp_path / "a.txt"), column="text")).records()] == ["One", "Two"]


def test_columns_of_a_folder_of_files(tmp_path):
    """The columns are those of all files; the folder's records know their own file."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": f"in {name}?", "response": "yes"}) + "\n")
    reading = auto(tmp_path)
    assert [(Path(record.file).name, record.line, record.asked) for record in reading.records()] == [("a.jsonl", 1, "in a?"), ("b.jsonl", 1, "in b?")]
    error = refusal(read_records, PairData(kind="prompt_response", path=str(tmp_path), prompt_column="promt", response_column="response"))
    assert "a.jsonl and 1 more: no column 'promt'" in error.message
    assert error.hint == "did you mean 'prompt'?"
    (tmp_path / "c.jsonl").write_text(json.dumps({"question": "in c?", "answer": "yes"}) + "\n")
    assert "c.jsonl: column" in refusal(auto, tmp_path).message


@pytest.mark.parametrize(("pattern", "words"), [("(", "is no regular expression"), ("^a", "has no group")])
def test_a_label_pattern_is_checked_before_a_row_is_read(write, pattern, words):
    """Both were a traceback."""
    section = LabelData(kind="label", path=str(write([{"t": "a", "l": "b"}])), text_column="t", label_column="l", label_pattern=pattern)
    assert words in refusal(read_records, section).message


@pytest.mark.parametrize(("tags", "words"), [
    (("<Q>", "<A>"), "'<A>' stands in none of the first 1 rows of 'text'"), (("Q:", "A:"), "'Q:' stands where a line begins in none"),
    (("", "<A>"), "data.user_tag and data.assistant_tag are '' and '<A>'"), (("<Q>", "<Q>"), "are '<Q>' and '<Q>'"),
])  # fmt: skip
def test_tags_that_stand_nowhere_are_refused(write, tags, words):
    """An empty tag parted every letter from the next."""
    file = write([{"text": "<Q> what is Q: and A: here?"}])
    error = refusal(read_records, TaggedData(kind="tagged", path=str(file), column="text", user_tag=tags[0], assistant_tag=tags[1]))
    assert words in error.message


# Types


@pytest.fixture
def parquet(tmp_path):
    """A function: columns -> path of a Parquet file."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    def to(**columns) -> Path:
        write_table(pa.table(columns), tmp_path / "a.parquet")
        return tmp_path / "a.parquet"

    return to


def test_a_column_whose_type_is_no_text_is_refused_where_it_is_asked_for(parquet):
    """BAD_INPUTS 42: a label that is a float would be 1.0 where the file says 1."""
    file = parquet(text=["a", "b"], label=[1.0, 2.0])
    section = LabelData(kind="label", path=str(file), text_column="text", label_column="label")
    error = refusal(read_records, section)
    assert error.message == f"{file}: column label is double, need string"
    assert "save the column as text" in error.hint
    assert refusal(auto, file).message == error.message, "it would have been the class"
    assert read_records(TextData(kind="text", path=str(file), column="text")).section.column == "text"


def test_a_column_of_another_type_is_no_rival(parquet):
    section = auto(parquet(text=["a", "b"], label=["x", "y"], rating=[4.5, 3.5], score=[0.1, 0.2])).section
    assert (section.kind, section.label_column) == ("label", "label")


def test_lists_of_other_types_are_no_messages(parquet):
    error = refusal(auto, parquet(messages=[[{"role": "user", "content": "a", "time": 1.5}]]))
    assert "column messages is list<" in error.message
    assert "need a list of messages" in error.message


def test_a_column_that_holds_lists_only_is_refused_at_once(write):
    """Not once for each of 20 rows."""
    file = write([{"text": "a", "label": ["x"]}] * 30)
    error = refusal(read_records, LabelData(kind="label", path=str(file), text_column="text", label_column="label"))
    assert error.message == f"{file}:1: label is a list, need text"


# Rows of a text


def story(pages: int, length: int) -> list[dict]:
    """Pages whose end tells of what the next begins with."""
    return [{"text": f"name{page}a name{page}b and so on ".ljust(length - 20, "x") + f" name{page + 1}a name{page + 1}b"} for page in range(pages)]


def by_topic(topics: int, rows: int, in_common: int) -> list[dict]:
    """Texts of 500 characters and more, each of its own, that share words with all others of their topic."""
    rng = random.Random(0)
    texts = []
    for topic in range(topics):
        for _ in range(rows):
            words = [f"topic{topic}x{word}" for word in rng.sample(range(30), in_common)] + [f"word{rng.randrange(20_000)}" for _ in range(60)]
            rng.shuffle(words)
            texts.append({"text": " ".join(words)})
    return texts


@pytest.mark.parametrize(("length", "rows"), [(399, "separate"), (400, "book")])
def test_long_rows_that_follow_one_another_are_a_book(write, length, rows):
    reading = auto(write([{"text": row["text"][:length].ljust(length)} for row in story(60, length)]))
    assert reading.section.rows == rows
    assert f"half of them have {length} characters or more" in reading.decisions[-1].reason
    assert read_records(TextData(kind="text", path=reading.section.path, rows="separate")).section.rows == "separate"


def test_long_rows_in_no_order_are_separate(write):
    """Film reviews, half of which had more than 400 characters, were joined as a book: length alone was the sign."""
    rng = random.Random(0)
    rows = [{"text": " ".join(f"name{rng.randrange(1000)}" for _ in range(60))} for _ in range(400)]
    reading = auto(write(rows))
    assert reading.section.rows == "separate"
    assert re.search(r"but [45]\d% are more like the next one than like a distant one \(book: 70% or more\)", reading.decisions[-1].reason)
    assert "too few can tell" in auto(write(story(5, 500))).decisions[-1].reason


@pytest.mark.parametrize(("topics", "rows"), [(60, 5), (10, 40), (150, 2)])
def test_texts_that_are_sorted_by_topic_are_separate(write, topics, rows):
    """Each is more like the next one than like a distant one, in 97 of 100 cases, and they were joined as a book."""
    reading = auto(write(by_topic(topics, rows, in_common=12)))
    assert reading.section.rows == "separate"
    assert re.search(r"but (8|9|10)\d% are more like the next one .* a list sorted by topic, or too short a book to tell", reading.decisions[-1].reason)


def test_a_book_in_any_order_is_separate(write):
    rows = story(60, 500)
    assert auto(write(rows)).section.rows == "book"
    assert auto(write(rows[::-1])).section.rows == "separate"


def test_a_conversation_told_again_with_one_turn_more_is_no_book(write):
    """What a longer copy adds is no beginning of it: its first turns are those of the row before."""
    rows = [{"text": " ".join(f"talk{talk} turn{talk}x{turn} {'word ' * 40}" for turn in range(turns))} for talk in range(50) for turns in (2, 3, 5, 8)]
    assert auto(write(rows)).section.rows == "separate"


@pytest.mark.data
@pytest.mark.parametrize(("name", "rows"), [
    ("frankenstein/frankenstein_chunks.csv", "book"), ("pretrain/novels-01.jsonl.xz", "book"), ("pretrain/novels-02.jsonl.xz", "book"),
    ("pretrain/novels-03.jsonl.xz", "book"), ("pretrain/reviews-01.jsonl.xz", "separate"), ("pretrain/reviews-02.jsonl.xz", "separate"),
    ("pretrain/mixed-01.jsonl.xz", "separate"),
])  # fmt: skip
def test_real_books_and_real_collections_are_told_apart(real_data, name, rows):
    assert auto(real_data / name).section.rows == rows


# What is refused before a row is read


@pytest.mark.parametrize("section", [
    PairData(kind="prompt_response", path="a", prompt_column="a", response_column="a"), LabelData(kind="label", path="a", text_column="b", label_column="b"),
])  # fmt: skip
def test_two_keys_that_name_one_column_are_refused(write, section):
    """The model would have been trained to repeat the prompt."""
    error = refusal(read_records, section.model_copy(update={"path": str(write([{"a": "x", "b": "y"}] * 3))}))
    assert re.search(r"data\.(prompt|text)_column and data\.(response|label)_column are both '[ab]'$", error.message)


def test_rows_may_be_grouped_by_a_column_that_is_read(write):
    file = write([{"a": "x", "b": "y"}] * 3)
    assert read_records(PairData(kind="prompt_response", path=str(file), prompt_column="a", response_column="b", group_column="a"))


def test_all_missing_columns_are_told_at_once(write):
    """The second was told only when the first was mended."""
    file = write([{"Comment": "x", "Response": "y"}] * 3)
    error = refusal(read_records, PairData(kind="prompt_response", path=str(file), prompt_column="Coment", response_column="Respons"))
    assert "no column 'Coment' (data.prompt_column), no column 'Respons' (data.response_column); columns are Comment, Response" in error.message
    assert error.hint == "did you mean data.prompt_column='Comment' data.response_column='Response'?"


@pytest.mark.parametrize("columns", [("I love this video!", "Thank you so much."), ("It was a dark night.",), ("word " * 20, "Is it?")])
def test_a_first_line_of_sentences_is_no_header(write, columns):
    error = refusal(auto, write([dict.fromkeys(columns, "and another row")] * 3, "a.csv"))
    assert "the first line looks like data, not like names of columns: " in error.message
    assert error.hint.startswith("put the names of the columns above it")


def test_names_of_several_words_are_names(write):
    assert auto(write([{"the text": "a"}] * 3, "a.csv")).section.column == "the text"


@pytest.mark.parametrize(("content", "name", "joint"), [("One\n\nTwo\n", "a.txt", "\n\n"), ("One\nTwo\n", "b.txt", "\n"), ("text\nOne\nTwo\n", "c.csv", "\n")])
def test_what_joins_the_rows_is_found_unless_it_is_stated(tmp_path, content, name, joint):
    """Guards against a key that text files did not read."""
    (tmp_path / name).write_text(content)
    section = TextData(kind="text", path=str(tmp_path / name), rows="book")
    assert read_records(section).section.separator == joint
    assert read_records(section.model_copy(update={"separator": " | "})).section.separator == " | "


# The real files


@pytest.mark.data
@pytest.mark.parametrize(("name", "kind", "found"), [
    ("youtube_comments/YT-comments.csv", "prompt_response", {"prompt_column": "Comment", "response_column": "Response"}),
    ("youtube_comments/seed_split_train.jsonl", "prompt_response", {"prompt_column": "comment", "response_column": "response"}),
    ("viggo/train.csv", "structure", {"prompt_column": "ref", "response_column": "mr"}),
    ("mental_health/train-00000-of-00001.parquet", "tagged", {"column": "text"}),
    ("mental_health/mental_health_172.jsonl", "tagged", {"column": "text"}),
    ("frankenstein/frankenstein_chunks.csv", "text", {"column": "text"}),
    ("instruct/alpaca_en_1k.jsonl.gz", "instruction", {"instruction_column": "instruction", "input_column": "input", "output_column": "output"}),
    ("instruct/oasst_en_conversations.jsonl.gz", "messages", {"column": "messages"}),
    ("instruct/t0_tasks_sample.jsonl.gz", "prompt_response", {"prompt_column": "prompt", "response_column": "completion"}),
])  # fmt: skip
def test_the_real_files_are_known(real_data, name, kind, found):
    section = auto(real_data / name).section
    assert section.kind == kind
    assert found.items() <= named(section).items()
