"""SECURITY 3.1: a chat template comes with the model. It reaches nothing, changes nothing, and cannot take time or memory without measure."""

import os
import time

import pytest
import transformers.utils.chat_template_utils as theirs

from halfbyte.data import metered as meters
from halfbyte.data.records import Record
from halfbyte.data.render import Template, render_record
from halfbyte.errors import DataError, ModelError
from toys import CHAT_TEMPLATE, make_tokenizer

DOUBLING = "{{% set ns = namespace(v={start}) %}}{{% for i in range(60) %}}{{% set ns.v = {step} %}}{{% endfor %}}{{{{ {use} }}}}"
ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ self.__init__.__globals__.__builtins__ }}",
    "{{ cycler.__init__.__globals__.os.popen('MARK').read() }}",
    "{{ joiner.__init__.__globals__.os.system('MARK') }}",
    "{{ namespace.__init__.__globals__['__builtins__']['open']('MARKER', 'w') }}",
    "{{ raise_exception.__globals__['json'].codecs.open('MARKER', 'w') }}",
    "{{ strftime_now.__globals__ }}",
    "{{ messages.append({'role': 'user', 'content': 'forged'}) }}",
    "{{ messages[0].update({'content': 'forged'}) }}",
    "{{ messages[0].__class__ }}",
    "{{ messages|attr('__class__')|attr('__mro__') }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ ('{0.__' ~ 'class__}').format(messages) }}",
    "{{ '{x.__init__}'.format_map({'x': cycler}) }}",
    "{% set f = '{0.__class__}'.format %}{{ f(messages) }}",
    "{{ ['{0.__class__}']|map('format', messages)|list }}{{ ''.__class__ }}",
    "{{ (messages|map(attribute='__class__')|list)[0].__name__ }}",
    "{% import 'os' as os %}{{ os.system('MARK') }}",
    "{% include '/etc/passwd' %}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ tools.__class__.__base__ }}",
    "{{ namespace(__class__=1) }}{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
    "{% for m in messages recursive %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{{ (messages|string).__len__.__self__.__class__ }}",
    "{{ dict.__call__.__globals__ }}",
]
BOMBS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ range(10000000000)|list }}",
    "{{ 'a' * 10**10 }}",
    "{{ 10**10**10 }}",
    "{{ 'a'.ljust(10**10) }}",
    "{{ 'a'|center(10**10) }}",
    "{{ '%99999999999d' % 1 }}",
    "{{ '{:200000}'.format(1) }}",  # small enough to be made, so that only the look at widths stops it
    "{{ '{:{}}'.format(1, 10**10) }}",
    "{{ 'a'|indent(10**10) }}",
    "{{ {'a': 1}|tojson(indent=10**9) }}",
    "{{ lipsum(n=99999) }}",
    DOUBLING.format(start="'aaaa'", step="ns.v ~ ns.v", use="ns.v"),
    DOUBLING.format(start="'aaaa'", step="ns.v + ns.v", use="ns.v"),
    DOUBLING.format(start="'aaaa'", step="ns.v * 9", use="ns.v"),
    DOUBLING.format(start="'aaaa'", step="ns.v.replace('a', ns.v)", use="ns.v"),
    DOUBLING.format(start="'aaaa'", step="ns.v|replace('a', ns.v)", use="ns.v"),
    DOUBLING.format(start="'aaaa'", step="ns.v.join([ns.v] * 9)", use="ns.v"),
    DOUBLING.format(start="77", step="ns.v * ns.v", use="ns.v"),
    DOUBLING.format(start="[]", step="[ns.v, ns.v]", use="ns.v"),
    DOUBLING.format(start="[]", step="[ns.v, ns.v]", use="ns.v|tojson"),
    DOUBLING.format(start="[]", step="[ns.v, ns.v]", use="'%s' % ns.v"),
    DOUBLING.format(start="[]", step="[ns.v, ns.v]", use="'{}'.format(ns.v)"),
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "{% for i in range(99999) %}{{ 'a' * 40000000 }}{% endfor %}",
    "{{ ('\\t' * 1000000).expandtabs(90000) }}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ '{:99999999999}'.format(1) }}",
]
CONVERSATION = Record("data.csv", 7, messages=({"role": "user", "content": "who is there"}, {"role": "assistant", "content": "the keeper"}))


