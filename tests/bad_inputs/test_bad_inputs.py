"""Inputs that people get wrong: each is answered in one line with its mend, the right exit code, no traceback, in time, and nothing is touched.

BAD_INPUTS 59-124, and neighbours of our own, whose number has a plus behind it.
"""

import pytest

from bad_inputs.case import faults_of, run_apart, run_here, shown
from bad_inputs.corpus import cases, read_golden

CASES = cases()
IN_A_FRESH_PROCESS = ("59 a misspelt key", "63 a learning rate of 1e3", "97 a base of which two weights are missing")
APART = [case for case in CASES if case.name in IN_A_FRESH_PROCESS]


@pytest.fixture(scope="module")
def golden():
    return read_golden()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_is_answered(case, tmp_path, golden):
    """And with the words of golden.txt: after a change of words, write_golden.py writes them anew."""
    seen = run_here(case, tmp_path)
    assert faults_of(case, seen) == [], seen.err
    assert shown(case, seen) == golden[case.name]


@pytest.mark.parametrize("case", APART, ids=lambda case: case.name)
def test_a_fresh_process_says_the_same(case, tmp_path, golden):
    """Where every library may print what it likes."""
    seen = run_apart(case, tmp_path)
    assert (seen.code, seen.changed) == (case.code, [])
    assert shown(case, seen) == golden[case.name]


def test_the_corpus_is_what_it_says():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
    assert set(read_golden()) == set(names), "golden.txt has other cases: write_golden.py"
    assert sum("+" in case.number for case in CASES) >= 20
