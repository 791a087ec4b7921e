"""Time and memory of `halfbyte quickstart` on this machine, and whether a second run repeats it digit for digit.

python benchmarks/quickstart.py     writes results/quickstart.json, claims quickstart-s and quickstart-peak-gb
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from claims import record, save_raw

SIDES = ("train", "validation", "test")


def run_once(runs: Path) -> dict:
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "halfbyte", "quickstart", "--runs", str(runs)], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    folder = max(runs.iterdir(), key=lambda path: path.stat().st_mtime)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    report = json.loads((folder / "report.json").read_text())
    return {
        "seconds": seconds,
        # The largest of the children so far: one process trains, measures and reports.
        "peak_gb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9,
        "perplexity": report["perplexity"],
        "data": report["data"],
        "losses": [event["loss"] for event in events if event["event"] in ("step", "validation", "perplexity")],
        "samples_seen": report["training"],
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = run_once(Path(folder)), run_once(Path(folder))
    same = first["losses"] == second["losses"]
    held_out = first["perplexity"]["tokens"]
    total = sum(first["data"][f"{side}_tokens"] for side in SIDES)
    save_raw("quickstart.json", {"runs": [first, second], "losses_equal_digit_for_digit": same, "held_out_share": held_out / total})
    record("quickstart-s", round(min(first["seconds"], second["seconds"]), 1), "s")
    record("quickstart-peak-gb", round(max(first["peak_gb"], second["peak_gb"]), 2), "GB")
    print(json.dumps({key: first[key] for key in ("seconds", "peak_gb", "perplexity")}), "second run:", second["seconds"], "equal losses:", same)
    if not same or first["perplexity"]["tuned"] >= first["perplexity"]["base"] or held_out < 3000 or held_out > total / 4:
        sys.exit("quickstart does not hold its promise")


if __name__ == "__main__":
    main()