def write(template: str):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template + CHAT_TEMPLATE
    return render_record(CONVERSATION, Template("chat"), tokenizer)


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_reaches_nothing(template, tmp_path, monkeypatch):
    """It is refused, or what it reaches for is empty; what was handed in stays as it was."""
    marker = tmp_path / "marker"
    for name in ("system", "popen"):
        monkeypatch.setattr(os, name, lambda *given: pytest.fail("a shell was called"))
    try:
        text = "".join(piece.text for piece in write(template.replace("MARKER", str(marker)).replace("MARK", f"touch {marker}")).pieces)
    except (DataError, ModelError) as error:
        text = ""
        refused = error.message
    else:
        refused = ""
    assert "\n" not in refused
    assert not any(word in text for word in ("<class", "<function", "built-in", "module", "forged", "root:")), text
    assert not marker.exists()
    assert [message["content"] for message in CONVERSATION.messages] == ["who is there", "the keeper"]


@pytest.mark.parametrize("template", BOMBS, ids=range(len(BOMBS)))
def test_a_template_without_measure_is_stopped(template):
    began = time.monotonic()
    with pytest.raises((ModelError, DataError)) as caught:
        write(template)
    assert time.monotonic() - began < 15
    assert "\n" not in caught.value.message
    assert "chat template" in caught.value.message


@pytest.mark.parametrize("expression", ["'%200000d' % 1", "'{:200000}'.format(1)", "'%.200000f' % 1", "'%200000s'|format('a')", "'%*d' % (7, 1)"])
def test_a_width_without_measure_is_told_as_that(expression):
    """Each would be made at once, and within the measure of sizes."""
    with pytest.raises(ModelError, match="pads a text to a width without measure"):
        write("{{ " + expression + " }}")


def test_what_is_slow_in_one_stroke_is_stopped_by_the_clock(monkeypatch):
    monkeypatch.setattr(meters, "MOST_SECONDS", 0.5)
    with pytest.raises(ModelError, match=r"takes longer than 0\.5 s"):
        write("{% set x = 'a' * 4000000 %}{% for i in range(99999) %}{{ x.count('b') }}{% endfor %}")


def test_the_sandbox_is_the_immutable_one():
    environment = meters.metered(theirs._compile_jinja_template(CHAT_TEMPLATE).environment)
    assert isinstance(environment, meters.ImmutableSandboxedEnvironment)
    assert isinstance(theirs._compile_jinja_template(CHAT_TEMPLATE).environment, meters.ImmutableSandboxedEnvironment)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index ~ '/' ~ loop.length }}{{ loop.last }}{{ loop.nextitem is defined }}{% endfor %}",
        "{% set ns = namespace(seen='') %}{% for m in messages %}{% set ns.seen = ns.seen ~ m.role ~ ',' %}{% endfor %}{{ ns.seen }}",
        "{% for m in messages[::-1] %}{{ m['content']|trim|upper }}{% endfor %}{{ messages|length * 2 }}{{ '%s-%03d' % ('a', 7) }}",
        "{{ messages|map(attribute='role')|join(', ') }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ messages|tojson(indent=2) }}",
        "{% macro say(m) %}[{{ m.content }}]{% endmacro %}{% for m in messages %}{{ say(m) }}{% endfor %}{{ 'a-b'.split('-')|last }}",
        "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{% for x in range(3) %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
        "{{ 'x' * 3 + 'y' }}{{ 2 ** 10 }}{{ 7 % 3 }}{{ [1] + [2] }}{{ '{:>5}|{}'.format('a', 1) }}{{ 'ab'|replace('a', 'b') }}{{ 'a\nb'|indent(2) }}",
    ],
)
def test_on_the_meter_an_honest_template_writes_the_same(template):
    plain = theirs._compile_jinja_template(template)
    given = {"messages": list(CONVERSATION.messages), "tools": None, "add_generation_prompt": False}
    environment = meters.metered(plain.environment)
    assert environment.from_string(template).render(**given) == plain.render(**given)


def test_a_long_conversation_is_within_the_measure():
    """Ten thousand turns of two hundred characters."""
    turns = tuple({"role": ("user", "assistant")[turn % 2], "content": f"{turn} " * 40} for turn in range(10_000))
    environment = meters.metered(theirs._compile_jinja_template("").environment)
    text = environment.from_string(CHAT_TEMPLATE).render(messages=turns, add_generation_prompt=True)
    assert text.endswith("assistant\n")
    assert environment.meter.turns < meters.MOST_TURNS / 4
