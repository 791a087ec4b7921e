"""What a script says, seen from its calls: what is called with what, where a name got its value, and in which order things happen.

No more than a reader sees who follows names with a finger: the last value that a name was given before a line, strings put together from
pieces, settings handed on as **dictionary. Values that only running would tell are None. Needs no torch.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from halfbyte.checks.scripts import Script

# Stands in a text for what is put in when the script runs.
HOLE = "\x00"
DEEPEST = 12
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
# What hands on the model that it is given first.
WRAPPERS = ("get_peft_model", "prepare_model_for_kbit_training", "prepare_model_for_int8_training", "prepare_model", "prepare", "compile")
# Methods that give back the model that they are called on.
SAME_MODEL = ("to", "cuda", "eval", "train", "half", "bfloat16", "merge_and_unload", "unload", "base_model")


@dataclass(frozen=True)
class Call:
    """One call. `dotted` is its name with the imports' own names in place of their aliases: numpy.random.seed."""

    node: ast.Call
    dotted: str
    words: dict[str, ast.expr]
    inside: Function | None
    in_loop: bool

    @property
    def name(self) -> str:
        return self.dotted.rpartition(".")[2]

    @property
    def receiver(self) -> ast.expr | None:
        return self.node.func.value if isinstance(self.node.func, ast.Attribute) else None

    @property
    def line(self) -> int:
        return self.node.lineno

    def given(self, name: str, position: int | None = None) -> ast.expr | None:
        """The argument of a name, or of a position where it may stand without one."""
        if name in self.words:
            return self.words[name]
        places = [arg for arg in self.node.args if not isinstance(arg, ast.Starred)]
        return places[position] if position is not None and position < len(places) else None


@dataclass(frozen=True)
class Assigned:
    """`target` as it is written: name, name.attribute, name['key']."""

    target: str
    value: ast.expr
    line: int
    inside: Function | None
    part: int | None
    """Which of several targets: a, b = value."""


