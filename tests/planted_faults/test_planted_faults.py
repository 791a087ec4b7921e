"""Every planted fault is found by a proof, and no proof fails where nothing is planted; and every fault is one."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from halfbyte.checks.preflight import prove
from halfbyte.checks.subject import Subject
from planted_faults.clean import TOYS
from planted_faults.effects import EFFECTS, differ
from planted_faults.faults import FAULTS, Fault
from planted_faults.planting import computed_with

by_name = pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
# Two seconds each: a few of them always, all of them where time does not matter.
EVERY = 8


def few(names: Iterable[str], values: Iterable[Any]) -> list[Any]:
    return [pytest.param(value, id=name, marks=[pytest.mark.slow] if place % EVERY else []) for place, (name, value) in enumerate(zip(names, values))]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function: name -> the clean subject of a toy, made once."""
    return cache(lambda name: TOYS[name].make(tmp_path_factory.mktemp("toy")))


@pytest.fixture(scope="module")
def sound(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function: toy and effect -> the effect of the clean subject, measured once and once more."""

    def measure(name: str, effect: str) -> Any:
        once, again = (EFFECTS[effect](toy(name), tmp_path_factory.mktemp("effect")) for _ in range(2))
        assert not differ(again, once), f"the effect {effect!r} wavers on {name!r}"
        return once

    return cache(measure)


def failed(subject: Subject, deep: bool) -> dict[str, str]:
    return {proof.name: proof.told for proof in prove(subject, deep=deep) if proof.passed is False}


def test_there_are_enough() -> None:
    assert len(FAULTS) >= 34
    assert len(TOYS) >= 10
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert all(fault.told for fault in FAULTS)


@by_name
def test_a_fault_changes_what_it_says(fault: Fault, toy: Any, sound: Any, tmp_path: Path) -> None:
    try:
        faulty = EFFECTS[fault.effect](fault.plant(toy(fault.toy)), tmp_path)
    except IndexError as error:  # an id outside the vocabulary
        faulty = str(error)
    assert differ(faulty, sound(fault.toy, fault.effect))


@pytest.mark.parametrize("effect", ["loss", "gradients", "told loss", "updates", "evaluation", "a damaged step"])
@pytest.mark.parametrize("name", ["chat", "bfloat16"])
def test_what_is_written_by_hand_is_sound(name: str, effect: str, toy: Any, sound: Any, tmp_path: Path) -> None:
    """The step and the evaluation that faults are put into change nothing themselves."""
    assert not differ(EFFECTS[effect](computed_with(toy(name)), tmp_path), sound(name, effect))


@pytest.mark.parametrize("fault", few([fault.name for fault in FAULTS], FAULTS))
def test_a_fault_is_found(fault: Fault, toy: Any) -> None:
    assert failed(fault.plant(toy(fault.toy)), fault.deep)


@pytest.mark.parametrize("name", few(TOYS, TOYS))
def test_nothing_is_found_where_nothing_is_planted(name: str, toy: Any) -> None:
    assert not failed(toy(name), deep=True)
