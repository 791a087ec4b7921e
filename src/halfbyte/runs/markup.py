"""The small pieces of HTML that every part of the page is made of. Whatever comes from data or model goes through `shown`."""

import html
from typing import Any

from halfbyte.runs.words import visible


def shown(value: Any) -> str:
    """Text as HTML: markup escaped, unseen characters as \\u202e; None as a dash."""
    return html.escape(visible(value))


def section(title: str, *parts: str) -> str:
    """A titled part of the page; nothing at all when the run has nothing for it."""
    body = "".join(parts)
    return f"<section><h2>{shown(title)}</h2><div>{body}</div></section>\n" if body else ""


def table(head: list[str], rows: list[list[Any]], kind: str) -> str:
    """`kind` is `numbers`, all but the first column to the right, or `wide`."""
    if not rows:
        return ""
    lines = ["".join(f"<td>{shown(cell)}</td>" for cell in row) for row in rows]
    titles = "".join(f'<th scope="col">{shown(cell)}</th>' for cell in head)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(pairs: list[tuple[str, Any]], kind: str = "") -> str:
    """Names and values; those that are not known are left out."""
    items = "".join(f"<div><dt>{shown(name)}</dt><dd>{shown(value)}</dd></div>" for name, value in pairs if value not in (None, "", "–"))
    return f'<dl class="{kind}">{items}</dl>' if items else ""


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{shown(text)}</p>' if text else ""


def folded(title: str, body: str) -> str:
    """Shut on screen, open on paper."""
    return f"<details><summary>{shown(title)}</summary>{body}</details>" if body else ""
