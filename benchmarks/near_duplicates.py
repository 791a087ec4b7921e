"""How many planted near-duplicates are found, at which exact Jaccard index and length, what is joined wrongly, how fast, in how much memory.

python benchmarks/near_duplicates.py [--results FOLDER]     reads HALFBYTE_DATA (default ../shared/data),
                                                            writes results/near_duplicates.json, claim near-duplicates-found

Real texts of ten to eighty thousand characters are edited (typos, words changed, moved, put in, left out, case and punctuation) and put among the
others as if on the other side of a split. Every planted pair is measured by the definition, near.jaccard. Of ViGGO's sentences, which are much
alike by nature, all pairs are measured; and copies are sought in a crowd of texts that share two thirds of what they say. A pair is found if both
texts are in one component. Where datasketch is installed, its time and memory stand beside.
"""

import argparse
import csv
import gzip
import json
import lzma
import os
import random
import re
import string
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from claims import RESULTS, record, save_raw
from halfbyte.data import near

DATA = Path(os.environ.get("HALFBYTE_DATA", "../shared/data"))
SYNTHETIC_TEXTS, DATASKETCH_TEXTS = 1_000_000, 10_000
SYNTHETIC_WORDS = 150  # about 1 KB
PLANTED = {"to 50": 8000, "to 200": 8000, "to 1,000": 5000, "to 5,000": 2500, "over 5,000": 320}  # by characters
CROWD, CROWD_HEAD = 100_000, 400  # texts that all begin with the same characters
JACCARD_BINS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.01)
WORST_SHARE, WORST_FALSE = 0.99, 0.001


def viggo() -> list[str]:
    rows: list[str] = []
    for side in ("train", "validation", "test"):
        with (DATA / "viggo" / f"{side}.csv").open(encoding="utf-8", newline="") as stream:
            rows += [row["ref"] for row in csv.DictReader(stream)]
    return rows


def pieces(name: str) -> list[str]:
    with lzma.open(DATA / "pretrain" / f"{name}.jsonl.xz", "rt", encoding="utf-8") as stream:
        return [json.loads(line)["text"] for line in stream]


def real_texts() -> list[str]:
    """Sentences, comments, answers, reviews, pages and chapters; no two equal."""
    novels = pieces("novels-01")
    with (DATA / "youtube_comments" / "YT-comments.csv").open(encoding="utf-8", newline="") as stream:
        comments = [text for row in csv.DictReader(stream) for text in row.values()]
    with gzip.open(DATA / "instruct" / "alpaca_en_1k.jsonl.gz", "rt", encoding="utf-8") as stream:
        answers = [text for line in stream for text in json.loads(line).values()]
    sentences = [sentence for piece in novels[:400] for sentence in re.split(r"(?<=[.!?])\s+", piece)]
    chapters = ["\n".join(novels[start : start + size]) for start, size in zip(range(1000, 6000, 15), [2, 3, 5, 8, 24] * 100)]
    texts = viggo() + comments + answers + sentences + pieces("reviews-01")[:3000] + novels[400:1000] + chapters
    return list({near.normalise(text): text for text in texts if len(near.normalise(text)) >= 10}.values())


def edited(text: str, edits: int, words: list[str], draw: random.Random) -> str:
    """The text after so many small changes of all kinds."""
    parts = text.split(" ")
    for _ in range(edits):
        kind, at = draw.randrange(8), draw.randrange(len(parts))
        word = parts[at]
        letter = draw.randrange(len(word) + 1)
        if kind == 0:
            parts[at] = word[:letter] + draw.choice(string.ascii_lowercase) + word[letter + 1 :]
        elif kind == 1:
            parts[at] = word[:letter] + word[letter + 1 :]
        elif kind == 2:
            parts[at] = word[:letter] + word[letter : letter + 2][::-1] + word[letter + 2 :]
        elif kind == 3:
            parts[at] = draw.choice(words)
        elif kind == 4:
            parts.insert(at, draw.choice(words))
        elif kind == 5 and len(parts) > 1:
            del parts[at]
        elif kind == 6:
            other = draw.randrange(len(parts))
            parts[at], parts[other] = parts[other], word
        else:
            parts[at] = draw.choice((word.upper(), word.title(), word + ",", word.rstrip(string.punctuation), word + "  "))
    return " ".join(parts)


def length_class(text: str) -> str:
    size = len(near.normalise(text))
    return next((name for name, least in (("over 5,000", 5000), ("to 5,000", 1000), ("to 1,000", 200), ("to 200", 50)) if size > least), "to 50")


def jaccard_bin(index: float) -> str:
    place = int(np.searchsorted(JACCARD_BINS, index, side="right"))
    return f"{JACCARD_BINS[place - 1]:.2f}" if index == 1 else f"{JACCARD_BINS[place - 1]:.2f}-{JACCARD_BINS[place]:.2f}"


