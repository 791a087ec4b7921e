"""Runs the corpus and writes golden.txt anew: `python tests/bad_inputs/write_golden.py`, with halfbyte importable. The diff is for review."""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> None:
    from bad_inputs.case import faults_of, run_here
    from bad_inputs.corpus import GOLDEN, as_golden, cases

    answers = []
    with tempfile.TemporaryDirectory() as place:
        os.environ["HALFBYTE_CACHE"] = f"{place}/cache"
        for number, case in enumerate(cases()):
            folder = Path(place) / str(number)
            folder.mkdir()
            seen = run_here(case, folder)
            answers.append((case, seen))
            for fault in faults_of(case, seen):
                print(f"{case.name}: {fault}")
    GOLDEN.write_text(as_golden(answers), encoding="utf-8")
    print(f"{len(answers)} answers written to {GOLDEN.name}")


if __name__ == "__main__":
    main()
