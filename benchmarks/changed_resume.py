"""What becomes of a run that goes on after something was changed, swapped or deleted? A toy run is stopped after step 6 of 8, changed, and resumed.

python benchmarks/changed_resume.py     writes results/changed_resume.json, claim resume-changes-caught (of the 16 in FIELD)

FIELD are the changes that were put to the field's usual trainer, which stopped at 4 of 16, warned of 1 and went on with 11 without a word
(transformers' Trainer with peft, measured on a tiny Llama). OWN are changes to what only halfbyte's runs have. A change is caught when
`halfbyte train --resume` refuses with one line, its mend and the right exit code, or says what it passes over and ends with the very adapter
of the run that was left alone. Figures of this page are of the real command, run in this process. Needs tests/toys.py; three minutes on two cores.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

STEPS, STOPPED, EVERY = 8, 6, 2
RECIPE = """\
name: toy
base: {place}/base
data:
  kind: text
  path: {place}/tale.txt
  max_length: 64
adapter:
  r: 4
  alpha: 8
  dropout: 0.1
  target_modules: [q_proj, v_proj]
train:
  max_steps: {steps}
  batch_size: 2
  eval_steps: {every}
  keep_checkpoints: 9
  learning_rate: 1e-3
evaluate:
  max_new_tokens: 4
