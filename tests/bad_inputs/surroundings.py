"""Machines that lack something, files that cannot be written, and runs that are not what a command takes them for (101-118 of the list)."""

import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from bad_inputs.case import CONFIG, NOTE, WEIGHTS, WORDS, Case, Make, Surround
from bad_inputs.models import base
from bad_inputs.recipes import and_then, good

TRAIN = "train train.yaml"
LONG = "x" * 300
# What every plan.json has of what is read back.
BEGUN = {"base": "base", "base_fingerprint": "0", "precision": "float32", "quant": {}, "template": {}, "decisions": [], "notes": []}


def run_of(status: str) -> Make:
    """A run folder as one that did not get far leaves it."""

    def make(folder: Path) -> None:
        run = folder / "runs" / "toy"
        run.mkdir(parents=True)
        (run / "plan.json").write_text("{" if status == "damaged" else json.dumps(BEGUN))
        (run / "recipe.resolved.yaml").write_text((folder / "train.yaml").read_text())

    return and_then(good, make)


def large(folder: Path) -> None:
    """A 7B's config: what a plan for a GPU needs."""
    (folder / "7b").mkdir()
    shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000}
    (folder / "7b" / "config.json").write_text(
        json.dumps({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "max_position_embeddings": 4096, **shape})
    )


@contextlib.contextmanager
def no_bitsandbytes() -> Iterator[None]:
    """As where it was never installed."""
    from halfbyte.model import load

    with patch.object(load, "find_spec", lambda name: None):
        yield


@contextlib.contextmanager
def broken_bitsandbytes() -> Iterator[None]:
    """As where its library does not find CUDA's."""
    from halfbyte.model import load

    with patch.object(load, "find_spec", lambda name: name), patch.dict(sys.modules, {"bitsandbytes": None}):
        yield


def failing(number: int) -> Surround:
    """Every new folder and file of a run fails so. Root may write everywhere, and a full disk is not at hand."""

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        original = Path.mkdir

        def mkdir(self, *words, **more):
            if "runs" in str(self):
                raise OSError(number, os.strerror(number), str(self))
            return original(self, *words, **more)

        with patch.object(Path, "mkdir", mkdir):
            yield

    return around


@contextlib.contextmanager
def too_many_files() -> Iterator[None]:
    """A limit that leaves no file to be opened: `ulimit -n`, used up."""
    import resource

    free = os.dup(0)
    os.close(free)
    kept = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, kept[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, kept)


@contextlib.contextmanager
def old_transformers() -> Iterator[None]:
    """As installed beside something that pins it."""
    from halfbyte.checks import versions

    original = versions.installed
    with patch.object(versions, "installed", lambda name: "4.40.0" if name == "transformers" else original(name)):
        yield


def machine_case(number: str, does: str, make: Make, *says: str, code: int = 3, words: str = TRAIN, stage: str = CONFIG, **more) -> Case:
    return Case(number, does, words, stage, code, says, make, **more)


def answers(folder: Path) -> None:
    (folder / "answers.csv").write_text("mine\n")
    (folder / "prompts.txt").write_text("who is there?\n")


CASES = [
    machine_case("102", "a GPU that is too small", and_then(good, large),
                 "7b does not fit into 2 GB", "smaller base", words="plan train.yaml base=7b --gpu 2GB", stage=WORDS, long=True),
    machine_case("102+", "a GPU that nobody knows", and_then(good, large),
                 "RTX 9999", code=2, words="plan train.yaml base=7b --gpu 'RTX 9999'", stage=WORDS, long=True),
    machine_case("106", "no bitsandbytes", good, "bitsandbytes is not installed", "quant.kind=none", around=no_bitsandbytes),
    machine_case("106+", "a bitsandbytes that cannot be loaded", and_then(base(), lambda folder: None),
                 "bitsandbytes cannot be loaded", "pip install bitsandbytes",
                 words=f"{TRAIN} base=base", stage=WEIGHTS, around=broken_bitsandbytes),
    machine_case("107", "a full disk", good, "runs", "No space left on device", around=failing(errno.ENOSPC)),
    machine_case("107+", "a quota that is used up", good, "runs", "quota", around=failing(errno.EDQUOT)),
    machine_case("108", "a folder that is read-only", good, "runs", "Read-only file system", "--runs", around=failing(errno.EROFS)),
    machine_case("108", "a folder that may not be written to", good, "runs", "Permission denied", "--runs", around=failing(errno.EACCES)),
    machine_case("108", "a path that is too long", good, "File name too long", "--runs", words=f"{TRAIN} --runs {LONG}", long=True),
    machine_case("108+", "a file in the place of the runs' folder", and_then(good, lambda folder: (folder / "runs").write_text("mine")), "runs", "--runs"),
    machine_case("108+", "a recipe whose name is too long", good, "no such recipe", code=2, words=f"plan {LONG}.yaml", stage=WORDS, long=True),
    machine_case("111", "too many open files", good, "open files", "ulimit -n", words="plan train.yaml", stage=WORDS, around=too_many_files),
    machine_case("115", "a library that nobody tried", good, "transformers 4.40.0 (tested: ", code=0, words="plan train.yaml", stage=NOTE,
                 around=old_transformers),
    machine_case("101+", "a run that is not there", good, "runs/none", "no run there", code=2, words="evaluate runs/none"),
    machine_case("101+", "a run that is not there, to be resumed", good, "runs/none", "no run there", code=2, words="train --resume runs/none"),
    machine_case("101+", "a recipe in the place of a run", good, "train.yaml", "no run there", code=2, words="evaluate train.yaml"),
    machine_case("101+", "a chat with a run that is not there", good, "runs/none", "no run there", code=2, words="chat runs/none", stdin="hello\n"),
    machine_case("101+", "a run whose plan is damaged", run_of("damaged"), "plan.json is damaged", code=5, words="chat runs/toy", stdin="hello\n"),
    machine_case("101+", "a run without its adapter", run_of("begun"), "no adapter yet", "--resume", code=2, words="chat runs/toy", stdin="hello\n"),
    machine_case("101+", "answers over a file that is there", and_then(good, answers), "answers.csv exists", "--output", code=2,
                 words="generate runs/none -i prompts.txt -o answers.csv"),
    machine_case("101+", "answers as a spreadsheet", and_then(good, answers),
                 ".jsonl or .csv", code=2, words="generate runs/none -i prompts.txt -o answers.xlsx"),
    machine_case("101+", "prompts that are not there", good, "prompts.txt", code=2, words="generate runs/none -i prompts.txt -o new.csv"),
    machine_case("101+", "a recipe and a run to resume at once", run_of("begun"),
                 "and not both", code=2, words="train train.yaml --resume runs/toy", stage=WORDS),
]  # fmt: skip
