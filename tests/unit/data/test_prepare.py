"""The chain from the file to the rows that train: the ledger adds up, nothing held out trains, and what was prepared is found again."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from halfbyte.data import prepare, store
from halfbyte.data.batches import epoch_steps, labels_hash
from halfbyte.data.prepare import Prepared, prepare_data
from halfbyte.errors import DataError, MachineError, RecipeError
from halfbyte.recipe.load import parse_recipe
from toy_files import CHATS, KINDS, PAIRS, STATED, rows_of, sentence, write_rows
from toy_tokenizers import tokenizer_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def section_of(file: Path, *words: str):
    return parse_recipe("", "r.yaml", [f"data.path={json.dumps(str(file))}", *words]).recipe.data


def prepared(file: Path, *words: str, seed: int = 0, tokenizer=None, progress=None) -> Prepared:
    return prepare_data(section_of(file, *words), seed, tokenizer or tokenizer_of("bytes", "chatml"), progress)


# The ledger


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_every_row_has_exactly_one_bin(tmp_path, kind, seed):
    """CORRECTNESS 1.8: random files with bad, empty, repeated and long rows; bins and rows left out add up to the rows read."""
    draw = random.Random(seed)
    rows = write_rows(tmp_path / "a.jsonl", kind, 150, seed)
    words = [
        *STATED[kind],
        "data.on_bad_row=skip",
        f"data.max_length={draw.choice([48, 96, 300])}",
        f"data.near_duplicates={draw.choice(['together', 'drop', 'ignore'])}",
    ]
    words += [f"data.keep_duplicates={draw.choice(['true', 'false'])}", f"data.packing={draw.choice(['none', 'best_fit'])}"]
    if kind in CHATS:
        words += [f"data.loss={draw.choice(['answers', 'last', 'all'])}"]
    if draw.random() < 0.5:
        words += ["data.augment=[shift]" if kind in ("text", "book") else "data.augment=[typos,turns]", "data.augment_copies=2"]
    made = prepared(tmp_path / "a.jsonl", *words, seed=seed)
    ledger = made.ledger
    assert ledger["records_read"] == rows
    bins, left_out = Counter(ledger["bins"]), {item["reason"]: item["count"] for item in ledger["left_out"]}
    assert bins.total() + sum(left_out.values()) == rows
    assert len(left_out) == len(ledger["left_out"])
    assert min([*bins.values(), *left_out.values()]) > 0
    documents = [row for row in made.train] if not hasattr(made.train, "rows") else list(made.train.rows)
    parts = {"trained": documents, "validation": list(made.validation), "test": list(made.test)}
    places = {name: {row.line for row in part} for name, part in parts.items()}
    counted = {name: sum(count for key, count in bins.items() if key.split(",")[0] == name) for name in parts}
    if kind != "book":
        assert {name: len(lines) for name, lines in places.items()} == counted, "each row that was counted is there, and no other"
        assert sum(counted.values()) == len(set.union(*places.values())), "no row stands on two sides"
    if kind in CHATS:
        assert len(documents) == counted["trained"] + ledger["augmented"]
        assert [len(parts[name]) for name in ("validation", "test")] == [counted["validation"], counted["test"]]
    for name, key in (("trained", "train"), ("validation", "validation"), ("test", "test")):
        assert ledger[f"{key}_tokens"] == sum(row.supervised for row in parts[name])
        assert ledger[f"{key}_all_tokens"] == sum(len(row.ids) for row in parts[name])
    assert len(made.train) == ledger["train_rows"]
    assert all(1 < len(row.ids) <= made.section.max_length and row.supervised for part in parts.values() for row in part)
    assert made.labels == labels_hash(made.train)


def test_a_row_in_two_bins_is_our_bug(tmp_path, monkeypatch):
    """The ledger that does not add up is never written."""
    write_rows(tmp_path / "a.jsonl", "prompt_response", 40, 0, bad=0)
    take = prepare._ChatSink.take
    monkeypatch.setattr(prepare._ChatSink, "take", lambda self, record: (take(self, record), self.build.left_out.update(["twice"])))
    with pytest.raises(AssertionError, match="40 rows were read and 7"):
        prepared(tmp_path / "a.jsonl")


def test_nothing_left_is_told_with_the_bins(tmp_path):
    """BAD_INPUTS 46."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"prompt": f"number {n}", "response": "the " * 90}) + "\n" for n in range(30)))
    with pytest.raises(DataError, match="0 of 30 rows are left to train on: 30 the answer does not fit into max_length 64") as caught:
        prepared(tmp_path / "a.jsonl", "data.max_length=64")
    assert "raise data.max_length" in caught.value.hint
    (tmp_path / "b.jsonl").write_text('{"prompt": "", "response": "x"}\n' * 5)
    with pytest.raises(DataError, match=r"0 of 5 rows are left: 5 empty prompt or response"):
        prepared(tmp_path / "b.jsonl")


