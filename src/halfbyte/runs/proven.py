"""What was proven before the first step, as a sentence and as rows that the page and the text both show."""

from typing import Any

from halfbyte.runs.words import number, rows_of

HEAD = ["proof", "", "what was seen"]
WORDS = {True: "holds", False: "does not hold", None: "not looked at"}
TITLE = "Proven before step 1"


def told_of_proofs(proofs: dict[str, Any]) -> str:
    """How many hold, and how long it took to look."""
    rows = rows_of(proofs.get("rows"))
    if not rows:
        return ""
    hold = sum(row.get("passed") is True for row in rows)
    failed = [str(row.get("name")) for row in rows if row.get("passed") is False]
    took = f", looked at in {proofs['seconds']:.1f} s" if number(proofs.get("seconds")) is not None else ""
    return f"{hold} hold{took}" + (f"; {', '.join(failed)} do{'es' * (len(failed) == 1)} not." if failed else ".")


def proof_rows(proofs: dict[str, Any]) -> list[list[str]]:
    return [[str(row.get("name")), _word(row.get("passed")), str(row.get("told"))] for row in rows_of(proofs.get("rows"))]


def _word(passed: Any) -> str:
    return WORDS[passed] if passed is None or isinstance(passed, bool) else ""
