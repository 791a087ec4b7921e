"""Rules on what is unsafe, and on what goes out unmeasured."""

import ast
import re
from collections.abc import Iterator

from halfbyte.checks.program import Program
from halfbyte.checks.rule import Seen, rule
from halfbyte.checks.rules.splits import TEST, mentions
from halfbyte.checks.scripts import SECRET
from halfbyte.checks.versions import HOLES, numbers


@rule(
    "fault",
    "whoever can write to that repository runs code on this machine, at each load",
    "leave it out: transformers knows the family itself; or name a revision whose code was read",
)
def runs_code_of_a_stranger(program: Program) -> Iterator[Seen]:
    for call in program.calls:
        node = call.words.get("trust_remote_code")
        if node is not None and program.is_on(node) and "revision" not in call.words and "code_revision" not in call.words:
            yield node, "trust_remote_code=True"


@rule(
    "fault",
    "the token goes wherever the file goes: to the repository, to colleagues, into backups",
    "take it back on the hub's page; then read it from the environment (HF_TOKEN) or from `hf auth login`",
)
def token_typed_in(program: Program) -> Iterator[Seen]:
    # Words that stand for a token in an example.
    example = re.compile(r"your|here|token|xxx|\.\.\.|<.*>|^$", re.I)
    for node, text in program.texts:
        if SECRET.match(text) and not re.fullmatch(r"[0-9a-f]{40}", text) and not example.search(text[3:]):
            yield node, "a token stands in the text"
    for call in program.called("login", "notebook_login", "from_pretrained", "push_to_hub"):
        given = (
            call.words.get("token") or call.words.get("key") or call.words.get("use_auth_token") or (call.given("token", 0) if call.name == "login" else None)
        )
        text = program.literal(given)
        if given is not None and isinstance(text, str) and len(text) > 12 and not example.search(text) and not isinstance(program.value(given), ast.Attribute):
            yield given, "a token stands in the text"


@rule(
    "fault",
    "a version with a known hole is asked for, and stays in every environment that is made from this file",
    "the version named here, or a later one",
)
def version_with_a_hole(program: Program) -> Iterator[Seen]:
    for pin in program.script.pins:
        floor, hole = HOLES.get(pin.package.replace("_", "-"), (None, ""))
        if floor is None:
            continue
        exact = pin.sign in ("==", "<=", "~=")
        if numbers(pin.version) < numbers(floor) if exact else numbers(pin.version) <= numbers(floor):
            yield pin.line, f"{pin.package}{pin.sign}{pin.version}, needs {floor}: {hole}"


@rule(
    "note",
    "what is pushed is whatever state the run stopped in, for everybody, before anyone has measured it",
    "push by hand, after base and tuned were compared on rows that were never trained on",
)
def pushed_unmeasured(program: Program) -> Iterator[Seen]:
    pushed = program.argument("push_to_hub")
    if pushed is not None and program.is_on(pushed[1]) and not mentions(program, TEST):
        yield pushed[1], "push_to_hub=True, and no test rows"
