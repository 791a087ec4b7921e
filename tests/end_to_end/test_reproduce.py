"""`halfbyte reproduce`: a run that is made again is the same to the last digit, and whatever is not as it was then is named before a step is taken."""

import csv
import json
import os
import random
import re
import shutil
import signal
import sys
from dataclasses import replace

import pytest
import torch

from halfbyte import api
from halfbyte.api import identity
from halfbyte.checks.reproduce import compare_courses
from halfbyte.errors import DataError, IntegrityError, Interrupted
from halfbyte.model import base
from halfbyte.recipe.load import parse_recipe
from halfbyte.runs.manifest import read_manifest, write_manifest
from halfbyte.train import loop
from toys import WORDS, make_base

PAIRS = [(" ".join(random.Random(i).sample(WORDS.split(), 9)), f"the old man {i}, let me in.") for i in range(24)]
NEUTRAL = "the hills are far and the road is long. " * 20
TEXT = """\
name: toy
base: {folder}/base
data:
  path: {folder}/talk.csv
  max_length: 64
adapter:
  r: 4
  dropout: 0.1
train:
  max_steps: 3
  batch_size: 2
  learning_rate: 1e-2
evaluate:
  max_new_tokens: 4
  max_answers: 4
  neutral_path: {folder}/neutral.txt
"""


