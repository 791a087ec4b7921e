"""How many of the inputs that people get wrong are answered as they should be: the corpus of tests/bad_inputs, case by case.

python benchmarks/bad_inputs.py     writes results/bad_inputs.json and the claims bad-inputs-refused (share), bad-inputs-cases

Right is a case with the exit code that belongs to it, one line for each problem and one hint, the words that it must name, no traceback, no file
changed or left behind, no weights loaded where the recipe, the data or the headers of the files tell, and under a second for slips in recipes and
commands. Each runs through the command's own entry. One failure counts the case as wrong. Half a minute on two cores.
"""

import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from claims import RESULTS, record, save_raw

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def main(results: Path = RESULTS) -> None:
    from bad_inputs.case import faults_of, problems_of, run_here
    from bad_inputs.corpus import cases

    table = []
    with tempfile.TemporaryDirectory() as place:
        os.environ["HALFBYTE_CACHE"] = f"{place}/cache"
        os.environ["HF_HUB_OFFLINE"] = "1"
        for number, case in enumerate(cases()):
            folder = Path(place) / str(number)
            folder.mkdir()
            seen = run_here(case, folder)
            faults = faults_of(case, seen)
            table.append({
                "number": case.number, "does": case.does, "words": case.words, "stage": case.stage, "exit_code": seen.code,
                "seconds": round(seen.seconds, 3), "problems": problems_of(seen) if case.stage != "note" else [], "faults": faults,
            })  # fmt: skip
            for fault in faults:
                print(f"{case.name}: {fault}")
    right = sum(not row["faults"] for row in table)
    stages = Counter(row["stage"] for row in table)
    slowest = max(row["seconds"] for row in table if row["stage"] == "words")
    numbers = sorted({int(row["number"].rstrip("+")) for row in table if "+" not in row["number"]})
    print(f"{right} of {len(table)} right ({sum('+' in row['number'] for row in table)} of them neighbours of our own); {dict(stages)}")
    print(f"numbers of the list: {', '.join(map(str, numbers))}; slowest slip in a recipe or a command {slowest:.2f} s")
    save_raw(
        "bad_inputs.json", {"right": right, "cases": len(table), "stages": stages, "numbers": numbers, "slowest_slip_seconds": slowest, "table": table}, results
    )
    record("bad-inputs-refused", right / len(table), "share", results)
    record("bad-inputs-cases", len(table), "cases", results)


if __name__ == "__main__":
    main()
