"""Every rule on training scripts, and what they find in one. The rules stand in rules/."""

from pathlib import Path

from halfbyte.checks.program import Program
from halfbyte.checks.rule import Finding, Rule
from halfbyte.checks.rules import adapters, generating, loading, measuring, prompts, rows, safety, settings, splits
from halfbyte.checks.scripts import Script, read_scripts

PARTS = (rows, splits, adapters, settings, measuring, prompts, generating, loading, safety)
RULES: tuple[Rule, ...] = tuple(one for module in PARTS for one in vars(module).values() if isinstance(one, Rule))


def examine(script: Script) -> list[Finding]:
    """In the order of the lines; faults of one line before notes."""
    program = Program(script)
    found = [finding for one in RULES for finding in one.findings(program)]
    order = {id(place): number for number, place in enumerate(script.places)}
    return sorted(found, key=lambda finding: (order[id(finding.place)], finding.level))


def examine_files(paths: list[Path]) -> tuple[list[Finding], list[str]]:
    """Findings, and what could not be read. Raises DataError for what is no script."""
    script = read_scripts(paths)
    return examine(script), script.unread
