"""Takes each control of docs/security.md out of a copy of the source, one at a time, and sees its test fail.

python benchmarks/security_mutations.py          every control; writes results/security_mutations.json and the claim security-controls-tested
python benchmarks/security_mutations.py NAME     that one alone, told and not kept

What was noticed already is not run again; delete results/security_mutations.json to begin anew. The source itself is not touched: the copy comes first
on the path of the tests. With the control in place the same tests pass, as the suite shows.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from claims import RESULTS, record, save_raw

ROOT = Path(__file__).parent.parent
RAW = "security_mutations.json"


class Control(NamedTuple):
    """One control: the text that it is in a file of src/halfbyte, what stands there without it, and the test that must fail then."""

    file: str
    text: str
    without: str
    test: str


MODELS, TEMPLATES, SECRETS, PATHS = (f"tests/security/test_{name}.py" for name in ("models", "templates", "secrets", "paths"))
CONTROLS = {
    "a base of pickles is refused": Control(
        "model/vetting.py", "if weights and not safe:", "if False:", f"{MODELS}::test_a_base_of_pickles_is_refused_with_the_mend"
    ),
    "the loader is told safetensors": Control("model/load.py", "use_safetensors=True, ", "", f"{MODELS}::test_the_loader_is_told_safetensors_too"),
    "an index names safetensors": Control(
        "model/vetting.py", 'if not part.endswith(".safetensors"):', "if False:", f"{MODELS}::test_an_index_names_safetensors_of_its_folder"
    ),
    "an index stays in its folder": Control(
        "model/vetting.py", 'if part != Path(part).name or "\\\\" in part:', "if False:", f"{MODELS}::test_an_index_names_safetensors_of_its_folder"
    ),
    "no adapter hides in a base": Control(
        "model/vetting.py", 'if (folder / "adapter_config.json").is_file():', "if False:", f"{MODELS}::test_a_base_that_brings_an_adapter_is_refused"
    ),
    "a config sets nothing internal": Control(
        "model/vetting.py", 'if key.endswith("_internal"):', "if False:", f"{MODELS}::test_a_config_that_asks_for_code_is_refused_before_anything_is_loaded"
    ),
    "a config names no kernels as attention": Control(
        "model/vetting.py",
        'if any("implementation" in word for word in path)',
        'if any("-" == word for word in path)',
        f"{MODELS}::test_a_config_that_asks_for_code_is_refused_before_anything_is_loaded",
    ),
    "a config asks for no trust": Control(
        "model/vetting.py", 'if key == "trust_remote_code":', "if False:", f"{MODELS}::test_a_config_that_asks_for_code_is_refused_before_anything_is_loaded"
    ),
    "a config names no code inside a part": Control(
        "model/vetting.py", 'if "auto_map" in path[1:]:', "if False:", f"{MODELS}::test_a_config_that_asks_for_code_is_refused_before_anything_is_loaded"
    ),
    "a config names no weights of another kind": Control(
        "model/vetting.py",
        'if key == "transformers_weights" and',
        "if False and",
        f"{MODELS}::test_a_config_that_asks_for_code_is_refused_before_anything_is_loaded",
    ),
    "an adapter as a pickle is refused": Control(
        "model/adapter.py",
        "if pickled := pickled_adapter(Path(source)):",
        "if pickled := None:",
        f"{MODELS}::test_an_adapter_as_a_pickle_is_refused_with_the_mend",
    ),
    "an adapter has known keys": Control(
        "model/vetting.py", "if not known:", "if False:", f"{MODELS}::test_an_adapter_that_asks_for_more_than_its_tensors_is_refused"
    ),
    "asking for code is answered": Control(
        "recipe/load.py", 'elif key.startswith("trust_remote_code"):', "elif False:", f"{MODELS}::test_asking_for_code_is_answered_aloud"
    ),
    "templates run in the sandbox": Control(
        "data/metered.py",
        "class MeteredEnvironment(ImmutableSandboxedEnvironment):",
        "class MeteredEnvironment(Environment):",
        f"{TEMPLATES}::test_the_sandbox_is_the_immutable_one",
    ),
    "turns are counted": Control(
        "data/metered.py", "if self.turns > MOST_TURNS:", "if self.turns > 10**9:", f"{TEMPLATES}::test_a_template_without_measure_is_stopped[0]"
    ),
    "sizes are looked at": Control(
        "data/metered.py", "if size > MOST_CHARACTERS or self.made > MOST_IN_ALL:", "if False:", f"{TEMPLATES}::test_a_template_without_measure_is_stopped[17]"
    ),
    "widths are looked at": Control(
        "data/metered.py", "if any(width and", "if False and any(width and", f"{TEMPLATES}::test_a_template_without_measure_is_stopped[7]"
    ),
    "the clock is asked": Control(
        "data/metered.py", "if time.monotonic() > self.until:", "if False:", f"{TEMPLATES}::test_what_is_slow_in_one_stroke_is_stopped_by_the_clock"
    ),
    "a key for a secret is refused": Control(
        "recipe/load.py", "if SECRET_KEY.search(key):", "if False:", f"{SECRETS}::test_a_key_for_a_secret_is_refused_with_the_mend"
    ),
    "a recipe that holds a secret is refused": Control(
        "recipe/load.py",
        "    _refuse_secrets(text, file, overrides)\n",
        "",
        f"{SECRETS}::test_what_looks_like_a_secret_is_refused_in_a_recipe_and_hidden_elsewhere",
    ),
    "events hide secrets": Control("runs/events.py", "stamped = hide_in(", "stamped = (", f"{SECRETS}::test_events_and_plans_hide_secrets"),
    "plans hide secrets": Control("runs/folder.py", "json.dumps(hide_in(plan)", "json.dumps((plan)", f"{SECRETS}::test_events_and_plans_hide_secrets"),
    "log lines hide secrets": Control("redaction.py", "record.msg, record.args = safe, None", "pass", f"{SECRETS}::test_log_lines_of_any_library_hide_secrets"),
    "a traceback hides secrets": Control(
        "cli/main.py", "hide_secrets(traceback.format_exc())", "traceback.format_exc()", f"{SECRETS}::test_a_bug_is_told_without_secrets"
    ),
    "the name of a run is a name": Control(
        "recipe/schema.py", 'Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")', "Field()", f"{PATHS}::test_a_name_that_could_leave_the_folder_is_refused"
    ),
    "the name of a run is no device": Control(
        "recipe/schema.py", "    if is_reserved(name):\n", "    if False:\n", f"{PATHS}::test_a_name_that_could_leave_the_folder_is_refused"
    ),
    "a run has no links out": Control("runs/folder.py", "    refuse_links_out(path)\n", "", f"{PATHS}::test_links_inside_a_run_pass_and_links_out_do_not"),
    "a planted link is not written through": Control("runs/disk.py", " | os.O_EXCL", "", f"{PATHS}::test_a_planted_link_beside_a_file_is_not_written_through"),
    "aliases of YAML are refused": Control(
        "recipe/load.py",
        "if any(isinstance(token, yaml.AliasToken)",
        "if False and any(isinstance(token, yaml.AliasToken)",
        f"{PATHS}::test_yaml_is_bounded_and_plain",
    ),
    "no formula in a spreadsheet": Control(
        "cli/files.py", "return FORMULA.sub(", "return re.compile('(?!)').sub(", "tests/unit/cli/test_files.py::test_no_spreadsheet_runs_an_answer_as_a_formula"
    ),
    "the terminal gets what is seen": Control(
        "cli/screen.py", 'c if c.isprintable() or c == "\\n" else " "', "c", "tests/security/test_terminal.py::test_what_is_printed_is_seen"
    ),
    "a report escapes what it shows": Control(
        "runs/markup.py", "return html.escape(visible(value))", "return visible(value)", "tests/unit/runs/test_report.py"
    ),
    "no code is run as data": Control(
        "redaction.py", "HIDDEN = ", "import pickle\n\nHIDDEN = ", "tests/unit/test_import_rule.py::test_no_module_runs_data_as_code_or_swallows_errors"
    ),
}


def fails_without(control: Control) -> bool:
    """Whether the test fails on a copy of the source without the control. An error of the copy itself would count for nothing."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
        file = copy / "src" / "halfbyte" / control.file
        text = file.read_text(encoding="utf-8")
        if control.text not in text:
            raise RuntimeError(f"{control.file} holds no {control.text!r}: bring this list up to date")
        file.write_text(text.replace(control.text, control.without), encoding="utf-8")
        for name in ("tests", "pyproject.toml"):
            (copy / name).symlink_to(ROOT / name)
        environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-W", "ignore", "-p", "no:cacheprovider", control.test]
        limited = ["bash", "-c", 'ulimit -v 12000000; exec "$@"', "-", *command]  # a template off its meter takes all there is
        try:
            done = subprocess.run(limited, cwd=copy, env=environment, capture_output=True, text=True, timeout=240, check=False)
        except subprocess.TimeoutExpired:
            return True
    if done.returncode not in (0, 1) and "MemoryError" not in done.stdout + done.stderr:
        raise RuntimeError(f"{control.test} did not run:\n{done.stdout}{done.stderr}")
    return done.returncode != 0


def main() -> None:
    if names := sys.argv[1:]:
        for name in names:
            print(name, "->", "its test fails" if fails_without(CONTROLS[name]) else "NOBODY NOTICES")
        return
    kept = RESULTS / RAW
    found = json.loads(kept.read_text(encoding="utf-8"))["noticed"] if kept.is_file() else {}
    for name, control in CONTROLS.items():
        if not found.get(name):
            found[name] = fails_without(control)
            save_raw(RAW, {"noticed": found, "tests": {name: control.test for name, control in CONTROLS.items()}})
        print(f"{name}: {'its test fails' if found[name] else 'NOBODY NOTICES'}", flush=True)
    record("security-controls-tested", sum(found.values()) / len(CONTROLS), "share")


if __name__ == "__main__":
    main()
