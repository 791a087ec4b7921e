"""The five tasks that halfbyte began with: what trains the way their notebooks prepared them, computed, and what trains here.

    python benchmarks/five_tasks.py [--data FOLDER]      a minute on 2 cores; writes docs/five_tasks.md

Both sides use the embedded base's tokenizer on the same files, so that only the preparation differs. The notebooks' way, as their
cells say it: the whole text is trained, prompt included; the padding id is the end mark's, so the collator takes the end marks out of
the labels; the begin mark is typed into the text and set by the tokenizer again (comments); rows are cut at their max_length.
Token counts with their own tokenizers differ; shares hardly do.
"""

import argparse
import csv
import gzip
import json
import os
import tempfile
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

from claims import RESULTS, save_raw

REPOSITORY = Path(__file__).parent.parent
# What stands in the prompt of the ViGGO notebook before each sentence has 655 characters; ours of about that length stands in for its words.
VIGGO_INSTRUCTION = (
    "Given a sentence write the meaning of it as a single function with attributes and their values. It has to describe the sentence exactly, and "
    "nothing that the sentence does not say may stand in it. The function must be one of the following: "
    "['inform', 'request', 'give_opinion', 'confirm', 'verify_attribute', 'suggest', 'request_explanation', 'recommend', 'request_attribute']. "
    "The attributes must be among the following: ['name', 'exp_release_date', 'release_year', 'developer', 'esrb', 'rating', 'genres', "
    "'player_perspective', 'has_multiplayer', 'platforms', 'available_on_steam', 'has_linux_release', 'has_mac_release', 'specifier']"
)


def texts_of_comments(data: Path) -> list[tuple[str, str]]:
    """(text before the answer, answer) of the notebook's 50 training rows; its file holds the text as it was trained, marks included."""
    rows = []
    for line in (data / "youtube_comments/seed_split_train.jsonl").read_text(encoding="utf-8").splitlines():
        before, _, answer = json.loads(line)["example"].removeprefix("<s>").partition("[/INST]")
        rows.append((before + "[/INST]", answer.removesuffix("</s>")))
    return rows


def texts_of_games(data: Path) -> list[tuple[str, str]]:
    with open(data / "viggo/train.csv", encoding="utf-8-sig", newline="") as stream:
        return [
            (f"{VIGGO_INSTRUCTION}\n\n### Target sentence:\n{row['ref']}\n\n### Meaning representation:\n", row["mr"] + "\n") for row in csv.DictReader(stream)
        ]


def texts_of_novel(data: Path) -> list[tuple[str, str]]:
    """384 of 481 chunks, drawn at random by the notebook; here the first 384 stand for them."""
    with open(data / "frankenstein/frankenstein_chunks.csv", encoding="utf-8", newline="") as stream:
        return [("", row["text"]) for row in csv.DictReader(stream)][:384]


def texts_of_questions(data: Path) -> list[tuple[str, str]]:
    rows = []
    for line in (data / "mental_health/mental_health_172.jsonl").read_text(encoding="utf-8").splitlines():
        before, mark, answer = json.loads(line)["text"].partition("<ASSISTANT>:")
        rows.append((before + mark, answer))
    return rows


def texts_of_articles(data: Path) -> list[tuple[str, str]]:
    return [("", line) for line in gzip.decompress((data / "wikitext/wikitext2-raw.train-first1MB.txt.gz").read_bytes()).decode().splitlines()]


# Task, its texts, and how the notebook makes rows of them: max_length (None: no cut), begin marks, an end mark behind, the side that is cut.
TASKS = (
    ("youtube-replies", texts_of_comments, (512, 2, True, "left")),
    ("game-meaning", texts_of_games, (512, 1, True, "right")),
    ("game-act", None, None),
    ("frankenstein", texts_of_novel, (None, 1, False, "right")),
    ("mental-health", texts_of_questions, (512, 1, False, "right")),
    ("wikitext", texts_of_articles, (1024, 1, True, "right")),
    ("wikitext-chat", None, None),
)


def before(rows: Iterable[tuple[str, str]], tokenizer, max_length: int | None, begins: int, ends: bool, side: str) -> dict[str, object]:
    """What the collator of the notebook leaves in the labels: transformers' own, with the end mark as padding as in all five."""
    from transformers import DataCollatorForLanguageModeling

    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    begin, end = [tokenizer.bos_token_id] * begins, [tokenizer.eos_token_id] * ends
    seen = {"rows": 0, "supervised": 0, "answers": 0, "end_marks_trained": 0, "answers_cut": 0, "begin_marks": 0}
    for prompt, answer in rows:
        asked, said = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
        ids = begin + asked + said + end
        is_answer = [False] * (begins + len(asked)) + [True] * len(said) + [False] * ends
        if max_length is not None and len(ids) > max_length:
            kept = slice(-max_length, None) if side == "left" else slice(max_length)
            seen["answers_cut"] += sum(is_answer[kept]) < len(said)
            ids, is_answer = ids[kept], is_answer[kept]
        labels = collate([{"input_ids": ids, "attention_mask": [1] * len(ids)}])["labels"][0].tolist()
        seen["rows"] += 1
        seen["begin_marks"] += ids.count(tokenizer.bos_token_id)
        # The first label is compared with nothing.
        for label, answered in list(zip(labels, is_answer, strict=True))[1:]:
            seen["supervised"] += label != -100
            seen["answers"] += label != -100 and answered
            seen["end_marks_trained"] += label == tokenizer.eos_token_id
    return {**seen, "share_answers": round(seen["answers"] / seen["supervised"], 3), "begin_marks_a_row": round(seen["begin_marks"] / seen["rows"], 2)}


