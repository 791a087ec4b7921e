"""Files as they come from the wild: does every damaged one end in rows or in a line that names the mend?

    python benchmarks/mutated_files.py [--files 20000] [--seed 0] [--results FOLDER] [--keep FOLDER]
    python benchmarks/mutated_files.py --one NUMBER --keep FOLDER      writes that file and shows its traceback

Small files of every format, written here, are damaged: bits flipped, cut off, spliced, lines doubled, brackets nested, numbers made
huge, bytes that are no UTF-8, packed again, called by another ending, put in a folder with another. Each is read as a user would have it
read, audited, split, rendered and tokenised, twice: refusing bad rows and skipping them. Anything but rows or a HalfbyteError with a
hint is a failure, and so is more than 10 s, a cell that is no text, and a seed that is not read while it is whole. Two processes, each
watched: one that dies or hangs is a failure too.
Writes mutated_files.json and the claim mutated-files-no-traceback.
"""

import argparse
import gzip
import io
import json
import lzma
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import halfbyte
from claims import RESULTS, record, save_raw
from halfbyte.data.audit import audit
from halfbyte.data.files import open_source
from halfbyte.data.prepare import prepare_data
from halfbyte.data.read import read_records
from halfbyte.data.split import TRAIN
from halfbyte.errors import HalfbyteError
from halfbyte.recipe.schema import AutoData

LONGEST_SECONDS = 10
PROCESSES = 2
# One in so many files is left whole, and must be read.
WHOLE = 20
ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".txt", ".md", ".text", "", ".xlsx", ".gz", ".CSV", ".csv.gz", ".jsonl.xz", ".txt.zst")
TURNS = [{"role": "user", "content": "Is it far?"}, {"role": "assistant", "content": "No, two \u2603 stops."}]
NASTY = [
    "\x00", "\ufeff", "\r", "\r\n", "\n\n", "\u2028", '"', '""', "'", ",", ";", "\t", "|", "\\", "\\u", "\\ud800", "\\u0000", "[", "]", "{", "}", ":",
    "null", "NaN", "-Infinity", "1e999", "9" * 10_000, "-", "0x1F", "true", "[" * 5_000, '{"a":' * 5_000, "<HUMAN>:", "</s>", "*** START OF THE PROJECT",
    "\u202e", "\U0001f600", "a" * 100_000, "=1+1", "PAR1", "PK\x03\x04", "version https://git-lfs", "<html>", "prompt", "response", "messages", "role",
]  # fmt: skip
NASTY_BYTES = [
    b"\xff",
    b"\x80",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xff\xfe",
    b"\xfe\xff",
    b"\xef\xbb\xbf",
    b"\0\0\0\0",
    b"\xe9",
    b"\x1f\x8b\x08",
]


def jsonl(*rows: object) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(columns: dict, **more) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, **more)
    return out.getvalue()


