"""Which of the planted faults of tests/planted_faults do the proofs find, and do they fail where nothing is planted?

    python benchmarks/planted_faults.py                writes results/planted_faults.json, claims planted-faults-found and planted-faults-false-alarms
    python benchmarks/planted_faults.py --first-pass   writes results/planted_faults_first_pass.json, claim planted-faults-found-first-pass, once

A fault is found when a proof fails on it. It is looked for as `halfbyte train` looks, and, where nothing fails, once more with --deep. Set-ups
without a fault are looked at with --deep; every proof that fails there is a false alarm. A set-up on which the proofs themselves break off counts as not found.

The faults were written before their author saw any proof, and the first pass is the first run of faults and proofs together: what the proofs
found of bugs that they were not made for. Its file is never written again; what was learned from its misses is in the other.
"""

import argparse
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from claims import RESULTS, record, save_raw, versions
from halfbyte.checks.subject import Subject

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

FIRST = "planted_faults_first_pass.json"
# What was changed in a fault or a set-up behind the first pass, because it was none, or was not sound.
NOTES: list[str] = []


def look(subject: Subject, deep: bool, folder: str) -> dict[str, Any]:
    """What the proofs say of a set-up, without the folder that it lies in. In a thread of its own, so that one that breaks off is told beside the others."""
    from halfbyte.checks.preflight import prove

    started = time.monotonic()
    with ThreadPoolExecutor(1) as one:
        asked = one.submit(prove, subject, deep=deep)
        broke = asked.exception()
    proofs = [] if broke else asked.result()
    return {
        "failed": {proof.name: re.sub(rf"{re.escape(folder)}/\w+/", "", proof.told) for proof in proofs if proof.passed is False},
        "passed": [proof.name for proof in proofs if proof.passed],
        "left_out": [proof.name for proof in proofs if proof.passed is None], "broke_off": repr(broke) if broke else None, "deep": deep,
        "seconds": round(time.monotonic() - started, 2),
    }  # fmt: skip


def main() -> None:
    from planted_faults.clean import TOYS
    from planted_faults.faults import FAULTS

    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--first-pass", action="store_true")
    words.add_argument("--only", default="", help="faults and set-ups with this in their names; nothing is written")
    asked = words.parse_args()
    if asked.first_pass and (RESULTS / FIRST).exists():
        sys.exit(f"{FIRST} is there already: a first pass is taken once")
    with tempfile.TemporaryDirectory() as place:
        toy = cache(lambda name: TOYS[name].make(Path(tempfile.mkdtemp(dir=place))))
        faults: list[dict[str, Any]] = []
        for fault in FAULTS:
            if asked.only not in fault.name:
                continue
            seen = look(fault.plant(toy(fault.toy)), deep=False, folder=place)
            if not seen["failed"]:
                seen = look(fault.plant(toy(fault.toy)), deep=True, folder=place)
            faults.append({"fault": fault.name, "number": fault.number, "toy": fault.toy, "told": fault.told, "needs_deep": fault.deep} | seen)
            found = ", ".join(seen["failed"]) or ("BROKE OFF " + seen["broke_off"] if seen["broke_off"] else "NOT FOUND")
            print(f"{fault.number:5} {fault.name:55} {found}{' (deep)' if seen['failed'] and seen['deep'] else ''}", flush=True)
        clean: list[dict[str, Any]] = []
        for name, made in TOYS.items():
            if asked.only not in name:
                continue
            seen = look(toy(name), deep=True, folder=place)
            clean.append({"set_up": name, "told": made.told} | seen)
            print(f"clean {name:55} {', '.join(seen['failed']) or seen['broke_off'] or 'nothing'}", flush=True)
    found, alarms = sum(bool(one["failed"]) for one in faults), sum(bool(one["failed"] or one["broke_off"]) for one in clean)
    by_train = sum(bool(one["failed"]) and not one["deep"] for one in faults)
    print(f"\n{found} of {len(faults)} faults found, {by_train} of them without --deep; false alarms on {alarms} of {len(clean)} set-ups without a fault")
    if asked.only:
        return
    raw = {
        "planted": len(faults), "found": found, "found_without_deep": by_train, "set_ups": len(clean), "false_alarms": alarms, "notes": NOTES,
        "versions": versions(), "faults": faults, "clean": clean,
    }  # fmt: skip
    if asked.first_pass:
        save_raw(FIRST, raw)
        record("planted-faults-found-first-pass", found, f"of {len(faults)} planted faults")
    else:
        save_raw("planted_faults.json", raw)
        record("planted-faults-found", found, f"of {len(faults)} planted faults")
        record("planted-faults-false-alarms", alarms, f"of {len(clean)} set-ups without a fault")


if __name__ == "__main__":
    main()