"""
SENTENCE = "the keeper lit the lamp and the sea was quiet. "


@dataclass(frozen=True)
class Place:
    """Where the toy lies: base, data, a run that was stopped, one of another seed that was stopped too, and a finished one."""

    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "toy"

    @property
    def other(self) -> Path:
        return self.folder / "other" / "toy"

    @property
    def newest(self) -> Path:
        return self.run / "checkpoints" / f"step-{STOPPED}"

    @property
    def oldest(self) -> Path:
        return self.run / "checkpoints" / f"step-{EVERY}"


Change = Callable[[Place], None]


@dataclass(frozen=True)
class Outcome:
    """What the command said and did."""

    change: str
    exit_code: int
    said: str
    mend: str
    caught: bool
    same_adapter: bool | None
    """As the run that was left alone; None where the run was refused."""


# Changes


def recipe(before: str, now: str) -> Change:
    def change(place: Place) -> None:
        file = place.run / "recipe.resolved.yaml"
        text = file.read_text(encoding="utf-8")
        assert text.count(before) == 1, f"{before!r} stands {text.count(before)} times in {text}"
        file.write_text(text.replace(before, now), encoding="utf-8")

    return change


def deleted(*names: str) -> Change:
    def change(place: Place) -> None:
        (place.run.joinpath(*names)).unlink()

    return change


def from_oldest(name: str) -> Change:
    return lambda place: shutil.copy(place.oldest / name, place.newest / name) and None


def in_json(name: str, edit: Callable[[dict], object]) -> Change:
    def change(place: Place) -> None:
        file = place.run / name
        content = json.loads(file.read_text(encoding="utf-8"))
        edit(content)
        file.write_text(json.dumps(content), encoding="utf-8")

    return change


def other_base(place: Place) -> None:
    from toys import make_base

    make_base(place.folder / "base", seed=1)


def in_base(name: str, before: str, now: str) -> Change:
    def change(place: Place) -> None:
        file = place.folder / "base" / name
        text = file.read_text(encoding="utf-8")
        assert before in text, text[:500]
        file.write_text(text.replace(before, now), encoding="utf-8")

    return change


def other_data(place: Place) -> None:
    file = place.folder / "tale.txt"
    file.write_text(file.read_text(encoding="utf-8").replace("quiet", "loud!", 3), encoding="utf-8")


def whole(source: Callable[[Place], Path], target: Callable[[Place], Path]) -> Change:
    def change(place: Place) -> None:
        shutil.rmtree(target(place), ignore_errors=True)
        shutil.copytree(source(place), target(place))

    return change


NEWEST = f"checkpoints/step-{STOPPED}"
FIELD: dict[str, Change] = {
    "other base weights of the same shape": other_base,
    "lora alpha 8 -> 64": recipe("alpha: 8.0", "alpha: 64.0"),
    "data changed": other_data,
    "seed changed": recipe("seed: 0", "seed: 1"),
    "batch 2 -> 4": recipe("\n  batch_size: 2", "\n  batch_size: 4"),
    "learning rate x 10": recipe("learning_rate: 0.001", "learning_rate: 0.01"),
    "optimizer file deleted": deleted(NEWEST, "optimizer.safetensors"),
    "scheduler deleted (the step that the rate follows from, out of state.json)": in_json(f"{NEWEST}/state.json", lambda state: state.pop("progress")),
    "random states deleted (out of state.json)": in_json(f"{NEWEST}/state.json", lambda state: state.pop("random")),
    "adapter of an older step": from_oldest("adapter.safetensors"),
    "optimizer of an older step": from_oldest("optimizer.safetensors"),
    "adapter_config deleted (recipe.resolved.yaml has rank, alpha and modules)": deleted("recipe.resolved.yaml"),
    "rank changed": recipe("r: 4", "r: 8"),
    "target modules changed": recipe("  - v_proj\n", "  - k_proj\n"),
    "state file deleted": deleted(NEWEST, "state.json"),
    "adapter file deleted": deleted(NEWEST, "adapter.safetensors"),
}
OWN: dict[str, Change] = {
    "manifest of the checkpoint deleted": deleted(NEWEST, "manifest.json"),
    "state of an older step": from_oldest("state.json"),
    "an older checkpoint, whole, under the newest's name": whole(lambda place: place.oldest, lambda place: place.newest),
    "a checkpoint of another run, whole, in place of the newest": whole(
        lambda place: place.other / "checkpoints" / f"step-{STOPPED}", lambda place: place.newest
    ),
    "all checkpoints of another run": whole(lambda place: place.other / "checkpoints", lambda place: place.run / "checkpoints"),
    "plan.json: fewer steps": in_json("plan.json", lambda plan: plan.update(total_steps=STOPPED)),
    "plan.json: other rows": in_json("plan.json", lambda plan: plan.update(rows_sha256="0" * 50)),
    "plan.json deleted": deleted("plan.json"),
    "run.json deleted": deleted("run.json"),
    "run.json: one word": in_json("run.json", lambda manifest: manifest["recipe"]["train"].update(learning_rate=1e-2)),
    "run.json of another run": lambda place: shutil.copy(place.other / "run.json", place.run) and None,
    "precision changed": recipe("precision: auto", "precision: bfloat16"),
    "schedule changed": recipe("schedule: cosine", "schedule: linear"),
    "more steps": recipe(f"max_steps: {STEPS}", f"max_steps: {STEPS + 4}"),
    "dropout changed": recipe("dropout: 0.1", "dropout: 0.0"),
    "4 bits changed": recipe("kind: nf4", "kind: fp4"),
    "base config changed": in_base("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'),
    "tokenizer changed": in_base("tokenizer_config.json", '"<|im_end|>"', '"<s>"'),
}


# The toy


def make_place(folder: Path) -> Place:
    """Base, data, three runs: one stopped, one of another seed stopped, one left alone."""
    from toys import make_base

    make_base(folder / "base")
    (folder / "tale.txt").write_text("\n\n".join(f"{number}. {SENTENCE * 5}" for number in range(20)), encoding="utf-8")
    (folder / "toy.yaml").write_text(RECIPE.format(place=folder, steps=STEPS, every=EVERY), encoding="utf-8")
    train(folder, "runs", stop=True)
    train(folder, "other", "seed=5", stop=True)
    train(folder, "alone")
    return Place(folder)


def train(folder: Path, runs: str, *changes: str, stop: bool = False) -> None:
    """`stop`: a signal asks for it after step STOPPED, as Ctrl-C does."""
    from halfbyte import api
    from halfbyte.errors import Interrupted
    from halfbyte.recipe.load import load_recipe

    def listen(event: dict) -> None:
        if stop and event["event"] == "step" and event["step"] == STOPPED:
            os.kill(os.getpid(), signal.SIGINT)

    with contextlib.suppress(Interrupted) if stop else contextlib.nullcontext():
        api.train(load_recipe(folder / "toy.yaml", list(changes)), folder / runs, listen)


def resume(run: Path) -> tuple[int, str, str]:
    """The real command in this process: exit code, what it printed, what it complained of."""
    from halfbyte.cli.main import main

    out, complaint, words, columns = io.StringIO(), io.StringIO(), sys.argv, os.environ.get("COLUMNS")
    sys.argv, os.environ["COLUMNS"] = ["halfbyte", "train", "--resume", str(run)], "1000"
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(complaint):
            main()
    except SystemExit as left:
        code = int(left.code or 0)
    finally:
        sys.argv = words
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
    return code, out.getvalue(), complaint.getvalue()


def passed_over(run: Path) -> list[str]:
    """What was told of checkpoints that could not be used."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event["message"] for event in events if event["event"] == "note" and "; ignored: " in event["message"]]


