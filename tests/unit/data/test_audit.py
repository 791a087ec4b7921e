"""Each fault of the data is planted once and found, with its place; clean data raise no alarm; no sample shows personal data."""

import json
import time
from dataclasses import replace

import pytest
from rich.console import Console

from halfbyte import api
from halfbyte.cli.screen import Screen
from halfbyte.data import audit as audit_module
from halfbyte.data.audit import FINDINGS, Audit, Finding
from halfbyte.data.audit import audit as audit_parts
from halfbyte.data.gutenberg import REASON as GUTENBERG
from halfbyte.data.personal import KINDS
from halfbyte.data.records import Record
from halfbyte.data.shapes import Refused
from halfbyte.data.split import TEST, TRAIN, VALIDATION
from halfbyte.recipe.load import parse_recipe
from halfbyte.recipe.plan import Decision

WORDS = (
    "river",
    "stone",
    "garden",
    "winter",
    "letter",
    "market",
    "bridge",
    "captain",
    "window",
    "morning",
    "silver",
    "forest",
    "teacher",
    "harbour",
    "candle",
    "mirror",
)


def audit(outcomes, book: bool = False, max_samples: int = 3) -> Audit:
    """Of one file."""
    return audit_parts([(TRAIN, outcomes)], book, max_samples)


