"""A run that goes on after something was changed: each change is told in one line with its mend, or what it spoiled is passed over (RELIABILITY 2.3)."""

import shutil
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from changed_resume import FIELD, OWN, make_place, try_change  # noqa: E402

sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The toy's folder, and a copy from which it is put back."""
    folder = tmp_path_factory.mktemp("changed").resolve()
    made = make_place(folder / "place")
    shutil.copytree(folder / "place", folder / "kept")
    return made, folder / "kept"


@pytest.fixture(scope="module")
def outcome_of(place):
    """name of a change -> what became of it, tried once."""
    found = {}

    def outcome(name: str):
        if name not in found:
            found[name] = try_change(*place, name, {**FIELD, **OWN}[name])
        return found[name]

    return outcome


def test_a_run_that_nobody_changed_goes_on_without_a_word(place):
    """The other side of the test below."""
    outcome = try_change(*place, "nothing", None)
    assert (outcome.exit_code, outcome.said, outcome.same_adapter) == (0, "", True)


@pytest.mark.parametrize("name", [*FIELD, *OWN])
def test_a_change_is_caught_with_its_mend(outcome_of, name):
    outcome = outcome_of(name)
    assert outcome.caught, outcome
    assert outcome.mend


@pytest.mark.parametrize(("name", "exit_code", "words"), [
    ("learning rate x 10", 5, "train.learning_rate: 0.001 -> 0.01"), ("rank changed", 5, "adapter.r: 4 -> 8"),
    ("target modules changed", 5, '["q_proj", "v_proj"] -> ["q_proj", "k_proj"]'), ("data changed", 5, "other tokens in them"),
    ("other base weights of the same shape", 5, "is not the model that this run was trained on"),
    ("a checkpoint of another run, whole, in place of the newest", 0, "was saved by another run"),
    ("an older checkpoint, whole, under the newest's name", 0, "step-6 was saved at step 2"),
    ("all checkpoints of another run", 5, "no checkpoint is left"), ("tokenizer changed", 5, "tokenizer: other content"),
    ("plan.json: fewer steps", 5, "plan.json is not what was written"), ("plan.json: other rows", 5, "plan.json is not what was written"),
])  # fmt: skip
def test_the_line_names_what_was_changed(outcome_of, name, exit_code, words):
    outcome = outcome_of(name)
    assert outcome.exit_code == exit_code
    assert words in outcome.said


def test_where_files_lie_is_no_change(place):
    """A run is told by what is in its files: base and data may be moved, their places put right in the recipe that is kept."""

    def moved(there):
        shutil.move(there.folder / "tale.txt", there.folder / "moved.txt")
        shutil.move(there.folder / "base", there.folder / "other-base")
        file = there.run / "recipe.resolved.yaml"
        file.write_text(file.read_text().replace("/tale.txt", "/moved.txt").replace("/base\n", "/other-base\n"))

    outcome = try_change(*place, "moved", moved)
    assert (outcome.exit_code, outcome.same_adapter) == (0, True)