def try_change(place: Place, kept: Path, name: str, change: Change | None) -> Outcome:
    """`kept`: the place as it was, which is put back first."""
    shutil.rmtree(place.folder)
    shutil.copytree(kept, place.folder)
    if change is not None:
        change(place)
    code, _, complaint = resume(place.run)
    if code == 0:
        said, alone = passed_over(place.run), place.folder / "alone" / "toy"
        same = (place.run / "adapter.sha256").read_text() == (alone / "adapter.sha256").read_text()
        told = said[0] if len(said) == 1 else ""
        line, _, mend = told.partition("; ignored: ")
        return Outcome(name, code, line, mend, bool(line and mend) and same, same)
    lines = [line for line in complaint.strip().splitlines() if line.strip()]
    one_line = len(lines) == 2 and lines[1].startswith("hint: ") and "Traceback" not in complaint
    return Outcome(name, code, lines[0] if lines else "", lines[-1].removeprefix("hint: ") if one_line else "", one_line and code in (2, 3, 5), None)


def hidden(outcome: Outcome, folder: Path) -> dict[str, object]:
    """For the raw table: without the folder of this machine."""
    return {key: value.replace(f"{folder}/", "") if isinstance(value, str) else value for key, value in asdict(outcome).items()}


def main() -> None:
    from claims import record, save_raw

    with tempfile.TemporaryDirectory() as where:
        folder, kept = Path(where).resolve() / "place", Path(where).resolve() / "kept"
        place = make_place(folder)
        shutil.copytree(folder, kept)
        untouched = try_change(place, kept, "nothing", None)
        if untouched.exit_code or not untouched.same_adapter or untouched.said:
            raise RuntimeError(f"a run that nobody touched did not go on as it should: {untouched}")
        found = {}
        for group, changes in (("field", FIELD), ("own", OWN)):
            found[group] = [try_change(place, kept, name, change) for name, change in changes.items()]
            for one in found[group]:
                shown = hidden(one, folder)
                print(f"{'caught' if one.caught else 'MISSED'}  exit {one.exit_code}  {one.change}")
                print(f"        {shown['said']}\n        -> {shown['mend']}")
        raw = {group: [hidden(one, folder) for one in outcomes] for group, outcomes in found.items()}
    caught = {group: sum(one.caught for one in outcomes) for group, outcomes in found.items()}
    print(f"{caught['field']} of {len(FIELD)} of the field's changes, {caught['own']} of {len(OWN)} of our own")
    save_raw("changed_resume.json", {"stopped_after": STOPPED, "steps": STEPS, "caught": caught, **raw})
    record("resume-changes-caught", caught["field"], f"of {len(FIELD)}")


if __name__ == "__main__":
    main()