def test_what_was_shortened_is_told_with_the_length_that_would_do(tmp_path):
    """BAD_INPUTS 45."""
    write_rows(tmp_path / "a.jsonl", "prompt_response", 100, 1, bad=0)
    made = prepared(tmp_path / "a.jsonl", "data.max_length=64")
    note = next(note for note in made.notes if "shortened" in note)
    shortened = sum(count for name, count in made.ledger["bins"].items() if name.endswith("prompt shortened"))
    assert note.startswith(f"{shortened} rows shortened, ")
    enough = made.ledger["truncation"]["length_for_99_percent"]
    assert f"data.max_length={enough} keeps 99 % of the rows whole" in note
    whole = prepared(tmp_path / "a.jsonl", f"data.max_length={enough}")
    assert sum(count for name, count in whole.ledger["bins"].items() if name.endswith("prompt shortened")) <= 1


def test_rows_that_a_template_refuses_are_told_together(tmp_path):
    """BAD_INPUTS 37: guards against the first refused row alone, and against on_bad_row=skip that did not hold for it."""
    lines = [{"messages": [{"role": "user", "content": f"number {n}"}, {"role": "assistant", "content": f"the {n}"}]} for n in range(40)]
    for place in (3, 5, 8):
        lines[place]["messages"].insert(0, {"role": "system", "content": "be kind"})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    mistral = tokenizer_of("bytes", "mistral")
    with pytest.raises(DataError) as caught:
        prepared(tmp_path / "a.jsonl", tokenizer=mistral)
    assert [line.split(": ")[0].rsplit(":", 1)[1] for line in caught.value.message.split("\n")] == ["4", "6", "9"]
    assert "data.system_as=user" in caught.value.hint
    assert "data.on_bad_row=skip" in caught.value.hint
    made = prepared(tmp_path / "a.jsonl", "data.on_bad_row=skip", tokenizer=mistral)
    assert {"reason": "the template refuses it", "count": 3} in made.ledger["left_out"]
    folded = prepared(tmp_path / "a.jsonl", "data.kind=messages", "data.system_as=user", tokenizer=mistral)
    assert folded.ledger["left_out"] == []


def test_many_bad_rows_stop_at_twenty(tmp_path):
    line = json.dumps({"prompt": ["x"], "response": "y"}) + "\n"
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n" + line * 50)
    with pytest.raises(DataError) as caught:
        prepared(tmp_path / "a.jsonl")
    assert len(caught.value.message.split("\n")) <= 21
    assert "data.on_bad_row=skip" in caught.value.hint


# What trains and what is held out


def said(rows, tokenizer=None) -> Counter[str]:
    return Counter((tokenizer or tokenizer_of("bytes", "chatml")).decode(row.ids) for row in rows)


@pytest.mark.parametrize(("kind", "words"), [
    ("prompt_response", ["data.augment=[typos,case,punctuation]"]), ("messages", ["data.augment=[turns]"]), ("text", ["data.augment=[shift]"]),
    ("book", ["data.augment=[shift]", "data.kind=text", "data.rows=book"]),
])  # fmt: skip
def test_only_training_rows_are_augmented_and_after_the_split(tmp_path, kind, words):
    write_rows(tmp_path / "a.jsonl", kind, 80, 0, bad=0)
    base = [word for word in words if "augment" not in word] + ["data.max_length=128"]
    plain = prepared(tmp_path / "a.jsonl", *base)
    made = prepared(tmp_path / "a.jsonl", *words, "data.augment_copies=3", *base)
    assert list(made.validation) == list(plain.validation)
    assert list(made.test) == list(plain.test)
    assert made.ledger["bins"] == plain.ledger["bins"]
    assert made.ledger["truncation"] == plain.ledger["truncation"], "copies are not counted in the bill"
    assert said(plain.train) <= said(made.train), "the originals are all there"
    assert made.ledger["augmented"] == len(made.train) - len(plain.train) > 0
    assert plain.ledger["augmented"] == 0
    held_out = {row.line for part in (made.validation, made.test) for row in part}
    assert kind == "book" or not held_out & {row.line for row in made.train}


