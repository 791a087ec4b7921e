"""The terminal chat: reads a line, shows the answer as it comes, keeps the turns."""

import sys
from pathlib import Path

from rich.markup import escape

from halfbyte import api
from halfbyte.cli.screen import error_console, printable
from halfbyte.errors import DataError
from halfbyte.generate.engine import Sampling

HELP = "/reset forgets the conversation, /quit leaves (so does Ctrl-D)"


def converse(run: Path, sampling: Sampling) -> None:
    """Until /quit or the end of the input. Prompts come from a person or from a pipe."""
    tuned = api.open_tuned(run)
    talks = tuned.template.kind == "chat"
    person = sys.stdin.isatty()
    notices = error_console()
    if person:
        what = "Talk to it" if talks else "Write an opening; it goes on (this run was trained on plain text)"
        notices.print(f"{what}. {HELP}", style="dim")
    messages: list[dict[str, str]] = []
    while True:
        try:
            said = input("you > " if person else "").strip()
        except (EOFError, KeyboardInterrupt):
            if person:
                print()
            break
        if said == "/quit":
            break
        if said == "/reset":
            messages = []
            continue
        if said.startswith("/"):
            notices.print(HELP, style="dim")
            continue
        if not said:
            continue
        asked = [*messages, {"role": "user", "content": said}] if talks else [{"role": "user", "content": said}]
        try:
            answer, forgotten = api.reply(tuned, asked, sampling, _show)
        except DataError as error:
            notices.print(escape(printable(f"{error.message}; {error.hint}")), style="yellow")
            continue
        except KeyboardInterrupt:
            print()
            continue
        print()
        if forgotten:
            notices.print(f"(the oldest {forgotten // 2} turns no longer fit and were left out)", style="dim")
        messages = [*asked[forgotten:], {"role": "assistant", "content": answer}]


def _show(text: str) -> None:
    print(printable(text), end="", flush=True)
