"""Peak memory and rows a second of `halfbyte prepare` on a generated JSONL that is larger than memory should be asked to hold.

    python benchmarks/prepare_5gb.py [--gb 5] [--data FOLDER] [--folder WHERE]      about half an hour on 2 cores

The file is made of public-domain novels (those of pretrain/novels-*.jsonl.xz that are there): each row a passage to go on from and its continuation, drawn at
random places, so that hardly two rows are alike; every 500th row repeats an earlier one, some with small changes. The preparation runs
in a process of its own, whose greatest resident memory (mapped files included) the kernel tells when it ends.
"""

import argparse
import json
import lzma
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from claims import RESULTS, record, save_raw

LARGEST_PEAK = 1.5e9


def write_rows(file: Path, size: int, data: Path, seed: int = 0) -> int:
    text = ""
    for novels in sorted((data / "pretrain").glob("novels-*.jsonl.xz")):
        with lzma.open(novels, "rt", encoding="utf-8") as stream:
            text += "\n".join(json.loads(line)["text"] for line in stream)
    draw = random.Random(seed)
    rows, written = 0, 0
    earlier: list[tuple[str, str]] = []
    with open(file, "w", encoding="utf-8") as stream:
        while written < size:
            start, asked, answered = draw.randrange(len(text) - 4000), draw.randrange(200, 1200), draw.randrange(200, 1800)
            prompt, response = text[start : start + asked], text[start + asked : start + asked + answered]
            if rows % 500 == 499:
                prompt, response = draw.choice(earlier)
                prompt = prompt.upper() if rows % 1000 == 999 else prompt
            elif len(earlier) < 1000:
                earlier.append((prompt, response))
            line = json.dumps({"prompt": prompt, "response": response}, ensure_ascii=False) + "\n"
            stream.write(line)
            written += len(line.encode())
            rows += 1
    return rows


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--gb", type=float, default=5)
    words.add_argument("--data", type=Path, default=Path(os.environ.get("HALFBYTE_DATA", "../shared/data")))
    words.add_argument("--results", type=Path, default=RESULTS)
    words.add_argument("--folder", type=Path, help="keeps the generated file here, and uses it again")
    asked = words.parse_args()
    with tempfile.TemporaryDirectory(prefix="halfbyte-5gb-") as folder:
        file, recipe = (asked.folder or Path(folder)) / "rows.jsonl", Path(folder) / "recipe.yaml"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_rows(file, int(asked.gb * 1e9), asked.data)
        with open(file, "rb") as stream:
            rows = sum(1 for _ in stream)
        size = file.stat().st_size
        print(f"{rows:,} rows, {size / 1e9:.2f} GB", flush=True)
        recipe.write_text(f"name: large\ndata:\n  path: {file}\n  licence: public domain\n  max_length: 1024\n", encoding="utf-8")
        environment = {**os.environ, "HALFBYTE_CACHE": str(Path(folder) / "cache"), "COLUMNS": "160"}
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "halfbyte", "prepare", str(recipe)], env=environment, stdout=subprocess.PIPE, text=True, check=False)
        seconds = time.monotonic() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        print(done.stdout)
        if done.returncode:
            sys.exit(f"halfbyte prepare ended with {done.returncode}")
        ledgers = list((Path(folder) / "cache").glob("prepared/*/meta.json"))
        ledger = json.loads(ledgers[0].read_text(encoding="utf-8"))["ledger"]
        stored = sum(one.stat().st_size for one in (Path(folder) / "cache").rglob("*.arrow"))
    if ledger["records_read"] != rows or peak > LARGEST_PEAK:
        sys.exit(f"{ledger['records_read']} of {rows} rows read, peak {peak / 1e9:.2f} GB")
    tokens = sum(ledger[f"{part}_all_tokens"] for part in ("train", "validation", "test"))
    print(f"{seconds:.0f} s, {rows / seconds:,.0f} rows/s, {size / seconds / 1e6:.1f} MB/s, {tokens / seconds:,.0f} tokens/s, peak {peak / 1e9:.2f} GB")
    save_raw("prepare_5gb.json", {
        "bytes": size, "rows": rows, "seconds": round(seconds, 1), "rows_per_second": round(rows / seconds), "peak_bytes": peak,
        "arrow_bytes": stored, "tokens": tokens, "ledger": ledger,
    }, asked.results)  # fmt: skip
    record("prepare-5gb-peak-gb", round(peak / 1e9, 3), f"GB, a JSONL of {size / 1e9:.2f} GB", asked.results)


if __name__ == "__main__":
    main()
