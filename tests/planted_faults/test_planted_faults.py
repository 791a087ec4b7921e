"""Every planted fault is found by a proof, and no proof fails where nothing is planted; and every fault is one."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from halfbyte.checks.subject import Subject
from planted_faults.clean import TOYS
from planted_faults.effects import EFFECTS, differ
from planted_faults.faults import FAULTS, Fault
from planted_faults.planting import computed_with

by_name = pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function: name -> the clean subject of a toy, made once."""
    return cache(lambda name: TOYS[name].make(tmp_path_factory.mktemp("toy")))


def failed(subject: Subject, deep: bool) -> dict[str, str]:
    preflight = pytest.importorskip("halfbyte.checks.preflight", reason="the proofs are not built yet")
    return {proof.name: proof.told for proof in preflight.prove(subject, deep=deep) if proof.passed is False}


def test_there_are_enough() -> None:
    assert len(FAULTS) >= 34
    assert len(TOYS) >= 10
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert all(fault.told for fault in FAULTS)


@by_name
def test_a_fault_changes_what_it_says(fault: Fault, toy: Any, tmp_path: Path) -> None:
    clean, effect = toy(fault.toy), EFFECTS[fault.effect]
    for folder in ("once", "again", "faulty"):
        (tmp_path / folder).mkdir()
    sound = effect(clean, tmp_path / "once")
    assert not differ(effect(clean, tmp_path / "again"), sound), "the effect itself wavers"
    try:
        faulty = effect(fault.plant(clean), tmp_path / "faulty")
    except IndexError as error:  # an id outside the vocabulary
        faulty = str(error)
    assert differ(faulty, sound)


@pytest.mark.parametrize("effect", ["loss", "gradients", "told loss", "updates", "evaluation", "a damaged step"])
@pytest.mark.parametrize("name", ["chat", "bfloat16"])
def test_what_is_written_by_hand_is_sound(name: str, effect: str, toy: Any, tmp_path: Path) -> None:
    """The step and the evaluation that faults are put into change nothing themselves."""
    clean = toy(name)
    assert not differ(EFFECTS[effect](computed_with(clean), tmp_path), EFFECTS[effect](clean, tmp_path))


@by_name
def test_a_fault_is_found(fault: Fault, toy: Any) -> None:
    assert failed(fault.plant(toy(fault.toy)), fault.deep)


@pytest.mark.parametrize("name", TOYS)
def test_nothing_is_found_where_nothing_is_planted(name: str, toy: Any) -> None:
    assert not failed(toy(name), deep=True)
