"""Untrusted text, made printable: no control characters of file names, no passwords of URLs."""

import json
import re
from typing import Any

# What ends a line, moves the cursor or turns the direction of writing.
_UNSHOWN = re.compile("[\0-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\",;]+")
_SECRET = re.compile(
    r"\b((?:x-amz|x-goog)-\w[\w-]*|sig|signature|\w*token|awsaccesskeyid|password)=[^&\s'\",;]+",
    re.IGNORECASE,
)
_PUBLIC = re.compile(r"project=[\w:.-]+")  # a link to a job
_HIDDEN = "***"


def escape_controls(text: str) -> str:
    r"""A text in which `\x1b` stands for the character ESC, and so on."""
    return _UNSHOWN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def hide_secrets(text: str) -> str:
    """A text without the passwords, tokens and signatures of the URLs in it."""
    if "=" not in text and "@" not in text:
        return text
    return _SECRET.sub(rf"\1={_HIDDEN}", _URL.sub(lambda found: _hide(found[0]), text))


def _hide(url: str) -> str:
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    user, at, host = place.rpartition("@")
    # The container of an address of Azure stands there, too.
    if at and (":" in user or scheme.lower() in ("http", "https")):
        place = f"{_HIDDEN}@{host}"
    shown = f"{scheme}://{place}{slash}{path}"
    before, mark, query = shown.partition("?")
    hidden = mark and "=" in query and not _PUBLIC.fullmatch(query)
    return f"{before}?{_HIDDEN}" if hidden else shown


def show_line(text: object) -> str:
    """A message as one line of a terminal or a log."""
    return escape_controls(hide_secrets(str(text)))


_LONGEST_QUOTE = 40  # characters


def quoted(text: str) -> str:
    """A text of the user's in quotes, for a message: control characters escaped, and cut."""
    return repr(text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}...")


LONGEST_SHOWN = 60  # characters


def shown(value: Any) -> str:
    """A value of a JSON or TOML file for a message: short, one line, printable characters."""
    if isinstance(value, dict):
        return "{...}" if value else "{}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."
