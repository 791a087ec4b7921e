"""Who else holds memory of the GPU: told by nvidia-smi where it is there and may say, otherwise only how much is not ours."""

import shutil
import subprocess

from halfbyte.runs.words import size

QUERY = ("--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader,nounits")
MEBIBYTE = 2**20
WAIT_SECONDS = 5.0
MOST_NAMED = 3


def tell_neighbours(taken_bytes: int, pid: int) -> str:
    """In a sentence, where others take `taken_bytes`; `pid` is ours. In a container nvidia-smi sees no process of others, or under other numbers."""
    told = f"{size(taken_bytes)} of the GPU's memory are held by other programs"
    named = [f"{name} (process {number}, {size(held)})" for number, name, held in _listed() if number != pid]
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    return f"{told}: {', '.join(named[:MOST_NAMED])}{more}" if named else told


def _listed() -> list[tuple[int, str, int]]:
    """Process, name, bytes; the largest first, none where nobody says."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        said = subprocess.run([program, *QUERY], capture_output=True, text=True, timeout=WAIT_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in said.splitlines()]
    found = [(int(row[0]), row[1].rsplit("/", 1)[-1], int(row[2]) * MEBIBYTE) for row in rows if len(row) == 3 and row[0].isdigit() and row[2].isdigit()]
    return sorted(found, key=lambda one: -one[2])