def test_augment_that_finds_nothing_says_so(tmp_path):
    write_rows(tmp_path / "a.jsonl", "prompt_response", 40, 0, bad=0)
    assert "data.augment made no copy: turns found nothing to change" in prepared(tmp_path / "a.jsonl", "data.augment=[turns]").notes
    with pytest.raises(RecipeError, match="shift does not go with data of kind prompt_response"):
        prepared(tmp_path / "a.jsonl", "data.augment=[shift]")


def test_shifted_blocks_hold_the_same_text_and_begin_elsewhere(tmp_path):
    text = " ".join(f"w{n}" for n in range(3000))
    (tmp_path / "a.txt").write_text(text)
    words = ["data.kind=text", "data.max_length=64", "data.validation_share=0", "data.test_share=0"]
    (tmp_path / "a.txt").write_text(text + "\n\n" + "the end")
    plain, shifted = (prepared(tmp_path / "a.txt", *words, *more) for more in ([], ["data.augment=[shift]"]))
    first = [row.ids for row in plain.train]
    more = [row.ids for row in shifted.train if row.ids not in first]
    assert len(more) >= len(first) - 2
    ids = [token for row in first for token in row[1:]]
    again = [token for row in more for token in row[1:]]
    assert again == ids[31:], "half a block later, and nothing else"


def test_given_files_are_the_parts_that_they_are(tmp_path):
    """BAD_INPUTS 48: and what they share with training is told with both lines."""
    draw = random.Random(0)
    lines = {name: [json.dumps(rows_of("prompt_response", draw)) for _ in range(count)] for name, count in (("train", 40), ("validation", 9), ("test", 11))}
    lines["test"].append(lines["train"][7])
    for name, part in lines.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(part) + "\n")
    words = [f"data.{name}_path={json.dumps(str(tmp_path / f'{name}.jsonl'))}" for name in ("validation", "test")]
    made = prepared(tmp_path / "train.jsonl", *words)
    assert [len(part) for part in (made.train, made.validation, made.test)] == [40, 9, 12]
    assert sum(made.ledger["bins"].values()) == 61
    assert {row.file for row in made.validation} == {str(tmp_path / "validation.jsonl")}
    assert {row.file for row in made.test} == {str(tmp_path / "test.jsonl")}
    assert made.ledger["records_read"] == 61
    told = " ".join(made.notes)
    assert "test.jsonl:12" in told
    assert "train.jsonl:8" in told
    dropped = prepared(tmp_path / "train.jsonl", *words, "data.drop_overlap=true")
    assert 8 not in {row.line for row in dropped.train}
    assert dropped.ledger["records_read"] == 61


def test_packing_keeps_every_document_and_changes_no_label(tmp_path):
    write_rows(tmp_path / "a.jsonl", "prompt_response", 120, 0, bad=0)
    plain, packed = (prepared(tmp_path / "a.jsonl", "data.max_length=128", f"data.packing={how}") for how in ("none", "best_fit"))
    assert len(packed.train) < len(plain.train)
    assert packed.labels == plain.labels == labels_hash(packed.train)
    assert packed.ledger["train_rows"] == len(packed.train)
    assert max(len(row.ids) for row in packed.train) <= 128
    assert sum(map(len, (row.documents for row in packed.train))) == len(plain.train)
    decision = next(decision for decision in packed.decisions if decision.name == "packing")
    assert decision.reason.startswith(f"{len(plain.train)} documents in {len(packed.train)} rows, ")
    assert list(packed.test) == list(plain.test)
    assert packed.folder == plain.folder, "packing changes no stored row"


def test_the_batches_of_an_epoch_have_the_labels_of_the_preview(tmp_path):
    from halfbyte.data.batches import LabelSum

    write_rows(tmp_path / "a.jsonl", "messages", 60, 0, bad=0)
    for packing in ("none", "best_fit"):
        made = prepared(tmp_path / "a.jsonl", f"data.packing={packing}")
        seen = LabelSum()
        for step in epoch_steps(made.train, 4, 2, 2, 0, 0):
            for batch in step:
                seen.add_batch(batch)
        assert seen.hex == made.labels


