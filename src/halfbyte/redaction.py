"""Secrets do not leave in text: what looks like one is hidden in log lines, errors, events and plans. The second line of defence.

The first is that nothing here asks for a secret: tokens are read from the environment by the libraries that use them, and a recipe that
holds one is refused before anything is written (recipe/load.py). What is hidden: values of variables that are called a key or a token, the
forms that the services of the field give their tokens, and user and password of an address.
"""

import logging
import os
import re
from typing import Any

HIDDEN = "[hidden]"
SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
SECRET_FORM = re.compile(
    r"\b(?:hf_|gh[oprsu]_)[A-Za-z0-9]{30,}\b|\bgithub_pat_\w{40,}|\bglpat-(?=[\w-]*\d)[\w-]{20,}|\bxox[a-z]-\d{8,}-[\w-]{10,}"
    r"|\bsk-(?=\w*\d)[A-Za-z0-9]{20,}\b|\bsk-or-v1-[0-9a-f]{32,}"
    r"|\bsk-(?:proj|ant|svcacct|admin)-(?=[\w-]*\d)(?=[\w-]*[a-z])(?=[\w-]*[A-Z])[\w-]{32,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
"""Tokens of the services that trainings use, as long as they are given out: folders and data sets begin with hf_ and sk- too."""
USER_OF_ADDRESS = re.compile(r"\b([a-z][a-z0-9+.-]+:/{1,2})[^/\s@\"']+@", re.IGNORECASE)
"""A path takes one of the two slashes away."""
SHORTEST = 12
"""Of the value of a variable: a shorter one would hide words and names of folders."""
WITHOUT_DIGIT = 20


def hide_secrets(text: str) -> str:
    """The same text without what is, or looks like, a secret."""
    for value in _secret_values():
        text = text.replace(value, HIDDEN)
    return USER_OF_ADDRESS.sub(rf"\1{HIDDEN}@", SECRET_FORM.sub(HIDDEN, text))


def hide_in(value: Any) -> Any:
    """In every text of a JSON value."""
    if isinstance(value, str):
        return hide_secrets(value)
    if isinstance(value, dict):
        return {key: hide_in(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [hide_in(inner) for inner in value]
    return value


def holds_secret(text: str) -> str | None:
    """What kind of secret a text holds, in words that do not repeat it."""
    for value, name in _secret_values().items():
        if value in text:
            return f"the value of a variable that is called a key or a token ({name})"
    if SECRET_FORM.search(text):
        return "what has the form of a token"
    return "user and password of an address" if USER_OF_ADDRESS.search(text) else None


def hide_in_logs() -> None:
    """Every log line of this process from here on, whichever library writes it and wherever it goes."""
    make = logging.getLogRecordFactory()
    if getattr(make, "hides_secrets", False):
        return

    def hidden(*given: Any, **more: Any) -> logging.LogRecord:
        record = make(*given, **more)
        try:
            said = record.getMessage()
        except (TypeError, ValueError, KeyError):
            return record  # a call that does not fit its text is told by logging itself
        if (safe := hide_secrets(said)) != said:
            record.msg, record.args = safe, None
        return record

    hidden.hides_secrets = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(hidden)


def _secret_values() -> dict[str, str]:
    """With the names of their variables. No secret is a short word without a digit, the name of a file, or a part of the folder called from."""
    known = {value: name for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= SHORTEST}
    telling = {value: name for value, name in known.items() if len(value) >= WITHOUT_DIGIT or any(letter.isdigit() for letter in value)}
    return {value: name for value, name in telling.items() if not _names_a_place(value)}


def _names_a_place(value: str) -> bool:
    try:
        return value in os.getcwd() or (os.path.isabs(value) and os.path.exists(value))
    except (OSError, ValueError):  # the folder is gone, or the value can be no name
        return False