def plant(texts: list[str], draw: random.Random) -> list[tuple[int, str, float]]:
    """Number of the original, its copy, their Jaccard index. Most lie around 0.8 and above, some far below."""
    words = sorted({word for text in texts[:5000] for word in text.split()})
    by_class = defaultdict(list)
    for number, text in enumerate(texts):
        by_class[length_class(text)].append(number)
    planted = []
    for name, count in PLANTED.items():
        for number in draw.sample(by_class[name], min(count, len(by_class[name]))):
            text = texts[number]
            # An edit touches some five shingles or more: a twenty-fifth of them in edits leaves little over 0.8, a sixth less than a half.
            most = len(text) // (25 if draw.random() < 0.8 else 6)
            copy = edited(text, draw.randint(1, max(1, most)), words, draw)
            planted.append((number, copy, near.jaccard(text, copy)))
    return planted


def share(found: list[bool]) -> dict[str, float]:
    return {"pairs": len(found), "found": sum(found), "share": round(sum(found) / max(1, len(found)), 5)}


def components(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    with near.Signatures() as signatures:
        for start in range(0, len(texts), 1000):
            signatures.append(texts[start : start + 1000])
        edges = signatures.pairs()
    return near.connected(len(texts), edges), edges


def measure_planted(draw: random.Random) -> dict:
    texts = real_texts()
    planted = plant(texts, draw)
    everything = texts + [copy for _, copy, _ in planted]
    component, edges = components(everything)
    by_jaccard, by_length, by_cut = defaultdict(list), defaultdict(list), {True: [], False: []}
    for place, (number, _, index) in enumerate(planted):
        found = bool(component[number] == component[len(texts) + place])
        by_jaccard[jaccard_bin(index)].append(found)
        if index >= near.ALIKE:
            by_length[length_class(texts[number])].append(found)
        if index >= near.ALIKE or index < 0.5:
            by_cut[index >= near.ALIKE].append(found)
    indices = [near.jaccard(everything[i], everything[j]) for i, j in edges.tolist()]
    return {
        "texts": len(everything),
        "at_0.8_and_above": share(by_cut[True]),
        "by_jaccard": {name: share(by_jaccard[name]) for name in sorted(by_jaccard)},
        "at_0.8_and_above_by_characters": {name: share(by_length[name]) for name in PLANTED},
        "below_0.5_joined": share(by_cut[False]),
        "edges": {"all": len(edges), "below_0.5": sum(index < 0.5 for index in indices), "least_jaccard": round(min(indices), 3)},
        "largest_component": int(np.bincount(component).max()),
    }


def measure_viggo() -> dict:
    """Every pair of distinct sentences, by counting along each shingle's list of sentences."""
    texts = list({near.normalise(text): text for text in viggo()}.values())
    sets = [sorted({text[at : at + near.SHINGLE] for at in range(max(1, len(text) - near.SHINGLE + 1))}) for text in map(near.normalise, texts)]
    holders = defaultdict(list)
    for number, shingles in enumerate(sets):
        for shingle in shingles:
            holders[shingle].append(number)
    lists = {shingle: np.array(numbers) for shingle, numbers in holders.items()}
    sizes = np.array([len(shingles) for shingles in sets])
    component, edges = components(texts)
    found, below = [], {"pairs": 0, "joined": 0}
    by_jaccard = defaultdict(list)
    for number, shingles in enumerate(sets):
        shared = np.bincount(np.concatenate([lists[shingle] for shingle in shingles]), minlength=len(texts))
        index = shared / (sizes + sizes[number] - shared)
        joined = component == component[number]
        later = np.arange(len(texts)) > number
        below["pairs"] += int((later & (index < 0.5)).sum())
        below["joined"] += int((later & (index < 0.5) & joined).sum())
        for other in np.flatnonzero(later & (index >= 0.5)):
            by_jaccard[jaccard_bin(index[other])].append(bool(joined[other]))
            if index[other] >= near.ALIKE:
                found.append(bool(joined[other]))
    return {
        "texts": len(texts),
        "at_0.8_and_above": share(found),
        "by_jaccard": {name: share(by_jaccard[name]) for name in sorted(by_jaccard)},
        "below_0.5": below,
        "largest_component": int(np.bincount(component).max()),
        "edges": len(edges),
    }


def measure_crowd(draw: random.Random) -> dict:
    """Texts with one long opening in common, which makes every two of them half alike and fills the buckets; copies are to be found all the same."""
    words = sorted({word for text in viggo()[:3000] for word in text.split()})
    head = " ".join(draw.choices(words, k=200))[:CROWD_HEAD]
    texts = [f"{head} {' '.join(draw.choices(words, k=60))[: CROWD_HEAD // 2]}" for _ in range(CROWD)]
    originals = draw.sample(range(CROWD), CROWD // 30)
    copies = [edited(texts[number], draw.randint(1, 9), words, draw) for number in originals]
    places = draw.sample(range(CROWD + len(copies)), CROWD + len(copies))  # so that no copy stands beside its original
    everything = [""] * len(places)
    for place, text in zip(places, texts + copies):
        everything[place] = text
    component, _ = components(everything)
    pairs = [(number, CROWD + at) for at, number in enumerate(originals)]
    found = [bool(component[places[i]] == component[places[j]]) for i, j in pairs if near.jaccard(everything[places[i]], everything[places[j]]) >= near.ALIKE]
    return {
        "texts": len(everything),
        "mean_jaccard_of_strangers": round(sum(near.jaccard(texts[i], texts[i + 1]) for i in range(0, 2000, 2)) / 1000, 2),
        "at_0.8_and_above": share(found),
        "largest_component": int(np.bincount(component).max()),
    }


def synthetic(count: int) -> Iterator[list[str]]:
    """A thousand texts at a time of random words, about 1 KB each; every twentieth is the one before it with one word changed."""
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list(string.ascii_lowercase), length)) for length in draw.integers(2, 10, 5000)]
    for _ in range(0, count, 1000):
        rows = draw.integers(0, len(words), (1000, SYNTHETIC_WORDS))
        rows[19::20] = rows[18:-1:20]
        rows[19::20, 70] = 0
        yield [" ".join([words[number] for number in row]) for row in rows.tolist()]


