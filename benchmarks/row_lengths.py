"""Lengths of real rows, which the suite's packed configurations are drawn from: only numbers, none of the texts.

    python benchmarks/row_lengths.py --data FOLDER      writes benchmarks/row_lengths.json; seconds

A row is a prompt, its answer and an end mark, counted by the embedded base's tokenizer: 8,192 words, so somewhat more tokens than a base with more words
counts. FOLDER holds alpaca_en_1k.jsonl.gz and YT-comments.csv, or folders with them.
"""

import argparse
import csv
import gzip
import json
from collections.abc import Iterable
from pathlib import Path

OUT = Path(__file__).parent / "row_lengths.json"
SOURCES = {
    "alpaca": ("alpaca_en_1k.jsonl.gz", "999 instructions with answers: alpaca_en_demo.json of hiyouga/LLaMA-Factory", "Apache-2.0"),
    "replies": ("YT-comments.csv", "59 comments with replies: YT-comments.csv of ShawhinT/YouTube-Blog", "MIT"),
}


def texts_of(file: Path) -> Iterable[str]:
    if file.suffix == ".csv":
        with open(file, encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                yield f"{row['Comment']}\n{row['Response']}"
        return
    for line in gzip.decompress(file.read_bytes()).decode().splitlines():
        row = json.loads(line)
        yield "\n".join(row[key] for key in ("instruction", "input", "output") if row[key])


def main() -> None:
    from transformers import AutoTokenizer

    import halfbyte

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(Path(halfbyte.__file__).parent / "base")
    found = {}
    for name, (file, source, licence) in SOURCES.items():
        texts = texts_of(next(args.data.rglob(file)))
        lengths = [len(ids) + 1 for ids in tokenizer(list(texts))["input_ids"]]
        found[name] = {"source": source, "licence": licence, "tokenizer": "halfbyte's embedded base", "lengths": lengths}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(one)}" for name, one in found.items())
    OUT.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
