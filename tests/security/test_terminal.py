"""SECURITY 3.6: data cannot retitle, clear or fill the clipboard of a terminal, nor turn what a person reads around."""

import json
import re

import pytest
from typer.testing import CliRunner

from halfbyte.cli.main import app
from halfbyte.cli.screen import printable

ATTACKS = {
    "clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "title": "\x1b]0;pwned\x1b\\",
    "clear": "\x1b[2J\x1b[H",
    "eight bits": "\x9b2J\x9d0;pwned\x9c",
    "link": "\x1b]8;;http://evil\x07",
    "override": "gnp.\u202eexe",
    "isolate": "\u2066x\u2069",
    "back": "abc\b\b\bxyz",
    "bell": "\x07",
    "return": "safe\rEVIL",
    "null": "a\x00b",
    "device": "\x1b[6n",
    "line": "a\u2028b",
    "invisible": "a\u200bb\ufeff",
}
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2066-\u2069\ufeff]")


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_what_is_printed_is_seen(attack):
    assert UNSEEN.search(attack)
    assert not UNSEEN.search(printable(attack))


@pytest.mark.parametrize("command", ["new", "audit", "show", "prepare"])
def test_no_command_hands_data_to_the_terminal_raw(tmp_path, monkeypatch, command):
    """Attacks in cells, in the name of a column, in a licence and in the name of the file; rich's own markup in a cell is text."""
    monkeypatch.chdir(tmp_path)
    attack = "".join(ATTACKS[name] for name in ("clipboard", "title", "clear", "override", "bell"))
    rows = [
        {"prompt": f"who is number {i} [red]{attack}[/red] me{i}@example.org", "response": f"the keeper {i} {attack}", f"x{attack}": "1"} for i in range(30)
    ]
    data = tmp_path / "talk.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stated = ["data.kind=prompt_response", "data.prompt_column=prompt", "data.response_column=response"]
    target = str(data)
    if command == "prepare":
        (tmp_path / "a.yaml").write_text(f"data:\n  path: {data}\n")
        target = "a.yaml"
    done = CliRunner().invoke(app, [command, target, *stated, *(["-o", "out.yaml"] if command == "new" else [])])
    assert done.exit_code == 0, done.exception
    assert "keeper" in done.output or command != "show"
    assert not UNSEEN.search(done.output)
