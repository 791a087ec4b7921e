"""How many of the known faults of five fine-tuning projects `halfbyte doctor --notebook` names, and what it says of scripts with which nothing is wrong.

python benchmarks/doctor_faults.py            writes results/doctor_faults.json, claims doctor-faults-named and doctor-false-alarms
python benchmarks/doctor_faults.py --table    prints the table of docs/doctor.md

tests/doctor holds the five projects, rewritten after descriptions of the originals, with the list of what is wrong with each. A fault counts as named
when its rule fires at the very line that is at fault. Faults that stand in the data or in a README are listed too, and count as not named.
"""

import json
import sys
from pathlib import Path
from typing import Any

from claims import record, save_raw
from halfbyte.checks.script_rules import RULES, examine_files

SCRIPTS = Path(__file__).parent.parent / "tests" / "doctor"


def compare(folder: Path = SCRIPTS) -> dict[str, Any]:
    """Every listed fault with where it was named, what else was said, and the findings on the clean scripts."""
    projects = {}
    for letter, project in json.loads((folder / "listed.json").read_text(encoding="utf-8")).items():
        findings, unread = examine_files([folder / name for name in project["files"]])
        seen = [{"rule": one.rule, "file": Path(one.place.file).name, "cell": one.place.cell, "line": one.place.line, "text": one.quoted, "seen": one.seen}
                for one in findings]  # fmt: skip
        faults, explained = [], []
        for fault in project["faults"]:
            named = [one for wanted in fault["found_by"] for one in seen if one["rule"] == wanted["rule"] and wanted["at"] in one["text"]]
            wanted = {one["rule"] for one in fault["found_by"]}
            faults.append({**fault, "named": bool(named) and {one["rule"] for one in named} == wanted, "places": named})
            explained += named
        beside = [one for one in seen if one not in explained]
        projects[letter] = {"about": project["about"], "faults": faults, "said_beside": beside, "unread": unread}
    clean = {file.name: [f"{one.place.line}: {one.rule}" for one in examine_files([file])[0]] for file in sorted((folder / "clean").iterdir())}
    return {"rules": len(RULES), "projects": projects, "clean": clean}


def counts(found: dict[str, Any]) -> tuple[int, int, int]:
    """Named, those that stand in the code, all that are listed."""
    faults = [fault for project in found["projects"].values() for fault in project["faults"]]
    return sum(fault["named"] for fault in faults), sum(not fault["not_in_the_code"] for fault in faults), len(faults)


def table(found: dict[str, Any]) -> str:
    lines = ["| | fault | named |", "|---|---|---|"]
    for letter, project in found["projects"].items():
        for fault in project["faults"]:
            places = ", ".join(dict.fromkeys(f"`{one['rule']}` (cell {one['cell']}, line {one['line']})" for one in fault["places"]))
            lines.append(f"| {letter} {fault['number']} | {fault['fault']} | {places if fault['named'] else 'no: ' + (fault['not_in_the_code'] or 'missed')} |")
    return "\n".join(lines)


def main() -> None:
    found = compare()
    if "--table" in sys.argv:
        print(table(found))
        return
    named, readable, listed = counts(found)
    alarms = sum(map(len, found["clean"].values()))
    print(f"{named} of {listed} listed faults named ({readable} stand in the code or in what it printed)")
    print(f"{alarms} findings on {len(found['clean'])} clean scripts")
    save_raw("doctor_faults.json", {"named": named, "in_the_code": readable, "listed": listed, **found})
    record("doctor-faults-named", round(named / listed, 4), f"share of {listed} listed, {readable} of which stand in the code or in what it printed")
    record("doctor-false-alarms", alarms, f"findings on {len(found['clean'])} clean scripts")


if __name__ == "__main__":
    main()
