"""Pictures of a run's report at 400 and 1400 px, light and dark, by headless Chromium: python scripts/look_at_report.py RUN FOLDER

Headless Chromium has no window narrower than 500 px, so the page is shown in a frame of the width that is asked for.
"""

import argparse
import html
import subprocess
import tempfile
from pathlib import Path

WIDTHS = (400, 1400)
SCHEMES = {"light": 1, "dark": 0}
"""Name and the value of Chromium's preferredColorScheme."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder that holds report.html")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--height", type=int, default=2400, help="of each picture, in px")
    parser.add_argument("--chromium", default="chromium")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    report = (asked.run / "report.html").resolve()
    for width in WIDTHS:
        for scheme in SCHEMES:
            picture = asked.folder / f"report-{width}-{scheme}.png"
            take(asked.chromium, report, picture, width, asked.height, scheme)
            print(picture)


def take(chromium: str, report: Path, picture: Path, width: int, height: int, scheme: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        frame = Path(folder) / "frame.html"
        style = f"margin:0;color-scheme:{scheme}"
        inner = f'<iframe src="{html.escape(report.as_uri())}" style="border:0;display:block" width="{width}" height="{height}"></iframe>'
        frame.write_text(f'<!doctype html><html style="{style}"><body style="{style}">{inner}</body></html>', encoding="utf-8")
        subprocess.run([
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--hide-scrollbars",
            f"--user-data-dir={folder}/profile", f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
            f"--window-size={max(width, 500)},{height}", f"--screenshot={picture.resolve()}", frame.as_uri(),
        ], check=True, capture_output=True, timeout=120)  # fmt: skip


if __name__ == "__main__":
    main()
