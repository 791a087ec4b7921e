"""What a module may import, and what none may do: the rules of the house that a reader cannot check by eye."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import halfbyte

SOURCE = Path(halfbyte.__file__).parent
MODULES = sorted(file.relative_to(SOURCE).as_posix() for file in SOURCE.rglob("*.py"))

# Imports run downwards. Rooms on one line do not import each other.
LINES = [
    {"cli", "serve", "web", "notebook"}, {"api"}, {"sweep", "checks"}, {"evaluate"}, {"train", "generate", "publish"}, {"fast"}, {"model", "data"}, {"budget"},
    {"recipe", "runs"},
    {"kernels", "errors", "redaction"},
]  # fmt: skip
DEPTH = {room: depth for depth, line in enumerate(LINES) for room in line}
# So that help and forms are instant.
WITHOUT_TORCH = ("recipe", "runs", "budget", "cli/plans.py", "cli/main.py", "cli/screen.py", "cli/files.py", "errors.py", "redaction.py")
SLOW = {"torch", "transformers", "tokenizers", "peft", "bitsandbytes", "accelerate", "safetensors", "huggingface_hub"}


def tree_of(module: str) -> ast.Module:
    return ast.parse((SOURCE / module).read_text(encoding="utf-8"), module)


def room_of(module: str) -> str:
    return module.split("/")[0].removesuffix(".py")


def imported(tree: ast.AST) -> list[str]:
    """Dotted names, in functions too; `from halfbyte.data import look` is halfbyte.data.look."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import hides what it imports"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def runs_at_import(tree: ast.Module) -> ast.Module:
    """The module without the bodies of its functions."""

    class Outside(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

    return Outside().visit(tree)


def rooms_imported(tree: ast.AST) -> set[str]:
    inner = [name.split(".") for name in imported(tree) if name.split(".")[0] == "halfbyte"]
    return {parts[1] for parts in inner if parts[1] != "__version__"}


def test_there_are_modules_to_look_at():
    assert len(MODULES) > 30
    assert {room_of(module) for module in MODULES} - {"__init__", "__main__"} <= set(DEPTH)


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) in DEPTH])
def test_imports_run_downwards(module):
    room = room_of(module)
    for other in rooms_imported(tree_of(module)) - {room}:
        assert other in DEPTH, f"{module} imports halfbyte.{other}, which stands on no line of the house"
        assert DEPTH[other] > DEPTH[room], f"{module} imports {other}, which does not stand below {room}"


@pytest.mark.parametrize(("text", "rooms"), [
    ("import halfbyte.api", {"api"}), ("from halfbyte import api, __version__", {"api"}), ("def f():\n    from halfbyte.data.look import x", {"data"}),
    ("import halfbyte.model.load as m", {"model"}), ("import torch", set()),
])  # fmt: skip
def test_every_way_to_import_is_seen(text, rooms):
    assert rooms_imported(ast.parse(text)) == rooms


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith(WITHOUT_TORCH)])
def test_help_and_forms_import_nothing_slow(module):
    tree = tree_of(module)
    if module != "cli/main.py":  # its commands import what they need when they run
        assert not {name.split(".")[0] for name in imported(tree)} & SLOW
    assert not {name.split(".")[0] for name in imported(runs_at_import(tree))} & SLOW


def test_a_recipe_is_checked_and_help_shown_without_torch():
    """In a process of its own: also nothing that is imported on the way imports it."""
    words = "import sys, halfbyte.recipe.load, halfbyte.recipe.explain, halfbyte.recipe.plan, halfbyte.runs.report, halfbyte.cli.main, halfbyte.cli.files"
    done = subprocess.run(
        [sys.executable, "-c", f"{words}; print(sorted({SLOW | {'numpy'}} & set(sys.modules)))"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_an_import_only_defines_names():
    """A call at import is work, or a setting of another library that everyone who imports ours gets."""
    for module in MODULES:
        called = [ast.unparse(node) for node in tree_of(module).body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
        called = [call for call in called if not call.startswith("app.")]
        assert not called, f"{module} calls {called} when it is imported"


# What none may do

PICKLES = ("pickle", "dill", "cloudpickle", "shelve", "marshal")
RUNS_CODE = ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load")


def forbidden(tree: ast.AST) -> list[str]:
    """Code that runs data as code, or that swallows errors."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found += [name for name in imported(ast.Module([node], [])) if name.split(".")[0] in PICKLES]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            settings = {word.arg: word.value for word in node.keywords}
            found += [called] if called in RUNS_CODE else []
            found += [f"{name}=..." for name in ("shell", "trust_remote_code") if name in settings and not is_constant(settings[name], False)]
            found += ["weights_only=False" for value in [settings.get("weights_only")] if is_constant(value, False)]
        elif isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else ""
            everything = {"", "Exception", "BaseException"} & set(caught.strip("()").split(", "))
            if everything and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
                found.append(f"except {caught}".strip())
    return found


def is_constant(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("module", MODULES)
def test_no_module_runs_data_as_code_or_swallows_errors(module):
    tree = tree_of(module)
    allowed = []
    if module == "cli/main.py":
        # The one place that catches everything: it prints the traceback, asks for a report and leaves with exit code 1.
        allowed = ["except Exception"]
        top = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
        assert forbidden(top) == allowed
        assert "traceback.format_exc()" in ast.unparse(top)
    assert forbidden(tree) == allowed


@pytest.mark.parametrize(("text", "seen"), [
    ("import pickle", "pickle"), ("from pickle import loads", "pickle.loads"), ("eval(x)", "eval"), ("exec(x)", "exec"), ("torch.load(f)", "torch.load"),
    ("yaml.load(f, yaml.SafeLoader)", "yaml.load"), ("run(x, shell=True)", "shell=..."), ("run(x, shell=y)", "shell=..."),
    ("load(x, trust_remote_code=True)", "trust_remote_code=..."), ("try: f()\nexcept: pass", "except"),
    ("try: f()\nexcept Exception: pass", "except Exception"), ("try: f()\nexcept (OSError, BaseException) as e: log(e)", "except (OSError, BaseException)"),
    ("try: f()\nexcept: raise", None), ("model.eval()", None), ("re.compile(x)", None), ("run(x, shell=False)", None), ("try: f()\nexcept OSError: pass", None),
    ("try: f()\nexcept Exception as e: raise ModelError('x') from e", None),
])  # fmt: skip
def test_the_look_out_sees(text, seen):
    assert forbidden(ast.parse(text)) == ([seen] if seen else [])