def make_seeds() -> dict[str, bytes]:
    """Name with ending -> content; every one of them can be read."""
    pairs = [{"prompt": f"Question {n}, or \u00e9?", "response": f"Answer\n{n}"} for n in range(6)]
    prompts, responses = [row["prompt"] for row in pairs], [row["response"] for row in pairs]
    instructions = [{"instruction": "Add.", "input": f"{n} and 1", "output": str(n + 1)} for n in range(4)]
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    chats = [{"messages": TURNS, "id": n, "weight": 0.5, "kept": True, "note": None} for n in range(4)]
    seeds = {
        "quoted.csv": b'id,prompt,response\n1,"One, two","three\nlines\r\nhere"\n2,a "b" c,"he said ""no"""\n\n3,NA,01\n',
        "semicolon.csv": "prompt;response\r\na, b;c\r\n\u00e9;\u2603\r\n".encode(),
        "bar.csv": b"prompt|response\na|b\nc|d\n",
        "mac.csv": b"prompt,response\ra,b\rc,d\r",
        "marked.csv": "\ufeffprompt,response\ncaf\u00e9,b\n".encode(),
        "wide.csv": "prompt,response\na,b\nc,\u00e9\n".encode("utf-16"),
        "windows.csv": "prompt,response\ncaf\u00e9,na\u00efve\n".encode("cp1252"),
        "label.csv": b"text,label\nfine,good\nbad,poor\nmeh,good\ngreat,good\nawful,poor\nweak,poor\n",
        "tagged.csv": b"conversation\n<HUMAN>: Hi <ASSISTANT>: Hello\n<HUMAN>: And you? <ASSISTANT>: Fine\n",
        "tabs.tsv": b"prompt\tresponse\na, b\tc\nd\te\n",
        "meaning.csv": b"target,meaning_representation\nIt is good,inform(rating[good])\nIt is bad,inform(rating[poor])\n",
        "pairs.jsonl": jsonl(*pairs),
        "instructions.jsonl": jsonl(*instructions),
        "chats.jsonl": jsonl(*chats),
        "sharegpt.ndjson": jsonl(*[{"conversations": turns}] * 3),
        "texts.jsonl": jsonl(*[{"text": f"A text, {n}. " * 5} for n in range(5)]),
        "escaped.jsonl": b'{"prompt": "\\ud83d\\ude00 \\u00e9", "response": "\\\\ \\" \\n"}\n{"prompt": 1e5, "response": 01}\n'.replace(b"01", b'"01"'),
        "list.json": json.dumps(pairs, indent=1).encode(),
        "flat.json": json.dumps(chats).encode(),
        "inside.json": json.dumps({"version": 1.0, "data": pairs, "tags": ["a", "b"]}).encode(),
        "one.json": json.dumps({"messages": TURNS}).encode(),
        "lines.json": jsonl(*pairs),
        "list.jsonl": json.dumps(pairs).encode(),
        "pairs.parquet": parquet({"prompt": prompts, "response": responses, "n": list(range(6)), "share": [0.5] * 6}),
        "chats.parquet": parquet({"messages": [TURNS] * 5, "ok": [True, None] * 2 + [False]}, row_group_size=2),
        "classes.parquet": parquet({"text": ["a", "b"] * 30, "label": pa.array(["x", "y"] * 30).dictionary_encode()}, compression="zstd"),
        "book.txt": ("A first paragraph\nof two lines.\n\nA second, \u00e9.\n\n\n*** END OF THE PROJECT GUTENBERG EBOOK ***\n\nlicence\n").encode(),
        "lines.txt": b"one\ntwo\r\nthree\n",
        "page.md": "# Title\n\nSome *words*.\n\n```\ncode, \u2603\n```\n".encode(),
    }  # fmt: skip
    return seeds


def pack(content: bytes, packing: str) -> bytes:
    if packing == ".gz":
        return gzip.compress(content, mtime=0)
    return lzma.compress(content) if packing == ".xz" else pa.compress(content, codec="zstd", asbytes=True)


# What happens to a file


def place_in(content: bytes, rng: random.Random) -> int:
    return rng.randrange(len(content) + 1)


def flip_bits(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: place_in(content, rng)] if rng.random() < 0.7 else content[place_in(content, rng) :]


def take_out(content: bytes, rng: random.Random) -> bytes:
    place = place_in(content, rng)
    return content[:place] + content[place + rng.choice((1, 2, 3, 20, 200)) :]


def double(content: bytes, rng: random.Random) -> bytes:
    begin, end = sorted((place_in(content, rng), place_in(content, rng)))
    return content[:end] + content[begin:end] * (rng.choice((1, 1, 3, 50)) if len(content) < 100_000 else 1) + content[end:]


def splice(content: bytes, rng: random.Random) -> bytes:
    other = SEEDS[rng.choice(list(SEEDS))]
    place, there = place_in(content, rng), place_in(other, rng)
    return rng.choice((content[:place] + other[there:], content + other, content[:place] + other + content[place:]))


def insert_nasty(content: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = place_in(content, rng)
        content = content[:place] + rng.choice((rng.choice(NASTY).encode("utf-8", "surrogatepass"), rng.choice(NASTY_BYTES))) + content[place:]
    return content


def insert_random_text(content: bytes, rng: random.Random) -> bytes:
    place = place_in(content, rng)
    letters = [rng.choice((0x20, 0x300, 0x2000, 0xE000, 0x10000)) + rng.randrange(0x300) for _ in range(rng.randrange(1, 40))]
    return content[:place] + "".join(map(chr, letters)).encode() + content[place:]


def insert_random_bytes(content: bytes, rng: random.Random) -> bytes:
    place = place_in(content, rng)
    return content[:place] + rng.randbytes(rng.randrange(1, 40)) + content[place:]


def move_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    for _ in range(rng.choice((1, 2, 5))):
        if lines:
            one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
            change = rng.choice(("double", "drop", "swap", "join", "reverse"))
            if change == "double":
                lines.insert(other, lines[one])
            elif change == "drop":
                del lines[one]
            elif change == "swap":
                lines[one], lines[other] = lines[other], lines[one]
            elif change == "join":
                lines[one] = lines[one].rstrip(b"\r\n")
            else:
                lines[one] = lines[one][::-1]
    return b"".join(lines)


def nest(content: bytes, rng: random.Random) -> bytes:
    depth = rng.choice((2, 50, 900, 1_100, 10_000))
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'[{"messages":', b"}]")))
    return opening * depth + content.strip() + closing * depth


