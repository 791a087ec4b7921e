"""Faults of a text that can be told without any other row: marks, damaged characters, pages of the web, missing values spelt out."""

import re
import unicodedata
from collections.abc import Iterator
from functools import cache

RUN_CHARACTERS = 80  # no word is so long in a script that writes blanks
SIGN_SHARE = 0.5
ASCII = re.compile("[\x00-\x7f]+")
MISSING = {"na", "n/a", "#n/a", "<na>", "nan", "none", "null"}

_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ \n\t"
_MARKS = re.compile(
    r"</?s>|\[/?INST\]|<</?SYS>>|<[|｜][\w▁ -]{1,40}[|｜]>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk|mask)>"
    r"|\[(?:CLS|SEP|PAD|MASK|UNK)\]|<(?:HUMAN|ASSISTANT)>:"
)
_GUTENBERG = re.compile(r"\*{3} ?(?:START|END) OF TH(?:E|IS) PROJECT GUTENBERG|Project Gutenberg(?:™|-tm| License| Literary| eBook)|gutenberg\.(?:org|net)")
_PHRASES = (
    "sign up for our newsletter", "subscribe to our newsletter", "all rights reserved", "accept all cookies", "we use cookies", "privacy policy",
    "terms of service", "share this article", "click here to", "read more:", "advertisement\n", "please enable javascript", "skip to main content",
)  # fmt: skip
_HTML = re.compile(
    r"</?(?:p|br|div|span|a|b|i|u|em|strong|font|table|tr|td|th|ul|ol|li|h[1-6]|img|html|head|body|script|style|center|blockquote)(?:\s[^<>]{0,200})?/?>"
    r"|&(?:amp|lt|gt|quot|nbsp|apos|mdash|ndash|hellip|rsquo|lsquo|#[0-9]{1,6}|#x[0-9a-fA-F]{1,5});"
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f]")  # a form feed and U+0085 break pages and lines
# Name, what stands in every text that can have it, and how it looks.
_SEARCHED = (
    ("typed-in control marks", ("<", "["), _MARKS),
    ("HTML", ("<", "&"), _HTML),
    ("Project Gutenberg header or licence", ("utenberg", "UTENBERG"), _GUTENBERG),
    ("control characters", ("",), _CONTROL),
)
_ODD = {
    "lost characters": {"\ufffd"},
    "direction marks": set(map(chr, (0x200E, 0x200F, 0x61C, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))),
    "zero-width characters": set("\u00ad\u200b\u2060\ufeff"),  # not the joiners, which emoji, Persian and Hindi need
    "private-use characters": set(map(chr, range(0xE000, 0xF900))),
}
# Bytes as cp1252 or Latin-1 shows them.
_BYTES = {shown: byte for byte in range(0x80, 0x100) for charset in ("latin-1", "cp1252") for shown in bytes([byte]).decode(charset, "ignore")}
_TAIL = f"[{re.escape(''.join(character for character, byte in _BYTES.items() if byte < 0xC0))}]"
# UTF-8 sequences shown byte by byte: Latin-1 letters, punctuation, emoji; the rest only in pairs, since "René——" and „KÜ“ are honest text.
_TWICE = re.compile(f"[ÂÃ]{_TAIL}|[âï]{_TAIL}{{2}}|ð{_TAIL}{{3}}|(?:[Ä-ß]{_TAIL}|[à-î]{_TAIL}{{2}}){{2,}}")


def text_faults(text: str, words: list[str]) -> Iterator[tuple[str, int, int]]:
    """(name, start, end) of the first of each kind."""
    for name, signs, pattern in _SEARCHED:
        if any(sign in text for sign in signs) and (found := pattern.search(text)):
            yield (name, *found.span())
    lowered = text.lower()
    for phrase in _PHRASES:
        if (at := lowered.find(phrase)) >= 0:
            yield ("phrases of web pages", at, at + len(phrase))
            break
    longest = max(words if text.isascii() else filter(str.isascii, words), key=len, default="")
    is_dump = len(longest) >= RUN_CHARACTERS and "://" not in longest and len(set(longest)) > 3  # no link, and no rule drawn of a few signs
    if is_dump or (text.isascii() and len(text) >= RUN_CHARACTERS and len(text.encode().translate(None, _LETTERS)) > SIGN_SHARE * len(text)):
        at = text.find(longest)
        yield ("not text", at, at + len(longest))
    others = set() if text.isascii() else set(ASCII.sub("", text))
    for name, characters in _ODD.items():
        if here := others & characters:
            at = min(map(text.find, here))
            yield (name, at, at + 1)
    for found in _TWICE.finditer(text) if len(others & _BYTES.keys()) > 1 else ():
        try:
            bytes([_BYTES[character] for character in found[0]]).decode()
        except UnicodeDecodeError:
            continue
        yield ("double-encoded text", *found.span())
        break


@cache
def script_of(character: str) -> str:
    """The script of a letter by the first word of its name; those that one language mixes count as one."""
    name = unicodedata.name(character, "").split(" ")[0].split("-")[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO") else name


def spells_missing(text: str) -> bool:
    """Whether a cell holds nothing but the word for nothing, as other programs write it."""
    return len(text) < 10 and text.strip().lower() in MISSING
