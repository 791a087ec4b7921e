"""Records of held-out rows on disk: as they were, in order, whatever their text holds."""

from halfbyte.data.held_out import RecordWriter, StoredRecords
from halfbyte.data.records import Record

RECORDS = [
    Record("a.csv", number, messages=({"role": "user", "content": text}, {"role": "assistant", "content": f"to {text}"}), group=f"g{number % 2}", label="x")
    for number, text in enumerate(["plain", "line\nends \u2028 of\r\nall kinds", "half a character \ud83d", "\u00e9\u4e2d\U0001f600", '"quoted" \\ back'], 2)
]


def write(file, records):
    writer = RecordWriter(file)
    for start in range(0, len(records), 2):
        writer.append(records[start : start + 2])
    writer.close()


def test_records_come_back_as_they_were(tmp_path):
    write(tmp_path / "test.jsonl", RECORDS)
    stored = StoredRecords(tmp_path / "test.jsonl")
    assert len(stored) == len(RECORDS)
    assert list(stored) == RECORDS
    assert [stored[place] for place in (4, 0, -1)] == [RECORDS[4], RECORDS[0], RECORDS[-1]]
    assert stored[1:3] == RECORDS[1:3]


def test_what_was_asked_last_and_what_the_file_answers():
    turns = [("system", "s"), ("user", "first"), ("assistant", "one"), ("user", "second"), ("assistant", "two")]
    record = Record("a", 1, messages=tuple({"role": role, "content": content} for role, content in turns))
    assert (record.prompt, record.reference) == ("user: first\nassistant: one\nuser: second", "two")
    assert Record("a", 1, messages=record.messages[:3]).prompt == "first"


def test_no_file_is_no_records_and_an_empty_one_too(tmp_path):
    assert list(StoredRecords(tmp_path / "test.jsonl")) == []
    write(tmp_path / "test.jsonl", [])
    assert len(StoredRecords(tmp_path / "test.jsonl")) == 0
