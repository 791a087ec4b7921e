"""recipes/frankenstein.yaml on the real novel and the embedded base: time, perplexity, what was left out.

python benchmarks/frankenstein.py      reads HALFBYTE_DATA (default ../shared/data), writes results/frankenstein.json
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from claims import save_raw, versions, where

DATA = Path(os.environ.get("HALFBYTE_DATA", "../shared/data"))


def main() -> None:
    words = ["train", "recipes/frankenstein.yaml", f"data.path={DATA}/frankenstein/frankenstein_chunks.csv"]
    with tempfile.TemporaryDirectory() as runs:
        started = time.monotonic()
        shown = subprocess.run([sys.executable, "-m", "halfbyte", *words, "--runs", runs], check=True, stdout=subprocess.PIPE, text=True).stdout
        seconds = time.monotonic() - started
        report = json.loads((Path(runs) / "frankenstein" / "report.json").read_text())
    perplexity = report["perplexity"]
    result = {
        "command": "halfbyte " + " ".join(words), "seconds": round(seconds, 1), "perplexity": perplexity,
        "change": perplexity["tuned"] / perplexity["base"] - 1, "data": report["data"], "notes": report["notes"], "training": report["training"],
        "validation": report["validation"], "where": where(), "versions": versions(),
    }  # fmt: skip
    save_raw("frankenstein.json", result)
    print(json.dumps({key: result[key] for key in ("seconds", "perplexity", "change", "notes")}, indent=1))
    said = "21 rows of Project Gutenberg header and licence left out" in shown.replace("\n", " ") and "byte-order mark" in shown
    if seconds > 600 or result["change"] > -0.05 or not said:
        sys.exit("the promise is not held")


if __name__ == "__main__":
    main()
