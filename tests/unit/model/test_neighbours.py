"""Another process that holds the GPU's memory is named: BAD_INPUTS 105. A program of that name stands for nvidia-smi."""

import pytest

from halfbyte.model.neighbours import tell_neighbours

HELD = "9.5 GB of the GPU's memory are held by other programs"


@pytest.fixture
def says(tmp_path, monkeypatch):
    """A function: what nvidia-smi prints, and its exit code."""

    def put(lines: str, code: int = 0) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}\nEND\nexit {code}\n", encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return put


@pytest.mark.parametrize(("lines", "code", "told"), [
    ("4711, /usr/bin/python3, 8000\n99, python3, 512\n4712, Xorg, 600", 0, f"{HELD}: python3 (process 4711, 8.389 GB), Xorg (process 4712, 629.1 MB)"),
    ("99, python3, 512", 0, HELD), ("", 0, HELD), ("NVIDIA-SMI has failed", 9, HELD), ("No running processes found", 0, HELD), ("7, x, [N/A]", 0, HELD),
    ("\n".join(f"{number}, a, 10" for number in range(1, 6)), 0, f"{HELD}: {', '.join(f'a (process {n}, 10.49 MB)' for n in (1, 2, 3))} and 2 more"),
])  # fmt: skip
def test_others_are_named_as_far_as_anybody_says(says, lines, code, told):
    says(lines, code)
    assert tell_neighbours(9_500_000_000, pid=99) == told


def test_without_nvidia_smi_only_the_size_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert tell_neighbours(9_500_000_000, pid=99) == HELD