def sentence(number: int) -> str:
    """Different for every number, and of the same kind."""
    return " ".join(WORDS[(number * 7 + number // 16 * step + step * step) % 16] for step in range(12)) + f" {WORDS[number % 16]}{number}."


def texts(*planted: str, clean: int = 20) -> list[Record]:
    every = [sentence(number) for number in range(clean)] + list(planted)
    return [Record("a.csv", line, text=text) for line, text in enumerate(every, start=2)]


def pairs(*planted: tuple[str, str], clean: int = 20, labels: bool = False) -> list[Record]:
    every = [(sentence(number), ("yes", "no")[number % 2] if labels else sentence(number + 1000)) for number in range(clean)] + list(planted)
    return [
        Record("a.csv", line, messages=({"role": "user", "content": asked}, {"role": "assistant", "content": answered}), label=answered if labels else "")
        for line, (asked, answered) in enumerate(every, start=2)
    ]


def only(records: list[Record], name: str) -> Finding:
    """The one finding there is."""
    found = audit(records).findings
    assert [one.name for one in found] == [name]
    return found[0]


def named(records: list[Record]) -> dict[str, Finding]:
    return {one.name: one for one in audit(records).findings}


@pytest.mark.parametrize(
    "records", [texts(clean=300), pairs(clean=300), pairs(clean=300, labels=True), [], texts("Ein schöner Tag in „KÜ“, «là», René——?”, naïve Ångström…")]
)
def test_clean_data_raise_no_alarm(records):
    result = audit(iter(records))
    assert result == Audit(len(records), [])


DUMP = "iVBORw0KGgoAAAANSUhEUgAAAAUA" * 8
MINIFIED = "function(a,b){for(var c=0;c<a.length;c++){b(a[c])}return{x:1,y:[2,3],z:function(){return!0}}};" * 3


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("typed-in control marks", "He typed <s>[INST] into the box"),
        ("typed-in control marks", "and <|im_start|>user here"),
        ("typed-in control marks", "or <|eot_id|> there"),
        ("typed-in control marks", "text </s> text goes on"),
        ("typed-in control marks", "a <start_of_turn> mark in it"),
        ("Project Gutenberg header or licence", "*** START OF THE PROJECT GUTENBERG EBOOK EMMA ***"),
        ("Project Gutenberg header or licence", "Redistributing Project Gutenberg-tm electronic works"),
        ("phrases of web pages", "Sign up for our newsletter to read on"),
        ("HTML", "a line<br />and one more of them"),
        ("HTML", "fish &amp; chips and peas"),
        ("double-encoded text", "un cafÃ© au lait, bien sûr"),
        ("double-encoded text", "it isnâ€™t so, I am sure"),
        ("double-encoded text", "costs Â£500 a year or more"),
        ("double-encoded text", "Ð¿Ñ€Ð¸Ð²ÐµÑ‚ and so on, at some length in Latin letters that go on and on and on"),
        ("lost characters", "it isn\ufffdt so, I am sure"),
        ("control characters", "a bell \x07 rings in the row"),
        ("control characters", "a dash \x96 of cp1252 as Latin-1"),
        ("direction marks", "turned \u202eround\u202c here"),
        ("zero-width characters", "in\u200bvisible blanks in a word"),
        ("zero-width characters", "\ufeffa mark at the very beginning"),
        ("private-use characters", "a sign \ue012 of some font only"),
        ("not text", f"see {DUMP} here"),
        ("not text", "0123456789abcdef" * 9),
        ("not text", MINIFIED),
        ("not text", "12, 3; 4. 56 = 78 " * 9),
        ("another script", "Это совсем другой текст"),
        ("very long rows", " ".join(map(sentence, range(300)))),
        ("very short rows", "ok"),
        ("personal data: email", "write to john.doe@example.com soon"),
        ("personal data: card", "paid by 4242 4242 4242 4242"),
        ("personal data: phone", "ring +1 415 555 2671 in time"),
        ("personal data: iban", "to GB82 WEST 1234 5698 7654 32 today"),
        ("personal data: handle", "thanks @johndoe for all that"),
        ("personal data: link", "see https://example.com/john for all"),
    ],
)
def test_a_fault_of_a_text_is_found(name, text):
    """BAD_INPUTS 6, 51, 52, 55, 58."""
    found = only(texts(text, clean=30), name)
    assert (found.count, found.of) == (1, 31)
    assert found.samples[0].startswith("a.csv:32: ")
    assert all(character.isprintable() for character in found.samples[0])
    assert (found.level, found.advice) == FINDINGS[name]


def test_bytes_of_another_script_are_named_by_the_rest_of_the_data():
    russian = [Record("a.csv", line, text=f"{line} раз говорит эта строка о погоде и о море." + " Дождь" * (line % 3)) for line in range(2, 20)]
    assert only(russian, "another script than Latin").count == 18
    found = named([*russian, *texts("A row in English among them", clean=0)])["another script"]
    assert (found.count, found.samples) == (1, ["a.csv:2: A row in English among them"])


def test_repeated_rows_say_what_they_repeat():
    """BAD_INPUTS 21."""
    found = named(texts(sentence(3), sentence(4).upper() + "  ", "１２３ go and see the sea", "123  go and see the sea"))
    assert list(found) == ["exact duplicates", "duplicates but for case and blanks"]
    assert found["exact duplicates"].samples == [f"a.csv:22: {sentence(3)[:40]}… (as a.csv:5)"]
    assert found["duplicates but for case and blanks"].count == 2


def test_one_prompt_with_two_answers_is_a_note_and_with_two_labels_a_conflict():
    """BAD_INPUTS 49; CORRECTNESS: label noise that no metric shows."""
    found = only(pairs((sentence(0), "Another answer to the first prompt.")), "same prompt, different answers")
    assert (found.count, found.level) == (1, "note")
    found = only(pairs((sentence(0), "no"), labels=True), "conflicting labels")
    assert (found.count, found.level, found.samples[0][:8]) == (1, "warning", "a.csv:22")


def test_labels():
    """BAD_INPUTS 16 and 18."""
    found = named(pairs(("one more sentence", "Yes "), ("and one more of them", "mixed"), labels=True))
    assert found["labels that differ by form"].count == 11
    assert "'yes' (in 10 rows)" in found["labels that differ by form"].samples[0]
    assert "'Yes ' (in 1 row)" in found["labels that differ by form"].samples[0]
    assert found["rare classes"].count == 2
    numbers = [(sentence(100 + at), label) for at, label in enumerate(["1", "1.0", "01", "+1", "2", "2.5", "1e"])]
    assert named(pairs(*numbers, clean=0, labels=True))["labels that differ by form"].count == 4
    assert only(pairs(*[(sentence(number), "yes") for number in range(9)], clean=0, labels=True), "one class").count == 9


@pytest.mark.parametrize(("counts", "rare"), [((100, 4), 4), ((100, 5), 0), ((3, 3), 0), ((2, 2, 2), 6), ((40, 2), 2)])
def test_a_rare_class(counts, rare):
    """Less than a twentieth of the largest, or fewer rows than there are sides (BAD_INPUTS 18)."""
    rows = [(sentence(100 * which + number), f"class {which}") for which, count in enumerate(counts, start=1) for number in range(count)]
    found = named(pairs(*rows, clean=0, labels=True))
    assert found["rare classes"].count == rare if rare else "rare classes" not in found


def test_a_long_link_or_rule_is_text():
    found = named(texts("see https://example.com/" + "a-b/" * 40, "first part\n" + "=-" * 60 + "\nsecond part of the text, which goes on for long " * 4))
    assert list(found) == ["personal data: link"]


def test_answers():
    """BAD_INPUTS 33 and 54."""
    assert only(pairs(("Say this again", "Say this again ")), "prompt equals answer").count == 1
    found = only(pairs(*[(sentence(number), "I am sorry, I cannot say.") for number in range(100, 130)]), "same answer")
    assert (found.count, found.of) == (30, 50)
    assert "I am sorry, I cannot say. (in 30 rows)" in found.samples[0]


def test_a_prompt_that_ends_in_a_blank():
    """CORRECTNESS 1.7: the blank belongs to the first token of the answer."""
    assert only(pairs(("I'm afraid I've created a ", "a monster, and a good one.")), "prompts that end in a blank").count == 1


def test_a_constant_part_of_the_prompts_and_its_share():
    """CORRECTNESS 0.1c: one fixed paragraph was half of what trained."""
    opening, ending = "You are a helpful assistant that answers in one word. ", " (Please respond to the comment above)"
    rows = [(f"{opening}{sentence(number)}{ending}", sentence(number + 500)) for number in range(19)]
    found = named(pairs(*rows, ("a prompt without either of them", "is one in twenty"), clean=0))
    assert list(found) == ["constant opening", "constant ending"]
    assert found["constant opening"].count == 19
    assert f"({len(opening)} characters" in found["constant opening"].samples[0]
    share = len(opening) * 19 / sum(len(asked) for asked, _ in [*rows, ("a prompt without either of them", "")])
    assert f"{share:.0%} of all that is asked" in found["constant opening"].samples[0]
    assert f"({len(ending) + 1} characters" in found["constant ending"].samples[0]
    assert "constant opening" not in named(pairs(*rows[:16], clean=4))


def test_the_sample_of_prompts_is_of_all_rows():
    """Not of the first thousand: a file may begin with another part."""
    early = [(sentence(number), sentence(number + 5000)) for number in range(1000)]
    late = [(f"You are a helpful assistant that answers. {sentence(number)}", sentence(number + 5000)) for number in range(1000, 31_000)]
    found = named(pairs(*early, *late, clean=0))
    assert found["constant opening"].count == pytest.approx(30_000, rel=0.03)


def test_a_line_of_many_texts():
    footer = "This story was first told in the Evening Gazette"
    found = only(texts(*[f"{sentence(number)}\n{footer}" for number in range(100, 106)], clean=200), "repeated lines")
    assert (found.count, found.samples) == (6, [f"a.csv:206: {footer} (in 6 rows)"])


def test_no_sample_shows_personal_data():
    """BAD_INPUTS 55: whatever the finding, also where a sample is cut in the middle of an address."""
    secrets = "john.doe@example.com", "+1 415 555 2671", "@johndoe", "https://johndoe.example.com/john", "4242 4242 4242 4242", "GB82 WEST 1234 5698 7654 32"
    parts = "doe", "555 26", "4242 4242", "WEST", "1234"
    faults = ["<s>", "caf\u00c3\u00a9", "\x07", "\u202e", "\u200b", "\ufffd", "<br>", "all rights reserved", "&amp;", DUMP, "\ue012"]
    rows = [f"{' ' * gap}{secret} {fault} {secret}" for secret in secrets for fault in faults for gap in (0, 3)]
    rows += [f"{'word ' * gap}{secret}{' word' * 30}" for secret in secrets for gap in range(9)] * 2
    records = [
        *texts(*rows),
        *pairs(*[(row, secret) for row, secret in zip(rows, secrets * 99)], labels=True),
        *pairs(*[(secret, secret + " ") for secret in secrets * 9]),
    ]
    records += [Record("b.csv", line, text="\n".join([*secrets, sentence(line)])) for line in range(9)]
    result = audit(records, max_samples=1000)
    assert {f"personal data: {kind}" for kind in KINDS} < {found.name for found in result.findings}
    assert len(result.findings) > 15
    shown = "\n".join(sample for found in result.findings for sample in found.samples)
    assert not [line for line in shown.splitlines() if any(part in line for part in parts)]


def test_samples_and_memory_are_bounded(monkeypatch):
    monkeypatch.setattr(audit_module, "MOST_COMPARED", 10)
    found = {one.name: one for one in audit(texts("ok", "no", "so", "go", clean=20), max_samples=2).findings}
    assert [len(found[name].samples) for name in ("very short rows", "rows not compared")] == [2, 2]
    assert found["rows not compared"].count == 14
    assert all(not one.samples for one in audit(texts("ok", sentence(1)), max_samples=0).findings)


def test_rows_that_teach_nothing_are_told_by_reason():
    """Guards against '40 records, nothing found' for 60 rows of which 20 have no answer."""
    gone = [Refused("a.csv", line, "empty prompt or response", "the response is empty") for line in range(30, 50)]
    result = audit([*pairs(), *gone, Refused("a.csv", 50, "unknown role", "role 'john.doe@example.com'\n unknown", bad=True)])
    assert (result.records, result.left_out) == (20, 21)
    empty, role = result.findings
    assert (empty.name, empty.count, empty.of, empty.level) == ("left out: empty prompt or response", 20, 41, "warning")
    assert empty.samples == [f"a.csv:{line}: the response is empty" for line in (30, 31, 32)]
    assert (role.name, role.samples) == ("left out: unknown role", ["a.csv:50: role 'j***@e***.com'  unknown"])


def test_no_record_at_all_is_a_warning():
    found = {one.name: one for one in audit([Refused("a.jsonl", 1, "no assistant turn", "ends with user")]).findings}
    assert list(found) == ["left out: no assistant turn", "no records"]
    assert (found["no records"].level, found["no records"].count, found["no records"].of) == ("warning", 1, 1)


def test_a_licence_that_was_left_out_before_is_told():
    """Guards against silence about Project Gutenberg, whose rows never came here."""
    found = audit([*texts(), Refused("a.txt", 1, GUTENBERG, "stands outside the book")]).findings
    assert [(one.name, one.count, one.of, one.samples) for one in found] == [(GUTENBERG, 1, 21, ["a.txt:1: stands outside the book"])]


def test_a_book_has_repeated_paragraphs_and_no_duplicates():
    """Guards against the advice to leave keep_duplicates=false, which takes nothing out of a book."""
    found = audit(texts(sentence(3), sentence(4).upper(), "Chapter one.", "Chapter one."), book=True).findings
    assert [(one.name, one.count, one.level) for one in found] == [("repeated paragraphs", 1, "note")]
    assert "keep_duplicates" not in found[0].advice


def test_what_stands_in_two_files_is_no_duplicate():
    """Guards against the advice to drop duplicates for test rows that also train."""
    train, test = pairs(), [replace(record, file="t.csv") for record in pairs(clean=3)]
    validation = [replace(record, file="v.csv") for record in pairs(("asked in both", "an answer to it"), ("asked in both", "an answer to it"), clean=0)]
    both = [replace(record, file="w.csv") for record in validation[:1]]
    found = {one.name: one for one in audit_parts([(TRAIN, train), (VALIDATION, validation), (TEST, [*test, *both])]).findings}
    overlap, held = found["stands in train and in a held-out file"], found["stands in both held-out files"]
    assert (overlap.count, overlap.samples[0][-12:], held.count) == (3, "(as a.csv:2)", 1)
    assert "data.drop_overlap=true" in overlap.advice
    assert found["exact duplicates"].count == 1
    assert len(found) == 3


@pytest.mark.parametrize("text", ["NA", " None ", "null", "nan", "N/A"])
def test_a_spelt_missing_value_is_told(text):
    assert named(texts(text))["spell a missing value"].count == 1
    assert named(pairs((text, "an answer to nothing")))["spell a missing value"].count == 1
    assert named(pairs((sentence(99), text), labels=True))["spell a missing value"].count == 1
    assert "spell a missing value" not in named(texts(f"the word {text} in a text"))


def test_texts_that_begin_alike_get_no_advice_about_prompts():
    found = only(texts(*[f"Reuters, from our own desk: {sentence(number) * 60}" for number in range(9)], clean=0), "texts that begin alike")
    assert "data." not in found.advice
    assert (
        "less than 1% of all text"
        in only(
            texts(*[f"Reuters, from our own desk: {' '.join(map(sentence, range(number * 50, number * 50 + 50)))}" for number in range(9)], clean=0),
            "texts that begin alike",
        ).samples[0]
    )


def test_the_advice_for_rare_classes_names_the_fewest_rows():
    assert "fewer than 3 rows" in FINDINGS["rare classes"][1]


def test_the_whole_way_from_files(tmp_path, monkeypatch):
    """What was decided and noted is told, and what the reader leaves out is counted."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{sentence(number)};{sentence(number + 900) if number % 3 else ''}" for number in range(60)]
    (tmp_path / "a.csv").write_bytes("\n".join(["prompt;response", *rows, "ein sch\u00f6ner Tag;ja"]).encode("cp1252"))
    result = api.audit(parse_recipe("data:\n  path: a.csv\n", "r.yaml", []).recipe.data)
    assert (result.records, result.left_out) == (41, 20)
    assert result.findings[0].name == "left out: empty prompt or response"
    assert result.findings[0].samples[0] == "a.csv:2: the response is empty"
    told = json.dumps(result.as_json()["decisions"])
    assert "cp1252" in told
    assert "prompt_response" in told


def test_the_screen_obeys_no_file_name():
    console = Console(width=120)
    finding = Finding("left out: \x1b[31mred", 1, 2, ["a\x1b]0;b.csv:1: text"], "Mend it.", "note")
    with console.capture() as captured:
        Screen(console).show_audit(Audit(1, [finding], 1, [Decision("encoding", "cp1252", "guessed")], ["a\x07 note"]), "a\x1b]0;\nb.csv")
    said = captured.get()
    assert not set(said) & set("\x1b\x07")
    assert "1 record of 2 rows read" in said
    assert "cp1252" in said


def test_as_json_is_plain():
    result = audit(texts("ok"))
    kept = json.loads(json.dumps(result.as_json()))
    assert kept["records"] == 21
    assert kept["findings"][0] == {
        "name": "very short rows",
        "count": 1,
        "of": 21,
        "samples": ["a.csv:22: ok"],
        "advice": FINDINGS["very short rows"][1],
        "level": "note",
    }


def test_advice_is_one_sentence_and_every_finding_was_planted():
    assert all(advice.endswith(".") and level in ("note", "warning") for level, advice in FINDINGS.values())


@pytest.mark.parametrize("piece", ["<", "<p ", "&#", "<|a", "Ã", "â€", "Ä\x80", "à\x80\x80", "a\n", "=", "\ue000", "中", "ab cd ", "\ud800", "\x00", "1"])
def test_odd_rows_take_linear_time(piece):
    """A row of 300,000 characters takes seconds at most, and never raises."""
    began = time.perf_counter()
    audit([Record("a.csv", line, text=piece * (300_000 // len(piece))) for line in (2, 3)])
    assert time.perf_counter() - began < 3