def change_words(content: bytes, rng: random.Random) -> bytes:
    """One spelling for another everywhere: delimiters, quotes, keys, types of values."""
    old = rng.choice((b",", b'"', b"\n", b":", b"prompt", b"response", b"role", b"content", b"messages", b"assistant", b"text", b"{", b"[", b"1"))
    new = rng.choice((b"", b";", b"'", b"\r", b"null", b"1.5", b"[]", b"{}", b'""', b"prompt", b"text", b"9" * 5_000, b" ", b"\xc2\xa0", b"true"))
    return content.replace(old, new, rng.choice((1, 2, -1)))


def code_again(content: bytes, rng: random.Random) -> bytes:
    codec = rng.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-8-sig", "cp1252", "latin-1", "utf-7", "shift_jis", "koi8-r"))
    return content.decode("utf-8", "replace").encode(codec, "replace")


def pack_again(content: bytes, rng: random.Random) -> bytes:
    packed = pack(content, rng.choice((".gz", ".xz", ".zst")))
    return rng.choice((packed, packed + packed, packed[: place_in(packed, rng)], packed + b"junk", flip_bits(packed, rng)))


def inflate(content: bytes, rng: random.Random) -> bytes:
    """One cell or line that is longer than any is allowed to be, or some thousands of rows."""
    if rng.random() < 0.8:  # they take long
        return content
    endless, rows = (b"a", b",", b"[", b'"', b"{}", b"\xe9", b"\xc3\xa9", b"\\"), (b"\n", b"\r", b"a,b\n", b'{"a": 1}\n', b"x\n\n", content or b" ")
    place, many, size = place_in(content, rng), *rng.choice(((rng.choice(endless), 12_000_000), (rng.choice(rows), 200_000)))
    return content[:place] + many * (size // len(many)) + content[place:]


CHANGES = (
    flip_bits, cut, take_out, double, splice, insert_nasty, insert_nasty, insert_random_text, insert_random_bytes, move_lines, nest, change_words, change_words,
    code_again, pack_again, inflate,
)  # fmt: skip
SEEDS = make_seeds()


def make_file(number: int, seed: int, folder: Path) -> tuple[Path, bool]:
    """Writes the file of that number; whether it was left whole."""
    rng = random.Random(f"{seed}/{number}")
    name = rng.choice(list(SEEDS))
    content = SEEDS[name]
    packing = rng.choice(("", "", "", "", ".gz", ".xz", ".zst"))
    whole = number % WHOLE == 0
    if not whole:
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            content = rng.choice(CHANGES)(content, rng)
    name, content = name + packing, pack(content, packing) if packing else content
    if not whole:
        if packing and rng.random() < 0.3:
            content = rng.choice((flip_bits, cut, take_out, insert_random_bytes))(content, rng)
        if rng.random() < 0.1:
            name = name.split(".")[0] + rng.choice(ENDINGS)
    file = folder / f"{number}-{name}"
    if not whole and rng.random() < 0.03:
        file.mkdir()
        (file / name).write_bytes(content)
        other = rng.choice(list(SEEDS))
        (file / f"z{other}").write_bytes(SEEDS[other])
    else:
        file.write_bytes(content)
    return file, whole


# What is asked of the reader


def read_as_user(file: Path) -> str:
    """The outcome: read, or refused. Raises whatever should not have been raised."""
    try:
        read_through(file, "refuse")
        return "read"
    except HalfbyteError as error:
        check_words(error)
    try:
        read_through(file, "skip")
        return "read with rows left out"
    except HalfbyteError as error:
        check_words(error)
        return "refused"


def read_through(file: Path, on_bad_row: str) -> None:
    source = open_source(str(file), on_bad_row=on_bad_row)
    for row in source.rows():
        if row.line < 1 or row.file not in source.files or not all(is_text(cell) for cell in row.cells.values()):
            raise ValueError(f"no row: {row}")
    section = AutoData(path=str(file), on_bad_row=on_bad_row)
    for _ in read_records(section).outcomes():
        pass
    audit([(TRAIN, read_records(section).outcomes())])
    try:
        prepare_data(section, 0, tokenizer())
    except HalfbyteError as error:  # two rows cannot be split, for instance
        check_words(error)


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(Path(halfbyte.__file__).parent / "base")


def check_words(error: HalfbyteError) -> None:
    if error.exit_code not in (2, 3) or not error.message or not error.hint:
        raise ValueError(f"no error to show: {error!r}, exit code {error.exit_code}, hint {error.hint!r}") from error


def is_text(cell: object) -> bool:
    """Text that can be written as UTF-8, or lists and objects of it."""
    if isinstance(cell, list):
        return all(one is None or is_text(one) for one in cell)
    if isinstance(cell, dict):
        return all(is_text(one) for pair in cell.items() for one in pair)
    return isinstance(cell, str) and bool(cell.encode() or True)


class TooSlow(BaseException):
    """Not an OSError as TimeoutError is: the reader would take that for a fault of the file."""


def outcome_of(number: int, seed: int, folder: Path) -> tuple[str, float, str]:
    """What became of one file, after how many seconds, and the traceback if there is one."""

    def ring(*_: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, ring)
    file, whole = make_file(number, seed, folder)
    begun = time.monotonic()
    said = ""
    try:
        signal.alarm(LONGEST_SECONDS)
        outcome = read_as_user(file)
        if whole and outcome != "read":
            outcome, said = "failed", f"{file.name} is whole and was refused"
    except (Exception, TooSlow):  # noqa: BLE001 - whatever it is, it is reported
        outcome, said = "failed", traceback.format_exc()
    finally:
        signal.alarm(0)
    return outcome, time.monotonic() - begun, said


def work(numbers: list[int], seed: int, keep: Path | None, results: Connection) -> None:
    tokenizer()  # its import is no time of the first file
    for number in numbers:
        results.send((number, "begun", 0.0, ""))
        with tempfile.TemporaryDirectory() as folder:
            os.environ["HALFBYTE_CACHE"] = f"{folder}/.cache"
            outcome, seconds, said = outcome_of(number, seed, Path(folder))
        if outcome == "failed" and keep:
            make_file(number, seed, keep)
        results.send((number, outcome, seconds, said))


def run_all(files: int, seed: int, keep: Path | None) -> tuple[Counter[str], list[dict], float]:
    """Outcomes, failures, and the longest time. A process that dies or hangs is begun anew behind the file it was at."""
    outcomes: Counter[str] = Counter()
    failures: list[dict] = []
    slowest = 0.0
    spawn = multiprocessing.get_context("spawn")  # no state of one file's libraries in the next process
    running: dict[Connection, tuple] = {}

    def begin(numbers: list[int]) -> None:
        if numbers:
            here, there = spawn.Pipe(duplex=False)
            process = spawn.Process(target=work, args=(numbers, seed, keep, there))
            process.start()
            there.close()
            running[here] = (process, numbers, numbers[0], time.monotonic())

    def fail(number: int, said: str) -> None:
        failures.append({"number": number, "said": said})
        outcomes["failed"] += 1
        print(f"file {number} failed:\n{said}", file=sys.stderr, flush=True)

    for stripe in range(PROCESSES):
        begin(list(range(stripe, files, PROCESSES)))
    while running:
        ready = wait(list(running), timeout=1)
        for pipe, (process, numbers, current, since) in list(running.items()):
            try:
                if pipe in ready:
                    number, outcome, seconds, said = pipe.recv()
                    running[pipe] = (process, numbers, number, time.monotonic())
                    if outcome == "failed":
                        fail(number, said)
                    elif outcome != "begun":
                        outcomes[outcome] += 1
                        slowest = max(slowest, seconds)
                        if outcomes.total() % 1000 == 0:
                            print(f"{outcomes.total()} files: {dict(outcomes)}", flush=True)
                elif time.monotonic() - since > 3 * LONGEST_SECONDS:
                    process.kill()
                    raise EOFError
            except EOFError:
                process.join()
                del running[pipe]
                if process.exitcode:
                    fail(current, f"the process ended with {process.exitcode}: a crash, or no answer for {3 * LONGEST_SECONDS} s")
                    begin([number for number in numbers if number > current])
    return outcomes, failures, slowest


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("--files", type=int, default=20_000)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--results", type=Path, default=RESULTS)
    words.add_argument("--keep", type=Path)
    words.add_argument("--one", type=int)
    asked = words.parse_args()
    if asked.keep:
        asked.keep.mkdir(parents=True, exist_ok=True)
    if asked.one is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(make_file(asked.one, asked.seed, asked.keep or Path(folder))[0])
            print(*outcome_of(asked.one, asked.seed, Path(folder)), sep="\n")
        return
    begun = time.monotonic()
    outcomes, failures, slowest = run_all(asked.files, asked.seed, asked.keep)
    passed = outcomes.total() - outcomes["failed"]
    seconds = round(time.monotonic() - begun, 1)
    result = {"files": asked.files, "seed": asked.seed, "outcomes": dict(outcomes), "slowest_s": round(slowest, 2), "seconds": seconds, "failures": failures}
    print(json.dumps({**result, "failures": len(failures)}))
    if failures:
        sys.exit("not every file ends in rows or in a line that names the mend")
    save_raw("mutated_files.json", result, asked.results)
    record("mutated-files-no-traceback", passed, "files", asked.results)


if __name__ == "__main__":
    main()