def test_a_book_in_chunks_is_the_book_in_one_piece(tmp_path, monkeypatch):
    """Text that is tokenised in pieces loses nothing: only tokens at the joints may be cut otherwise."""
    write_rows(tmp_path / "a.jsonl", "book", 60, 0, bad=0)
    words = ["data.kind=text", "data.rows=book", "data.max_length=64"]
    whole = prepared(tmp_path / "a.jsonl", *words)
    monkeypatch.setattr(prepare, "BATCH_CHARACTERS", 2000)
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "other"))
    chunked = prepared(tmp_path / "a.jsonl", *words)
    texts = ["".join(tokenizer_of("bytes", "chatml").decode(row.ids[1:]) for row in made.train) for made in (whole, chunked)]
    assert texts[0] == texts[1]
    assert chunked.ledger["bins"] == whole.ledger["bins"]


def test_little_text_is_held_at_a_time(tmp_path, monkeypatch):
    """Guards against 500 rows of a megabyte each in memory at once."""
    monkeypatch.setattr(prepare, "BATCH_CHARACTERS", 5000)
    held = []
    fit = prepare.Fitter.fit
    monkeypatch.setattr(prepare.Fitter, "fit", lambda self, records, bill=None: (held.append(sum(len(r.asked) for r in records)), fit(self, records, bill))[1])
    rows = [{"prompt": f"{n} " + sentence(random.Random(n), 300, 300), "response": "yes"} for n in range(100)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared(tmp_path / "a.jsonl", "data.near_duplicates=ignore")
    assert max(held) < 5000 + 3000
    assert len(held) > 10


def test_the_prompts_of_the_report_are_held_out(tmp_path):
    write_rows(tmp_path / "a.jsonl", "messages", 100, 0, bad=0)
    made = prepared(tmp_path / "a.jsonl")
    assert len(made.held_out_prompts) == 3
    test = said(made.test)
    assert all(any(prompt in row for row in test) for prompt in made.held_out_prompts)
    assert not any(f"<|im_start|>user\n{prompt}<" in row for prompt in made.held_out_prompts for row in said(made.train))


def test_progress_is_told_of_both_readings(tmp_path):
    write_rows(tmp_path / "a.jsonl", "prompt_response", 2100, 0, bad=0)
    told = []
    prepared(tmp_path / "a.jsonl", progress=lambda stage, rows: told.append((stage, rows)))
    assert {stage for stage, _ in told} == {"reading", "tokenising"}
    assert max(rows for stage, rows in told if stage == "tokenising") >= 2000


# Found again


def stamp(made: Prepared) -> tuple[Path, int]:
    return made.folder, made.folder.stat().st_ino


def test_the_same_is_found_again_and_whatever_changes_is_made_anew(tmp_path, monkeypatch):
    """CORRECTNESS 1.24: content, section, seed, template and tokenizer each have a part in the key."""
    file = tmp_path / "a.jsonl"
    write_rows(file, "prompt_response", 60, 0, bad=0)
    base = [*PAIRS, "data.max_length=96"]
    first = prepared(file, *base)
    again = prepared(file, *base)
    assert stamp(again) == stamp(first)
    assert (again.ledger, again.notes, again.decisions, again.labels, again.held_out_prompts) == (
        first.ledger, first.notes, first.decisions, first.labels, first.held_out_prompts,
    )  # fmt: skip
    assert [list(part) for part in (again.train, again.validation, again.test)] == [list(part) for part in (first.train, first.validation, first.test)]
    words = [
        "data.max_length=95", "data.system=be kind", "data.instruction=answer", "data.prompt_template='Q: {prompt} A: '", "data.loss=all",
        "data.test_share=0.3",
    ]  # fmt: skip
    others = [prepared(file, *base, word) for word in words]
    others += [prepared(file, *base, seed=1), *(prepared(file, *base, tokenizer=tokenizer_of(*kind)) for kind in (("bytes", "begins"), ("bare", "chatml")))]
    assert len({first.folder, *(made.folder for made in others)}) == 10
    text = file.read_text()
    file.write_text(text.replace("keeper", "Keeper", 1))
    changed = prepared(file, *base)
    assert changed.folder != first.folder
    assert [list(made.train) + list(made.test) + list(made.validation) for made in (changed,)] != [list(first.train)]
    file.write_text(text)
    assert stamp(prepared(file, *base)) == stamp(first)
    assert stamp(prepared(file, *base, "data.licence=CC BY 4.0")) == stamp(first), "the licence changes no row"


def test_a_path_written_otherwise_finds_the_same(tmp_path, monkeypatch):
    """Guards against a resumed run, whose recipe has absolute paths, that prepares everything once more."""
    write_rows(tmp_path / "a.jsonl", "prompt_response", 40, 0, bad=0)
    monkeypatch.chdir(tmp_path)
    relative = prepared(Path("a.jsonl"), "data.augment=[typos]")
    absolute = prepared(tmp_path / "a.jsonl", "data.augment=[typos]")
    assert stamp(relative) == stamp(absolute)
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "other"))
    anew = prepared(tmp_path / "a.jsonl", "data.augment=[typos]")
    assert anew.folder != absolute.folder
    assert (anew.labels, anew.fingerprint) == (relative.labels, relative.fingerprint)