def write_data(folder, pairs=PAIRS):
    with open(folder / "talk.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("prompt", "response"), *pairs])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with base, data and a finished run."""
    folder = tmp_path_factory.mktemp("again").resolve()
    make_base(folder / "base")
    write_data(folder)
    (folder / "neutral.txt").write_text(NEUTRAL, encoding="utf-8")
    api.train(parse_recipe(TEXT.format(folder=folder), "toy.yaml", []), folder / "runs")
    return folder


@pytest.fixture
def copied(made, tmp_path):
    """A copy that may be changed, and the words that say where its files are now."""
    folder = shutil.copytree(made, tmp_path / "moved")
    return folder, [f"base={folder / 'base'}", f"data.path={folder / 'talk.csv'}", f"evaluate.neutral_path={folder / 'neutral.txt'}"]


def named(copied, *changes):
    """What is told before anything trains."""
    folder, places = copied
    found = api.reproduce(folder / "runs" / "toy", [*places, *changes], check=True)
    return [str(one) for one in (*found.inputs, *found.place)]


def test_a_run_made_again_is_identical(made, monkeypatch, capfd):
    from halfbyte.cli.main import main

    monkeypatch.setattr(sys, "argv", ["halfbyte", "reproduce", str(made / "runs" / "toy")])
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as left:
        main()
    out, complaint = capfd.readouterr()
    assert not left.value.code, complaint
    assert "identical: 3 steps (rows, rates, losses, gradient norms), the adapter," in out
    first, second = (read_manifest(made / "runs" / name) for name in ("toy", "toy-2"))
    assert first["id"] != second["id"]
    for part in ("recipe", "plan", "inputs", "place", "start", "outcome", "metrics"):
        assert first[part] == second[part]
        assert first[part]
    assert compare_courses(made / "runs" / "toy", made / "runs" / "toy-2").identical


def test_files_that_were_moved_are_no_difference(copied):
    assert named(copied) == []


def edited(name, before, now):
    def change(folder, monkeypatch):
        file = folder / "base" / name
        text = file.read_text(encoding="utf-8")
        assert before in text
        file.write_text(text.replace(before, now), encoding="utf-8")

    return change


def other_data(folder, monkeypatch):
    write_data(folder, [*PAIRS[:-1], (PAIRS[-1][0], "go away.")])


def other_machine(folder, monkeypatch):
    here = api.look_at_machine()
    monkeypatch.setattr(api, "look_at_machine", lambda: replace(here, name="CPU of another maker"))


def version(name, now):
    def change(folder, monkeypatch):
        then = identity.version
        monkeypatch.setattr(identity, "version", lambda package: now if package == name else then(package))

    return change


def patched(name, value):
    return lambda folder, monkeypatch: monkeypatch.setattr(identity, name, value)


CHANGED = {
    "data": (other_data, [], "data.path, talk.csv: other content"),
    "neutral text": (lambda folder, _: (folder / "neutral.txt").write_text(NEUTRAL + "and on.", encoding="utf-8"), [], "neutral text: other content"),
    "seed": (None, ["seed=1"], "seed: 0 -> 1"),
    "split": (None, ["data.test_share=0.3"], "test rows: "),
    "template": (None, ["data.prompt_template=Q {prompt} A "], "template: other content"),
    "chat template": (edited("chat_template.jinja", "<|im_start|>", "<|im_start|>>"), [], "template: other content"),
    "tokenizer": (edited("tokenizer_config.json", '"<|im_end|>"', '"<s>"'), [], "tokenizer: other content"),
    "base weights": (lambda folder, _: make_base(folder / "base", seed=1), [], "base weights model.safetensors: other content"),
    "base config": (edited("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'), [], "base config.json: other content"),
    "recipe key": (None, ["train.learning_rate=2e-2"], "train.learning_rate: 0.01 -> 0.02"),
    "precision": (None, ["train.precision=bfloat16"], "plan precision: float32 -> bfloat16"),
    "prompts": (None, ["evaluate.prompts=[who comes there]"], "evaluate.prompts: [] -> "),
    "torch": (version("torch", "9.9"), [], "version of torch: "),
    "transformers": (version("transformers", "9.9"), [], "version of transformers: "),
    "peft": (version("peft", "9.9"), [], "version of peft: "),
    "bitsandbytes": (version("bitsandbytes", "9.9"), [], "version of bitsandbytes: "),
    "halfbyte": (patched("__version__", "9.9"), [], "version of halfbyte: "),
    "code of halfbyte": (patched("code_digest", lambda: "0" * 64), [], "code of halfbyte: other content"),
    "machine": (other_machine, [], "machine name: "),
    "threads": (lambda folder, monkeypatch: monkeypatch.setattr(torch, "get_num_threads", lambda: 77), [], "threads: "),
    "environment": (lambda folder, monkeypatch: monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1"), [], "environment NVIDIA_TF32_OVERRIDE: 1, which the run"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGED)
def test_what_is_not_as_it_was_is_named(copied, monkeypatch, what):
    change, words, expected = CHANGED[what]
    if change is not None:
        change(copied[0], monkeypatch)
    told = named(copied, *words)
    assert any(line.startswith(expected) for line in told), told


def test_other_inputs_are_refused_before_a_step_and_can_be_run_all_the_same(copied):
    """Then the verdict says both: other inputs, and where the courses part."""
    folder, places = copied
    other_data(folder, None)
    with pytest.raises(IntegrityError, match=r"talk\.csv: other content"):
        api.reproduce(folder / "runs" / "toy", places, folder / "new")
    assert not (folder / "new").exists()
    found = api.reproduce(folder / "runs" / "toy", [*places, "train.learning_rate=2e-2"], folder / "new", anyway=True)
    assert not found.identical
    assert found.sentence.startswith("other inputs, and step 1 ")


def test_changed_rows_are_told_in_words(copied):
    """Not as hashes alone: which parts have other rows, and how many they are."""
    folder, _ = copied
    other_data(folder, None)
    told = named(copied)
    assert len(told) == 2, told
    assert any(re.fullmatch(r"(training|validation|test) rows: not the same \d+: some are others, or stand in another order", line) for line in told), told
    write_data(folder, PAIRS[:-6])
    told = named(copied)
    assert any(re.fullmatch(r"training rows: \d+ -> \d+", line) for line in told), told
    assert not any("labels" in line or "what is trained" in line for line in told), told


def test_two_runs_of_other_recipes_or_data_are_told_apart_by_them(copied, monkeypatch, capfd):
    """Guards against `the same inputs, but`, and a request to report it, where nobody had compared the inputs."""
    from halfbyte.cli.main import main

    folder, _ = copied
    write_data(folder, PAIRS[:-6])
    text = TEXT.format(folder=folder).replace("1e-2", "2e-2").replace("name: toy", "name: other")
    other = api.train(parse_recipe(text, "other.yaml", []), folder / "runs").path
    monkeypatch.setattr(sys, "argv", ["halfbyte", "reproduce", str(folder / "runs" / "toy"), "--against", str(other)])
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as left:
        main()
    out, complaint = capfd.readouterr()
    assert left.value.code == 5
    assert "other inputs, and step 1" in complaint
    assert "two different runs by right" in complaint
    assert "report it" not in complaint
    lines = [line.removeprefix("other input ") for line in out.splitlines()]
    assert "train.learning_rate: 0.01 -> 0.02" in lines
    assert any(line.startswith("data.path, talk.csv: other content") for line in lines)
    assert any(line.startswith("training rows: ") for line in lines)


def test_a_file_under_another_name_is_no_other_input(copied):
    run = copied[0] / "runs" / "toy"
    other = shutil.copytree(run, run.with_name("other"))
    manifest = read_manifest(other)
    manifest["inputs"]["data"]["path"] = {"renamed.csv": manifest["inputs"]["data"]["path"]["talk.csv"]}
    write_manifest(other, manifest)
    assert compare_courses(run, other).inputs == []


@pytest.mark.parametrize(("edit", "words"), [
    (lambda event: event.update(loss=event["loss"] * (1 + 1e-7)), "step 2 has another loss"),
    (lambda event: event.update(rows="0" * 16), "step 2 trains other rows"),
    (lambda event: event.update(learning_rate=1.0), "step 2 has another learning rate"),
    (lambda event: event.update(step=9), "step 2 is in the first run alone"),
])  # fmt: skip
def test_the_first_step_that_differs_is_named(copied, edit, words):
    run = copied[0] / "runs" / "toy"
    other = shutil.copytree(run, run.with_name("other"))
    events = [json.loads(line) for line in (other / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    for event in events:
        if event["event"] == "step" and event["step"] == 2:
            edit(event)
    (other / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    found = compare_courses(run, other)
    assert words in found.differs
    assert "the same inputs, but step 2" in found.sentence


def test_memory_that_ran_out_is_named_as_a_cause(made, monkeypatch, capfd):
    """In the second step two rows at a time are too many: one at a time draws other dropout and sums in another order."""
    from halfbyte.cli.main import main

    compute, steps = loop.train_step, []

    def short(model, batches, *rest):
        if len(steps) and len(batches[0].ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        steps.append(1)
        return compute(model, batches, *rest)

    monkeypatch.setattr(loop, "train_step", short)
    monkeypatch.setattr(sys, "argv", ["halfbyte", "reproduce", str(made / "runs" / "toy"), "--runs", str(made / "short")])
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 5
    said = " ".join(capfd.readouterr().err.split())
    assert "the same inputs, but step 2 has another loss" in said
    assert f"a cause: memory ran out in {made / 'short' / 'toy'}, which computes 1 row at a time from step 2 on" in said
    assert "rounding, by the memory that there was" in said
    other_way = compare_courses(made / "short" / "toy", made / "runs" / "toy")
    assert other_way.memory == compare_courses(made / "runs" / "toy", made / "short" / "toy").memory
    assert compare_courses(made / "short" / "toy", made / "short" / "toy").memory == []


OUT = {"event": "memory_change", "phase": "train", "message": "out of memory", "micro_batch_size": 1, "gradient_accumulation_steps": 2}
ONE_ROW = ["memory ran out in {other}, which computes 1 row at a time from step {step} on: the same steps, their sums in another order"]


def changed_step(number, **values):
    return lambda event: event.update(values) if event["event"] == "step" and event["step"] == number else None


@pytest.mark.parametrize(("change", "inserted", "at", "expected"), [
    (changed_step(2, loss=9.0), OUT | {"step": 2}, 2, ONE_ROW), (changed_step(3, grad_norm=9.0), OUT | {"step": 2}, 2, ONE_ROW),
    (changed_step(1, loss=9.0), OUT | {"step": 2}, 2, []), (changed_step(2, rows="0" * 16), OUT | {"step": 2}, 2, []),
    (changed_step(3, loss=9.0), OUT | {"step": 3, "micro_batch_size": 2}, 3, []),  # layers are recomputed from there: the same to the bit
    (changed_step(2, learning_rate=9.0), OUT | {"step": 1}, 1, []),
    (lambda event: event.update(loss=9.0) if event["event"] == "validation" else None, OUT | {"phase": "validate"}, 1, ["in {other} out of memory"]),
    (lambda event: event.update(loss=9.0) if event["event"] == "validation" else None, OUT | {"phase": "evaluate"}, 1, []),
])  # fmt: skip
def test_only_memory_that_may_have_made_the_difference_is_a_cause(copied, change, inserted, at, expected):
    run = copied[0] / "runs" / "toy"
    other = shutil.copytree(run, run.with_name("other"))
    events = [json.loads(line) for line in (other / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    for event in events:
        change(event)
    place = next(place for place, event in enumerate(events) if event["event"] == "step" and event["step"] == at)
    written = [*events[:place], inserted, *events[place:]]
    (other / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in written), encoding="utf-8")
    found = compare_courses(run, other)
    assert found.differs
    assert found.memory == [line.format(other=other, step=at) for line in expected]
    assert ("a cause: " in found.sentence) == bool(expected)


def test_a_run_that_was_gone_on_with_keeps_what_gave_way(copied):
    """Cut when step 3 had run out, and gone on with from step 1: step 2 was then computed in less, too."""
    run = copied[0] / "runs" / "toy"
    other = shutil.copytree(run, run.with_name("other"))
    events = [json.loads(line) for line in (other / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    second = next(place for place, event in enumerate(events) if event["event"] == "step" and event["step"] == 2)
    inserted = [OUT | {"step": 3}, {"event": "resume", "step": 1}]
    events[second:second] = [events[second], *inserted]
    changed_step(2, loss=9.0)(events[second + 3])
    (other / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    found = compare_courses(run, other)
    assert "step 2 has another loss" in found.differs
    assert found.memory == [ONE_ROW[0].format(other=other, step=2)]


@pytest.mark.parametrize(("part", "key", "words"), [
    ("start", "adapter_sha256", "the adapter differs before the first step"), ("outcome", "adapter_sha256", "the end differs: outcome.adapter_sha256"),
    ("outcome", "best_step", "the end differs"), ("metrics", None, "the figure"),
])  # fmt: skip
def test_adapters_and_figures_are_compared(copied, part, key, words):
    run = copied[0] / "runs" / "toy"
    other = shutil.copytree(run, run.with_name("other"))
    manifest = read_manifest(other)
    manifest[part][key or next(iter(manifest[part]))] = "0" * 64 if key else {"base": 0.0, "tuned": 0.0}
    write_manifest(other, manifest)
    assert words.split(":")[0] in compare_courses(run, other).differs


def test_what_cannot_be_compared_is_refused(copied):
    run = copied[0] / "runs" / "toy"
    manifest = read_manifest(run)
    write_manifest(run, {key: value for key, value in manifest.items() if key != "outcome"})
    with pytest.raises(DataError, match="is not finished"):
        api.reproduce(run)
    write_manifest(run, manifest)
    with open(run / "adapter" / "adapter_model.safetensors", "ab") as stream:
        stream.write(b"x")
    with pytest.raises(IntegrityError, match="is not what was written"):
        api.reproduce(run)


def test_a_byte_in_the_middle_of_the_base_is_seen_by_whoever_uses_the_run(copied, monkeypatch):
    """The fingerprint looks at beginnings and ends alone, so that it is quick; here at ten bytes, for the toy is small."""
    folder, _ = copied
    run, weights = folder / "runs" / "toy", folder / "base" / "model.safetensors"
    monkeypatch.setattr(base, "FINGERPRINT_BYTES", 10)
    plan = json.loads((run / "plan.json").read_text())
    before = base.find_base(str(folder / "base")).fingerprint
    (run / "plan.json").write_text(json.dumps({**plan, "base": str(folder / "base"), "base_fingerprint": before}))
    api.open_tuned(run)
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert base.find_base(str(folder / "base")).fingerprint == before
    with pytest.raises(IntegrityError, match=r"base weights model.safetensors: other content"):
        api.open_tuned(run)


def test_an_adapter_that_a_run_began_from_is_an_input(made, tmp_path):
    """Its rank and alpha are those of the run: with another alpha the saved tensors would fit and mean something else."""
    start = shutil.copytree(made / "runs" / "toy", tmp_path / "start")

    def stop(event):
        if event["event"] == "step":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        api.train(parse_recipe(TEXT.format(folder=made), "toy.yaml", [f"adapter.init_from={start}"]), tmp_path / "runs", stop)
    config = start / "adapter" / "adapter_config.json"
    kept = json.loads(config.read_text())
    config.write_text(json.dumps({**kept, "lora_alpha": 8 * kept["lora_alpha"]}))
    with pytest.raises(IntegrityError, match=r"adapter.init_from adapter_config.json: other content"):
        api.resume(tmp_path / "runs" / "toy")
    config.write_text(json.dumps(kept))
    with pytest.raises(IntegrityError):  # as many letters, but not the file that was there
        api.resume(tmp_path / "runs" / "toy")
    shutil.copy(made / "runs" / "toy" / "adapter" / "adapter_config.json", config)
    api.resume(tmp_path / "runs" / "toy")


def test_other_versions_since_are_a_note_and_the_run_goes_on(made, tmp_path, monkeypatch):
    def stop(event):
        if event["event"] == "step":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        api.train(parse_recipe(TEXT.format(folder=made), "toy.yaml", []), tmp_path, stop)
    version("torch", "9.9")(None, monkeypatch)
    api.resume(tmp_path / "toy")
    events = [json.loads(line) for line in (tmp_path / "toy" / "events.jsonl").read_text().splitlines()]
    notes = [event["message"] for event in events if event["event"] == "note"]
    assert any(note.startswith("since the run was begun: version of torch: ") and note.endswith("-> 9.9; last digits may differ") for note in notes)


def test_no_secret_of_the_environment_is_kept(made, tmp_path, monkeypatch):
    """Planted in variables of all sorts of names; the manifest names none of them."""
    canary = "canary-5d1f"
    for name in ("HF_TOKEN", "WANDB_API_KEY", "SECRET", "OMP_DISPLAY_ENV"):
        monkeypatch.setenv(name, canary)
    run = api.train(parse_recipe(TEXT.format(folder=made), "toy.yaml", []), tmp_path)
    assert canary not in (run.path / "run.json").read_text(encoding="utf-8")
