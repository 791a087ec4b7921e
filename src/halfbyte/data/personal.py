"""Personal data in a text: found by its form, replaced by a tag, or masked so that it can be shown.

Found are e-mail addresses, phone numbers, @handles, links, card numbers (Luhn checksum and the lengths that issuers use) and IBANs
(country length and checksum). Names, addresses, what is spelt out ("bob at example dot com") and all that has no such form stay: a text
without findings is not anonymous. Every search is bounded by the distance to its anchor (an @, a ://, a digit), so time is linear in the text.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import phonenumbers

KINDS = ("email", "phone", "handle", "link", "card", "iban")


class Found(NamedTuple):
    """One piece of personal data, text[start:end]."""

    kind: str
    start: int
    end: int


def find_personal(text: str, kinds: Iterable[str] = KINDS, region: str | None = None) -> list[Found]:
    """What of these kinds stands in the text, from left to right, nothing twice; `region` (US, DE, ...) is the country of numbers without a +.

    Where two overlap the longer one gives the kind and both are covered, so that no part of either is left.
    """
    plain, places = _plain(text)
    kinds = frozenset(kinds)
    hits: list[Found] = []
    if "@" in plain:
        hits += _addresses(plain, kinds)
    if "link" in kinds and any(sign in plain for sign in ("://", "www.", "WWW.")):
        hits += _links(plain)
    if any(digit in plain for digit in "0123456789"):
        if "iban" in kinds:
            hits += _ibans(plain)
        if "phone" in kinds or "card" in kinds:
            hits += _numbers(plain, kinds, region)
    found = _apart(hits)
    # A hit ends behind its last character, not before the next one: what stands between them may be invisible.
    return [Found(kind, places[start], places[end - 1] + 1) for kind, start, end in found] if places else found


def redact(text: str, kinds: Iterable[str], region: str | None = None) -> tuple[str, Counter[str]]:
    """The text with tags such as [EMAIL] in place of what was found, and how many of each kind. The rest may still tell who wrote it."""
    found = find_personal(text, kinds, region)
    return _replaced(text, [(hit, f"[{hit.kind.upper()}]") for hit in found]), Counter(hit.kind for hit in found)


def mask(text: str, start: int = 0, end: int | None = None) -> str:
    """text[start:end] as it can be shown: of what was found only a few characters are kept, `j***@g***.com` or `**** **** **** 4242`.

    Personal data are looked for in the whole text, so that none is shown because it was cut; the part grows to hold them whole.
    """
    end = len(text) if end is None else end
    found = [hit for hit in find_personal(text) if hit.start < end and hit.end > start]
    if found:
        start, end = min(start, found[0].start), max(end, found[-1].end)
    return _replaced(text[:end], [(hit, _starred(hit.kind, _plain(text[hit.start : hit.end])[0])) for hit in found], start)


def _replaced(text: str, changes: Iterable[tuple[Found, str]], start: int = 0) -> str:
    pieces, done = [], start
    for hit, instead in changes:
        pieces += [text[done : hit.start], instead]
        done = hit.end
    return "".join([*pieces, text[done:]])


def _starred(kind: str, said: str) -> str:
    if kind == "email":
        name, _, domain = said.rpartition("@")
        return f"{name[:1]}***@{domain[:1]}***.{domain.rpartition('.')[2]}"
    if kind == "handle":
        return said[:2] + "***"
    if kind == "link":
        opening = said.find("://") + 3 if "://" in said else len("www.")
        return f"{said[:opening]}{said[opening : opening + 1]}***"
    first, last = {"card": (0, 4), "iban": (2, 2), "phone": (0, 2)}[kind]
    places = [at for at, character in enumerate(said) if character.isalnum()]
    hidden = set(places[first : len(places) - last])
    return "".join("*" if at in hidden else character for at, character in enumerate(said))


def _apart(hits: list[Found]) -> list[Found]:
    """No two overlap: a hit that touches the one before is joined with it, under the kind of the longer."""
    found: list[Found] = []
    for hit in sorted(hits, key=lambda hit: (hit.start, -hit.end)):
        if not found or hit.start >= found[-1].end:
            found.append(hit)
            continue
        before = found[-1]
        longer = max(before, hit, key=lambda one: one.end - one.start)
        found[-1] = Found(longer.kind, before.start, max(before.end, hit.end))
    return found


# --- other ways to write the same characters ---

# Characters that take no room: zero-width blanks and joiners, direction marks, the soft hyphen, the byte-order mark.
_INVISIBLE = frozenset(map(chr, (0xAD, 0x61C, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFE0E, 0xFE0F, 0xFEFF)))
_ASCII = re.compile("[\x00-\x7f]+")


def _plain(text: str) -> tuple[str, Sequence[int]]:
    """The text in plain characters, and where each stood; no places when none has moved."""
    if text.isascii():
        return text, ()
    others = set(_ASCII.sub("", text))
    for character in others:
        if (plain := _plain_character(character)) != character:
            text = text.replace(character, plain)
    if others.isdisjoint(_INVISIBLE):
        return text, ()
    places = [at for at, character in enumerate(text) if character not in _INVISIBLE]
    return "".join([text[at] for at in places]), places


@cache
def _plain_character(character: str) -> str:
    """Digits of other scripts, full-width forms, other blanks and dashes: the one plain character that each stands for."""
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    if "\uff01" <= character <= "\uff5e" or character == "\ufe6b":
        return unicodedata.normalize("NFKC", character)
    if unicodedata.category(character) == "Zs":
        return " "
    return "-" if "\u2010" <= character <= "\u2013" or character == "\u2212" else character


# --- e-mail addresses and handles: both hang on an @ ---

_DOMAIN = re.compile(r"(?:[\w-]{1,63}\.){1,8}(?:xn--[\w-]{2,59}|[^\W\d_]{2,24})")
_NAME_MARKS = frozenset("._%+-'")
_HANDLE = re.compile(r"(?!\d+(?:[ap]m|st|nd|rd|th|k|x)?\b)\w(?:[\w.-]{0,28}\w)")
# Words behind an @ that are no one's name: of CSS, documentation comments, Python and Java.
_NOT_A_NAME = frozenset({
    "media", "import", "charset", "keyframes", "supports", "layer", "container", "font-face",
    "param", "params", "return", "returns", "throws", "exception", "see", "since", "version", "deprecated", "todo", "type", "typedef",
    "property", "staticmethod", "classmethod", "abstractmethod", "dataclass", "overload", "cache", "lru_cache", "contextmanager", "wraps",
    "override", "autowired", "suppresswarnings", "nullable", "notnull", "interface", "implementation", "end", "test",
})  # fmt: skip
_DECORATED = re.compile(
    r"(?:\([^\n]{0,200}\))?[ \t]*\n(?:[ \t]{0,40}@[^\n]{1,200}\n){0,8}[ \t]*(?:def |class |async def |public |private |protected |func |fun )"
)


def _addresses(text: str, kinds: frozenset[str]) -> Iterator[Found]:
    done = 0
    at = text.find("@")
    while at >= 0:
        domain = _DOMAIN.match(text, at + 1) if at > done and _in_name(text[at - 1]) else None
        if domain:
            start = at
            while start > done and _in_name(text[start - 1]):
                start -= 1
            start += len(text[start:at]) - len(text[start:at].lstrip("'.-"))
            if start < at:
                done = domain.end()
                if "email" in kinds:
                    yield Found("email", start, done)
        elif "handle" in kinds and (handle := _handle(text, at)):
            yield handle
        at = text.find("@", at + 1)


def _in_name(character: str) -> bool:
    return character.isalnum() or character in _NAME_MARKS


def _handle(text: str, at: int) -> Found | None:
    before = text[at - 1] if at else " "
    name = _HANDLE.match(text, at + 1)
    if name is None or before.isalnum() or before in "_@.%+-/\\¡" or name[0].lower() in _NOT_A_NAME or text.startswith(("(", "/", "::"), name.end()):
        return None
    if before in "\n \t" and _DECORATED.match(text, name.end()) and not text[text.rfind("\n", max(0, at - 40), at) + 1 : at].strip():
        return None
    end = name.end()
    if text.startswith("@", end) and (server := _DOMAIN.match(text, end + 1)):  # Mastodon: @name@server
        end = server.end()
    return Found("handle", at, end)


# --- links ---

_SCHEME = re.compile(r"://[\w\[][^\s<>\"|\\^`{}]*")
_WWW = re.compile(r"(?:www|WWW)\.[\w-]{1,63}\.[^\s<>\"|\\^`{}]+")


def _links(text: str) -> Iterator[Found]:
    for found in _SCHEME.finditer(text):
        before = text[max(0, found.start() - 5) : found.start()].lower()
        scheme = 5 if before == "https" else 4 if before.endswith("http") else 0
        if scheme:
            yield Found("link", found.start() - scheme, _trimmed(text, found.start(), found.end()))
    for found in _WWW.finditer(text):
        if found.start() == 0 or not text[found.start() - 1].isalnum():
            yield Found("link", found.start(), _trimmed(text, found.start(), found.end()))


def _trimmed(text: str, start: int, end: int) -> int:
    """Where a link ends: the mark that ends the sentence is not part of it, a bracket only if it was opened inside."""
    link = text[start:end]
    kept = link.rstrip(".,;:!?'*_)]”’»")
    if kept.count("(") > kept.count(")") and link.startswith(")", len(kept)):
        kept += ")"
    return start + len(kept)


# --- IBAN: country, two check digits, and a number whose length the country gives ---

# SWIFT, IBAN Registry, release 99.
_IBAN_LENGTHS = dict(
    AD=24, AE=23, AL=28, AT=20, AZ=28, BA=20, BE=16, BG=22, BH=22, BI=27, BR=29, BY=28, CH=21, CR=22, CY=28, CZ=24, DE=22, DJ=27, DK=18, DO=28,
    EE=20, EG=29, ES=24, FI=18, FK=18, FO=18, FR=27, GB=22, GE=22, GI=23, GL=18, GR=27, GT=28, HN=28, HR=21, HU=28, IE=22, IL=23, IQ=23, IS=26,
    IT=27, JO=30, KW=30, KZ=20, LB=28, LC=32, LI=21, LT=20, LU=20, LV=21, LY=25, MC=27, MD=24, ME=22, MK=19, MN=20, MR=27, MT=31, MU=30, NI=28,
    NL=18, NO=15, OM=23, PK=24, PL=28, PS=29, PT=25, QA=29, RO=24, RS=22, RU=33, SA=24, SC=31, SD=18, SE=24, SI=19, SK=24, SM=27, SO=23, ST=25,
    SV=28, TL=23, TN=24, TR=26, UA=29, VA=22, VG=24, XK=20, YE=30,
)  # fmt: skip
# Anchored on the check digits, which are far rarer than letters.
_CHECK_DIGITS = re.compile(r"[0-9]{2}(?<=[A-Za-z]{2}..)(?<![A-Za-z0-9]..[0-9]{2})")


def _ibans(text: str) -> Iterator[Found]:
    for found in _CHECK_DIGITS.finditer(text):
        start = found.start() - 2
        length = _IBAN_LENGTHS.get(text[start : start + 2].upper())
        rest = _account(length - 4).match(text, found.end()) if length else None
        if rest and _adds_up(text[start : rest.end()]):
            yield Found("iban", start, rest.end())


@cache
def _account(length: int) -> re.Pattern[str]:
    return re.compile(rf"(?:[ -]?[A-Za-z0-9]){{{length}}}(?![A-Za-z0-9])")


def _adds_up(iban: str) -> bool:
    """ISO 7064, mod 97-10: the first four characters go to the end, letters count from 10."""
    signs = re.sub("[ -]", "", iban)
    return int("".join(str(int(sign, 36)) for sign in signs[4:] + signs[:4])) % 97 == 1


# --- numbers: cards and phones are looked for only in runs of at least seven digits ---

_RUN = re.compile(r"[0-9](?:[ ().\-/]{0,3}[0-9]){6,}")
_CARD = re.compile(r"(?<![0-9])(?:[0-9]{13,19}|[0-9]{4}(?:[ -][0-9]{4}){3}(?:[ -][0-9]{1,3})?|[0-9]{4}[ -][0-9]{6}[ -][0-9]{4,5})(?![0-9])")
# First digits (a range) and lengths that the issuers give out: ISO/IEC 7812, and the issuers' own pages.
_ISSUERS = (
    ("4", "4", (13, 16, 19)), ("51", "55", (16,)), ("2221", "2720", (16,)),  # Visa, Mastercard
    ("34", "34", (15,)), ("37", "37", (15,)), ("36", "36", (14,)), ("38", "39", (14,)), ("300", "305", (14,)),  # American Express, Diners Club
    ("6011", "6011", (16, 19)), ("644", "659", (16, 19)), ("3528", "3589", (16, 19)), ("62", "62", (16, 17, 18, 19)),  # Discover, JCB, UnionPay
    ("5018", "5018", (16, 18, 19)), ("5020", "5020", (16, 18, 19)), ("5038", "5038", (16, 18, 19)), ("6304", "6304", (16, 18, 19)),  # Maestro
    ("6759", "6763", (16, 18, 19)),
)  # fmt: skip
# With + or 00 a number says its country; the last digits may belong to what follows it.
_ABROAD = re.compile(r"(?<![\w+.,])(?:\+|00)[ (]{0,2}[1-9](?:[ ().\-/]{0,3}[0-9]){6,14}(?![0-9])")
# Written forms of North America, and of countries that dial 0 before the area.
_NOT_INSIDE = r"(?<![\w+$€£#%])(?<![.,/-])"
_AMERICAN = re.compile(_NOT_INSIDE + r"(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4}(?![\w-]|[., ][0-9])")
_WITH_ZERO = re.compile(
    _NOT_INSIDE + r"(?![0-9]{1,2}([./ -])[0-9]{1,2}\1[0-9]{4}(?![0-9]))"  # a date
    r"(?:\(0[1-9][0-9]{0,4}\)|0[1-9][0-9]{0,4})(?:[ ./-]{1,3}[0-9]{2,8}){1,5}(?![\w-]|[.,][0-9])"
)
_ZERO_REGIONS = ("GB", "FR", "DE", "AU", "NL", "IN", "JP")
_ANNOUNCED = re.compile(
    r"\b(?:tel|telephone|phone|mobile|cell|cellphone|fax|whatsapp|telefon|handy|call (?:me|us))\b\W{0,3}(?:(?:number|no|nr|is|at|on)\b\W{0,3}){0,3}$", re.I
)
# Asking phonenumbers costs 30 us; after so many numbers in one text the written form alone decides, which errs towards the tag.
_MOST_CHECKED = 10_000


def _numbers(text: str, kinds: frozenset[str], region: str | None) -> Iterator[Found]:
    numbers = _Numbers(region)
    for run in _RUN.finditer(text):
        if "card" in kinds:
            for card in _CARD.finditer(text, run.start(), run.end()):
                if _is_card(card[0]):
                    yield Found("card", *card.span())
        if "phone" in kinds:
            yield from numbers.find(text, run.start(), run.end())


def _is_card(number: str) -> bool:
    digits = re.sub("[ -]", "", number)
    if not any(low <= digits[: len(low)] <= high and len(digits) in lengths for low, high, lengths in _ISSUERS):
        return False
    twice = [2 * int(digit) for digit in digits[-2::-2]]
    return (sum(int(digit) for digit in digits[-1::-2]) + sum(double // 10 + double % 10 for double in twice)) % 10 == 0  # Luhn, ISO/IEC 7812-1


class _Numbers:
    """Phone numbers of one text; remembers how often the library was asked."""

    def __init__(self, region: str | None):
        self.region = region
        self.checked = 0

    def find(self, text: str, start: int, end: int) -> Iterator[Found]:
        """Those in text[start:end], a run of digits and separators."""
        first = max(0, start - 3)  # a + and a bracket may stand before the first digit
        last = min(len(text), end + 1)  # what follows decides whether the number ends here
        for found in _ABROAD.finditer(text, first, end):
            for stop in _ends(found):
                if self._is_valid("+" + re.sub(r"\D", "", found[0][: stop - found.start()]).removeprefix("00"), ()):
                    yield Found("phone", found.start(), stop)
                    break
        for form, regions in ((_AMERICAN, ("US",)), (_WITH_ZERO, _ZERO_REGIONS)):
            for found in form.finditer(text, first, last):
                if 9 <= sum(map(str.isdigit, found[0])) <= 12 and self._is_valid(found[0], regions):
                    yield Found("phone", *found.span())
        digits = sum(map(str.isdigit, text[start:end])) if end - start <= 30 else 0
        announced = 7 <= digits <= 12 and _ANNOUNCED.search(text[max(0, start - 32) : start].rstrip("("))
        if announced or (7 <= digits <= 15 and self.region and self._is_valid(text[start:end], (self.region,))):
            yield Found("phone", start, end)

    def _is_valid(self, number: str, regions: Sequence[str]) -> bool:
        """Of one of the regions; of the country that it names when there are none."""
        for region in regions or (None,):
            self.checked += 1
            if self.checked > _MOST_CHECKED:
                return True
            try:
                if phonenumbers.is_valid_number(phonenumbers.parse(number, region)):
                    return True
            except phonenumbers.NumberParseException:
                continue
        return False


def _ends(found: re.Match[str]) -> list[int]:
    """Where a number may end: after its last group of digits, or one or two groups before."""
    return [found.start() + group.end() for group in re.finditer(r"[0-9]+", found[0])][:-4:-1]