class Program:
    """The facts of a script; rules ask it."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.imports: dict[str, str] = {}
        self.functions: dict[str, Function] = {}
        self.classes: list[ast.ClassDef] = []
        self.assigned: list[Assigned] = []
        self.calls: list[Call] = []
        self.star_import = False
        self._calls_by_node: dict[int, Call] = {}
        self._owner: dict[int, Function | None] = {}
        self._parents: dict[int, ast.AST] = {}
        for node in ast.walk(script.tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._import(node)
        self._visit(script.tree, None, False, "")
        for call in self.calls:
            for word in call.node.keywords:
                if word.arg is None:  # **settings
                    for name, value in self.entries(word.value, call.line).items():
                        call.words.setdefault(name, value)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            self.star_import |= alias.name == "*"
            module = f"{node.module or ''}." if isinstance(node, ast.ImportFrom) else ""
            if alias.asname:
                self.imports[alias.asname] = module + alias.name
            elif module:
                self.imports[alias.name] = module + alias.name
            else:
                self.imports[alias.name.partition(".")[0]] = alias.name.partition(".")[0]

    def _visit(self, node: ast.AST, inside: Function | None, in_loop: bool, above: str) -> None:
        for child in ast.iter_child_nodes(node):
            self._parents[id(child)] = node
            self._owner[id(child)] = inside
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.functions.setdefault(child.name, child)
                self._visit(child, child, False, "")
            elif isinstance(child, ast.Lambda):
                self._visit(child, child, in_loop, "")
            elif isinstance(child, ast.ClassDef):
                self.classes.append(child)
                self._visit(child, inside, False, f"{child.name}.")
            else:
                self._note(child, inside, in_loop, above)
                loops = isinstance(child, (ast.For, ast.While, ast.ListComp, ast.GeneratorExp, ast.AsyncFor))
                self._visit(child, inside, in_loop or loops, above)

    def _note(self, node: ast.AST, inside: Function | None, in_loop: bool, above: str) -> None:
        if isinstance(node, ast.Call):
            words = {word.arg: word.value for word in node.keywords if word.arg}
            call = Call(node, self.dotted(node.func), words, inside, in_loop)
            self.calls.append(call)
            self._calls_by_node[id(node)] = call
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                several = isinstance(target, (ast.Tuple, ast.List))
                for part, one in enumerate(target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]):
                    value = node.value
                    if several and isinstance(value, ast.Tuple) and part < len(value.elts):
                        self.assigned.append(Assigned(above + ast.unparse(one), value.elts[part], node.lineno, inside, None))
                    else:
                        self.assigned.append(Assigned(above + ast.unparse(one), value, node.lineno, inside, part if several else None))
                    if isinstance(value, ast.Lambda) and isinstance(one, ast.Name):
                        self.functions[one.id] = value

    # Names

    def dotted(self, node: ast.expr) -> str:
        """np.random.seed -> numpy.random.seed; what is called on a result keeps its last name: .map."""
        if isinstance(node, ast.Name):
            return self.imports.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            return f"{self.dotted(node.value)}.{node.attr}"
        return ""

    def called(self, *names: str) -> list[Call]:
        """Calls whose last name is one of these."""
        return [call for call in self.calls if call.name in names]

    def call_of(self, node: ast.AST | None) -> Call | None:
        return self._calls_by_node.get(id(node)) if node is not None else None

    def parent(self, node: ast.AST) -> ast.AST | None:
        return self._parents.get(id(node))

    def owner(self, node: ast.AST) -> Function | None:
        return self._owner.get(id(node))

    def file_of(self, line: int) -> str:
        return self.script.place(line).file

    def told_line(self, node: ast.AST) -> str:
        """Where it stands, for a sentence."""
        place = self.script.place(getattr(node, "lineno", 1))
        return f"{place.line}" if place.cell is None else f"{place.line} of cell {place.cell}"

    def moments(self, node: ast.AST, depth: int = 0) -> list[tuple[int, ...]]:
        """When it runs, as lines that sort: its own, or behind those of the calls of the function that it stands in."""
        line = getattr(node, "lineno", 0)
        inside = self.owner(node)
        name = next((name for name, function in self.functions.items() if function is inside), None)
        callers = [call for call in self.calls if call.dotted == name and call.inside is not inside] if name else []
        if not callers or depth > 3:
            return [(line,)] if inside is None else [(inside.lineno, line)]
        return [(*moment, line) for call in callers for moment in self.moments(call.node, depth + 1)]

    def assignment(self, node: ast.expr, line: int) -> Assigned | None:
        """The one that a name, an attribute or an element has its value from at a line: the last before it, in its function or outside."""
        if not isinstance(node, (ast.Name, ast.Attribute, ast.Subscript)):
            return None
        text, inside = ast.unparse(node), self.owner(node)
        fitting = [one for one in self._by_target.get(text, []) if one.inside is inside or one.inside is None]
        own = [one for one in fitting if one.inside is inside and one.line < line]
        if own:
            return own[-1]
        if inside is not None and text in {arg.arg for arg in (*inside.args.posonlyargs, *inside.args.args, *inside.args.kwonlyargs)}:
            return None
        outside = [one for one in fitting if one.inside is None]
        when = max((moment[0] for moment in self.moments(node)), default=line) if inside is not None else line
        before = [one for one in outside if one.line < when]
        return before[-1] if before else outside[0] if outside else None

    @cached_property
    def _by_target(self) -> dict[str, list[Assigned]]:
        found: dict[str, list[Assigned]] = {}
        for one in sorted(self.assigned, key=lambda one: one.line):
            found.setdefault(one.target, []).append(one)
        return found

    def value(self, node: ast.expr | None, line: int | None = None, depth: int = 0) -> ast.expr | None:
        """What a name stands for, as far as it can be followed; anything else is itself."""
        if node is None or depth > DEEPEST:
            return node
        line = node.lineno if line is None else line
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
            entry = self.entries(node.value, line, depth + 1).get(node.slice.value)
            if entry is not None:
                return self.value(entry, None, depth + 1)
        one = self.assignment(node, line)
        if one is None or one.part is not None:
            return node
        return self.value(one.value, one.line, depth + 1)

    def entries(self, node: ast.expr, line: int, depth: int = 0) -> dict[str, ast.expr]:
        """Of a dictionary with text keys, {...} or dict(...)."""
        value = self.value(node, line, depth)
        if isinstance(value, ast.Dict):
            return {key.value: one for key, one in zip(value.keys, value.values, strict=True) if isinstance(key, ast.Constant) and isinstance(key.value, str)}
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "dict":
            return {word.arg: word.value for word in value.keywords if word.arg}
        return {}

    def literal(self, node: ast.expr | None) -> Any:
        """The number, text or switch that it is; None where it is none or cannot be told."""
        value = self.value(node)
        if isinstance(value, ast.Constant):
            return value.value
        if isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.USub) and isinstance(value.operand, ast.Constant):
            number = value.operand.value
            return -number if isinstance(number, (int, float)) else None
        if isinstance(value, ast.Attribute):
            return self.dotted(value)  # torch.bfloat16
        return self.text(value) if isinstance(value, (ast.JoinedStr, ast.BinOp)) else None

    def is_on(self, node: ast.expr | None) -> bool:
        return self.literal(node) is True

    # Texts

    def text(self, node: ast.expr | None, depth: int = 0) -> str | None:
        """A text as it is put together, HOLE where something is put in. None for what is no text."""
        if node is None or depth > DEEPEST:
            return None
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str) else None
        if isinstance(node, ast.JoinedStr):
            parts = [self.text(part.value, depth + 1) if isinstance(part, ast.FormattedValue) else self.text(part, depth + 1) for part in node.values]
            return "".join(HOLE if part is None else part for part in parts)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            left, right = self.text(node.left, depth + 1), self.text(node.right, depth + 1)
            return None if left is None and right is None else (HOLE if left is None else left) + (HOLE if right is None else right)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            left = self.text(node.left, depth + 1)
            return None if left is None else re.sub(r"%[sdr]", HOLE, left)
        if isinstance(node, ast.Call):
            return self._text_of_call(node, depth)
        value = self.value(node, node.lineno)
        return self.text(value, depth + 1) if value is not node else None

    def _text_of_call(self, node: ast.Call, depth: int) -> str | None:
        if isinstance(node.func, ast.Attribute):
            inner = self.text(node.func.value, depth + 1)
            if inner is not None and node.func.attr == "format":
                return re.sub(r"\{[^{}]*\}", HOLE, inner)
            if inner is not None and node.func.attr in ("strip", "lstrip", "rstrip", "replace"):
                return inner.strip() if node.func.attr == "strip" else inner
            return None
        function = self.functions.get(node.func.id) if isinstance(node.func, ast.Name) else None
        returned = self.returned(function) if function is not None else None
        return self.text(returned, depth + 1) if returned is not None else None

    def returned(self, function: Function) -> ast.expr | None:
        if isinstance(function, ast.Lambda):
            return function.body
        return next((node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None), None)

    @cached_property
    def texts(self) -> list[tuple[ast.expr, str]]:
        """Every text of the script that is no part of another one, docstrings left out."""
        found: list[tuple[ast.expr, str]] = []
        for node in ast.walk(self.script.tree):
            if not isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp, ast.Call)) or isinstance(self.parent(node), (ast.Expr, ast.JoinedStr)):
                continue
            if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Attribute) and node.func.attr == "format"):
                continue
            above = self.parent(node)
            if isinstance(above, ast.BinOp) and isinstance(above.op, (ast.Add, ast.Mod)) and self.text(above) is not None:
                continue
            if isinstance(above, ast.Attribute) and above.attr == "format":
                continue
            text = self.text(node)
            if text:
                found.append((node, text))
        return found

    # What the field's libraries mean

    @cached_property
    def trainers(self) -> list[Call]:
        return [call for call in self.calls if call.name.endswith("Trainer")]

    @cached_property
    def arguments(self) -> list[Call]:
        """TrainingArguments, SFTConfig and their sisters."""
        return [call for call in self.calls if call.name.endswith("TrainingArguments") or re.fullmatch(r"(SFT|DPO|ORPO|KTO|CPO|GRPO)Config", call.name)]

    def argument(self, name: str) -> tuple[Call, ast.expr] | None:
        """Of the arguments of training, or of the trainer itself."""
        return next(((call, call.words[name]) for call in (*self.arguments, *self.trainers) if name in call.words), None)

    @cached_property
    def trainings(self) -> list[Call]:
        """trainer.train()"""
        return [call for call in self.called("train") if call.receiver is not None and self.is_trainer(call.receiver)]

    def is_trainer(self, node: ast.expr) -> bool:
        call = self.call_of(self.value(node))
        return call in self.trainers if call is not None else "trainer" in ast.unparse(node).lower()

    @cached_property
    def generations(self) -> list[Call]:
        return [call for call in self.called("generate") if call.receiver is not None]

    def is_tokenizer(self, node: ast.expr) -> bool:
        call = self.call_of(self.value(node))
        return (call is not None and "Tokenizer" in call.dotted) or "tokenizer" in ast.unparse(node).rpartition(".")[2].lower()

    @cached_property
    def tokenizations(self) -> list[Call]:
        """tokenizer(...), tokenizer.encode(...)"""
        found = []
        for call in self.calls:
            method = call.receiver is not None and call.name in ("encode", "encode_plus", "batch_encode_plus") and self.is_tokenizer(call.receiver)
            if method or (call.receiver is None and "import" not in call.dotted and self.is_tokenizer(call.node.func) and isinstance(call.node.func, ast.Name)):
                found.append(call)
        return found

    @cached_property
    def loads(self) -> list[Call]:
        """Of models: AutoModelForCausalLM.from_pretrained and the like."""
        return [call for call in self.called("from_pretrained") if re.search(r"Model|ForCausalLM|LMHead", call.dotted)]

    def lineage(self, node: ast.expr | None, line: int | None = None, depth: int = 0) -> Iterator[Call]:
        """The calls that a model went through, the last first: get_peft_model, prepare_model_for_kbit_training, from_pretrained."""
        if node is None or depth > DEEPEST:
            return
        if isinstance(node, ast.Attribute) and node.attr == "model":
            call = self.call_of(self.value(node.value, line or node.lineno))
            if call is not None and call in self.trainers:
                yield call
                yield from self.lineage(call.given("model", 0), call.line, depth + 1)
                return
        if isinstance(node, (ast.Name, ast.Attribute)):
            one = self.assignment(node, line or node.lineno)
            if one is not None:
                yield from self.lineage(one.value, one.line, depth + 1)
            return
        call = self.call_of(node)
        if call is None:
            return
        yield call
        if call.name in WRAPPERS or (call.name == "from_pretrained" and re.search(r"Peft|Lora", call.dotted) and "Auto" not in call.dotted):
            yield from self.lineage(call.given("model", 0), call.line, depth + 1)
        elif call.name in SAME_MODEL:
            yield from self.lineage(call.receiver, call.line, depth + 1)