def now(recipe: str, tokenizer) -> dict[str, object]:
    from halfbyte import api
    from halfbyte.recipe.load import load_recipe

    prepared = api.prepare(load_recipe(Path("recipes") / f"{recipe}.yaml"))
    special, ends, begins, documents = set(tokenizer.all_special_ids), 0, 0, 0
    for row in prepared.train:
        starts = {0, *accumulate(row.documents)}
        ends += sum(trained and place not in starts and token in special for place, (token, trained) in enumerate(zip(row.ids, row.trained, strict=True)))
        begins += row.ids.count(tokenizer.bos_token_id)
        documents += max(1, len(row.documents))
    return {
        "ledger": prepared.ledger, "end_marks_trained": ends, "begin_marks_a_document": round(begins / documents, 3), "documents": documents,
        "labels": prepared.labels,
    }  # fmt: skip


def table(results: dict[str, dict[str, dict]]) -> str:
    lines = [
        "| task | rows read | trained | shortened | validation | test | left out | supervised tokens | share of all | end marks learned |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, sides in results.items():
        ledger = sides["now"]["ledger"]
        bins = ledger["bins"]
        held = {part: sum(count for key, count in bins.items() if key.startswith(part)) for part in ("validation", "test")}
        out = ", ".join(f"{item['count']} {item['reason']}" for item in ledger["left_out"]) or "none"
        lines.append(
            f"| {name} | {ledger['records_read']:,} | {bins.get('trained', 0):,} | {bins.get('trained, prompt shortened', 0):,} | {held['validation']:,} | "
            f"{held['test']:,} | {out} | {ledger['train_tokens']:,} | {ledger['train_tokens'] / ledger['train_all_tokens']:.1%} | "
            f"{sides['now']['end_marks_trained']:,} |"
        )
    lines += [
        "", "| task, as its notebook prepares it | rows trained | tokens in the loss | of them answers | answers cut | "
        "end marks learned | begin marks a row |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, sides in results.items():
        if "before" in sides:
            one = sides["before"]
            lines.append(
                f"| {name} | {one['rows']:,} | {one['supervised']:,} | {one['share_answers']:.1%} | {one['answers_cut']} | "
                f"{one['end_marks_trained']} | {one['begin_marks_a_row']} |"
            )
    return "\n".join(lines)


PAGE = """# The five tasks: what trains

Written by `python benchmarks/five_tasks.py` from the real files; raw figures in benchmarks/results/five_tasks.json. All counts are with
the tokenizer of the embedded base. Every row that was read is in exactly one bin, and the bins add up.

{table}

How to read it: the notebooks train on everything, so most of the loss of the comments and of the games is one instruction that never
changes, and since their padding mark is their end mark, the collator takes every end mark out of the labels. Here only answers are trained,
with the mark that ends each one; texts are trained whole, and the end mark of a text stands at the end of its file.

Their rows are those of their training part as far as the files are at hand: of WikiText the first megabyte of the training text, of the
novel the first chunks in the number that was drawn. In front of each sentence about games stands an instruction of ours that is about as
long as theirs, so their share of answers is computed with a stand-in prompt.
"""


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", type=Path, default=Path(os.environ.get("HALFBYTE_DATA", "../shared/data")))
    words.add_argument("--results", type=Path, default=RESULTS)
    asked = words.parse_args()
    data, results_folder = asked.data.resolve(), asked.results.resolve()
    from transformers import AutoTokenizer

    import halfbyte

    base = Path(halfbyte.__file__).parent / "base"
    tokenizer, padded = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    padded.pad_token = padded.eos_token
    results: dict[str, dict[str, dict]] = {}
    with tempfile.TemporaryDirectory() as folder:
        # Recipes name their data from the folder they are called in.
        (Path(folder) / "data").symlink_to(data)
        (Path(folder) / "recipes").symlink_to(REPOSITORY / "recipes")
        os.environ["HALFBYTE_CACHE"] = str(Path(folder) / "cache")
        home = Path.cwd()
        os.chdir(folder)
        try:
            for name, texts, way in TASKS:
                results[name] = {"now": now(name, tokenizer)}
                if texts is not None:
                    results[name]["before"] = before(texts(data), padded, *way)
        finally:
            os.chdir(home)
    save_raw("five_tasks.json", results, results_folder)
    page = PAGE.format(table=table(results))
    print(page)
    if asked.results == RESULTS:
        (REPOSITORY / "docs/five_tasks.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