def peak_bytes() -> int:
    """Of this program on Linux; ru_maxrss begins with what the parent process held when it started this one."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))[1]) * 1024


def run_synthetic(count: int) -> dict:
    """In a process of its own, so that the peak is this code's."""
    characters = sum(map(len, next(synthetic(1000))))
    before, seconds = peak_bytes(), 0.0
    with near.Signatures() as signatures:
        for texts in synthetic(count):
            started = time.process_time()
            signatures.append(texts)
            seconds += time.process_time() - started
        started = time.process_time()
        component = near.connected(count, signatures.pairs())
        searching = time.process_time() - started
    peak, original = peak_bytes(), np.arange(18, count, 20)
    return {
        "texts": count, "characters_a_text": characters // 1000, "cpu_microseconds_a_text": round(seconds / count * 1e6, 1),
        "texts_per_cpu_s": round(count / (seconds + searching)), "search_cpu_s": round(searching, 1), "peak_gb": round(peak / 1e9, 3),
        "added_gb": round((peak - before) / 1e9, 3), "bytes_a_text_on_disk": near.BYTES_A_TEXT,
        "planted": share((component[original] == component[original + 1]).tolist()), "components": int((component == np.arange(count)).sum()),
    }  # fmt: skip


def run_datasketch(count: int) -> dict:
    """The same texts through datasketch's MinHash and MinHashLSH with the same permutations and bands, in a process of its own."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=near.PERMUTATIONS, params=(near.BANDS, near.KEY_ROWS))
    seconds, number = 0.0, 0
    before = peak_bytes()
    for texts in synthetic(count):
        started = time.process_time()
        for text in map(near.normalise, texts):
            signature = MinHash(num_perm=near.PERMUTATIONS)
            signature.update_batch([text[at : at + near.SHINGLE].encode() for at in range(len(text) - near.SHINGLE + 1)])
            index.insert(number, signature, check_duplication=False)
            number += 1
        seconds += time.process_time() - started
    return {"texts": count, "cpu_microseconds_a_text": round(seconds / count * 1e6, 1), "kb_a_text_in_memory": round((peak_bytes() - before) / count / 1e3, 1)}


def in_child(word: str) -> dict:
    run = subprocess.run([sys.executable, __file__, "--only", word], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", choices=("synthetic", "datasketch"), help="one measurement in this process, printed as JSON")
    args = parser.parse_args()
    if args.only:
        print(json.dumps(run_synthetic(SYNTHETIC_TEXTS) if args.only == "synthetic" else run_datasketch(DATASKETCH_TEXTS)))
        return
    planted = measure_planted(random.Random(0))
    found = {
        "planted": planted,
        "viggo_all_pairs": measure_viggo(),
        "crowd": measure_crowd(random.Random(0)),
        "synthetic": in_child("synthetic"),
        "datasketch": in_child("datasketch") if find_spec("datasketch") else None,
    }
    save_raw("near_duplicates.json", found, args.results)
    record("near-duplicates-found", planted["at_0.8_and_above"]["share"], "share", args.results)
    print(json.dumps(found, indent=1))
    if planted["at_0.8_and_above"]["share"] < WORST_SHARE or planted["below_0.5_joined"]["share"] > WORST_FALSE:
        sys.exit("near-duplicates are missed or joined wrongly")


if __name__ == "__main__":
    main()