def test_notes_are_kept_with_the_rows(tmp_path):
    """Guards against notes of a reading that were gone when the rows were found again."""
    file = tmp_path / "a.jsonl"
    lines = [json.dumps({"prompt": ("\ufeff" if n == 5 else "") + f"number {n}, write to ann.{n}@example.org", "response": f"the {n}"}) for n in range(30)]
    file.write_text("\n".join([*lines, json.dumps({"prompt": "", "response": "x"})]))
    first, again = (prepared(file, "data.redact=[email]") for _ in range(2))
    assert first.notes == again.notes
    assert any("byte-order mark" in note for note in again.notes)
    assert any("replaced by tags" in note for note in again.notes)
    assert any("1 row left out: empty prompt or response" in note and "a.jsonl:31" in note for note in again.notes)
    assert "[EMAIL]" in " ".join(said(again.train))


def test_a_damaged_cache_is_made_anew(tmp_path):
    write_rows(tmp_path / "a.jsonl", "prompt_response", 40, 0, bad=0)
    first = prepared(tmp_path / "a.jsonl")
    rows = list(first.train)
    file = first.folder / "train.arrow"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.unlink()  # the rows above are mapped
    file.write_bytes(raw)
    again = prepared(tmp_path / "a.jsonl")
    assert list(again.train) == rows
    assert file.read_bytes() != bytes(raw)


def test_a_cache_that_cannot_be_written_is_told_before_anything_is_read(tmp_path, monkeypatch):
    write_rows(tmp_path / "a.jsonl", "prompt_response", 40, 0, bad=0)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "file" / "x"))
    monkeypatch.setattr(prepare, "survey_records", lambda *_: pytest.fail("read"))
    with pytest.raises(MachineError, match="cannot be written"):
        prepared(tmp_path / "a.jsonl")


def test_a_bad_row_leaves_no_folder(tmp_path, cache):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 3 + '{"prompt": 7, "response": ["b"]}\n')
    with pytest.raises(DataError):
        prepared(tmp_path / "a.jsonl")
    assert [path for path in (cache / "prepared").iterdir() if path.is_dir()] == []


def test_a_vocabulary_beyond_16_bits_is_kept_whole(tmp_path, monkeypatch):
    """By the largest id, not the number of tokens: ids may have holes."""
    write_rows(tmp_path / "a.jsonl", "prompt_response", 40, 0, bad=0)
    made = []
    writer = prepare.RowWriter
    monkeypatch.setattr(prepare, "RowWriter", lambda file, largest: (made.append(largest), writer(file, largest))[1])
    tokenizer = tokenizer_of("bytes", "chatml")
    prepared(tmp_path / "a.jsonl", tokenizer=tokenizer)
    assert set(made) == {max(tokenizer.get_vocab().values())}


def test_store_and_ledger_have_the_same_parts():
    assert store.PARTS == prepare.SIDES


def test_each_file_of_a_folder_is_a_book_of_its_own(tmp_path):
    """CORRECTNESS 1.1 and 1.4: every book ends with its end mark, and no block holds the text of two."""
    folder = tmp_path / "books"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text("\n\n".join(f"{name}{number} " + name * 40 for number in range(30)), encoding="utf-8")
    tokenizer = tokenizer_of("bytes", "chatml")
    made = prepared(folder, "data.kind=text", "data.max_length=64", "data.validation_share=0", "data.test_share=0")
    said = [tokenizer.decode(row.ids) for row in made.train]
    assert all(len({letter for letter in "abc" if letter * 3 in text}) <= 1 for text in said)
    end = tokenizer.eos_token_id
    ends = [Path(row.file).name for row in made.train if row.ids[-1] == end and row.trained[-1]]
    assert ends == ["a.txt", "b.txt", "c.txt"]
    assert made.ledger["bins"] == {"trained": 90}
