"""Reading, rendering and tokenising against what `tokenizers` alone does on the same text with the same threads.

    python benchmarks/tokenise.py [--data FOLDER]      two minutes on 2 cores

Ours: file -> records -> chat template -> ids with their labels, for every row. Alone: encode_batch_fast on the same rendered texts, which are
in memory already. Both take turns in one process; the figure is the median over the rounds of the ratio of rows a second.
"""

import argparse
import gzip
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from claims import RESULTS, record, save_raw

ROUNDS = 7
FILES = {
    "instructions": "instruct/alpaca_en_1k.jsonl.gz",
    "tasks": "instruct/t0_tasks_sample.jsonl.gz",
    "conversations": "instruct/oasst_en_conversations.jsonl.gz",
    "stories": "instruct/simple_stories_instruct.jsonl.gz",
}
BATCH = 500
LEAST = 0.7


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", type=Path, default=Path(os.environ.get("HALFBYTE_DATA", "../shared/data")))
    words.add_argument("--results", type=Path, default=RESULTS)
    asked = words.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"

    from transformers import AutoTokenizer

    import halfbyte
    from halfbyte.data.read import read_records
    from halfbyte.data.render import choose_template, render_record
    from halfbyte.data.tokens import Encoder
    from halfbyte.recipe.schema import AutoData

    tokenizer = AutoTokenizer.from_pretrained(Path(halfbyte.__file__).parent / "base")
    template, _ = choose_template("chat", None, tokenizer)
    encoder = Encoder(tokenizer)
    backend = tokenizer.backend_tokenizer

    def ours(reading) -> int:
        tokens, held = 0, []
        for one in reading.records():
            held.append(render_record(one, template, tokenizer))
            if len(held) == BATCH:
                tokens += sum(len(row.ids) for row in encoder.encode(held))
                held = []
        return tokens + sum(len(row.ids) for row in encoder.encode(held))

    def alone(texts: list[str]) -> int:
        tokens = 0
        for start in range(0, len(texts), BATCH):
            tokens += sum(len(one.ids) for one in backend.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False))
        return tokens

    raw: dict[str, object] = {"threads": os.environ.get("RAYON_NUM_THREADS", str(len(os.sched_getaffinity(0)))), "rounds": ROUNDS}
    ratios = []
    folder = tempfile.TemporaryDirectory()
    unpacked = Path(folder.name) / "rows.jsonl"
    for name, file in FILES.items():
        # Unpacked beforehand: gzip is not what is compared.
        unpacked.write_bytes(gzip.decompress((asked.data / file).read_bytes()))
        reading = read_records(AutoData(path=str(unpacked)))
        texts = ["".join(piece.text for piece in render_record(one, template, tokenizer).pieces) for one in reading.records()]
        ours(reading), alone(texts)
        rounds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            tokens = ours(reading)
            middle = time.perf_counter()
            reference = alone(texts)
            rounds.append((middle - start, time.perf_counter() - middle))
        # A border between prompt and answer is a border between tokens, which costs a token here and there.
        if not reference <= tokens <= 1.02 * reference:
            sys.exit(f"{name}: {tokens} tokens here and {reference} alone: this is not the same text")
        ratio = statistics.median(b / a for a, b in rounds)
        ratios.append(ratio)
        raw[name] = {
            "rows": len(texts), "characters": sum(map(len, texts)), "tokens": tokens, "tokens_alone": reference, "ratio": round(ratio, 3),
            "seconds_ours": [round(a, 4) for a, _ in rounds], "seconds_alone": [round(b, 4) for _, b in rounds],
        }  # fmt: skip
        print(f"{name:14} {len(texts):6} rows  {tokens / statistics.median(a for a, _ in rounds):12,.0f} tokens/s  ratio {ratio:.2f}")
    folder.cleanup()
    total = sum(statistics.median(raw[n]["seconds_alone"]) for n in FILES) / sum(statistics.median(raw[n]["seconds_ours"]) for n in FILES)  # type: ignore[index]
    raw["all"] = round(total, 3)
    print(f"all texts      ratio {total:.2f}")
    save_raw("tokenise.json", raw, asked.results)
    if total < LEAST:
        sys.exit(f"{total:.2f} is less than {LEAST}")
    record("tokenise-share-of-tokenizers", round(total, 3), "ratio of rows a second, all four files", asked.results)


if __name__ == "__main__":
    main()
