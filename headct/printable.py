"""Printing of untrusted text: escapes control characters, hides secrets in URLs."""

import json
import re
from typing import Any

# Characters that end a line, move the cursor or change the direction of writing.
_UNSHOWN = re.compile("[\0-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\",;]+")
_SECRET = re.compile(
    r"\b((?:x-amz|x-goog)-\w[\w-]*|sig|signature|\w*token|awsaccesskeyid|password)=[^&\s'\",;]+",
    re.IGNORECASE,
)
_PUBLIC = re.compile(r"project=[\w:.-]+")  # a link to a job
_HIDDEN = "***"


def escape_controls(text: str) -> str:
    r"""Escape control characters: `\x1b` for ESC, and so on."""
    return _UNSHOWN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def hide_secrets(text: str) -> str:
    """Hide passwords, tokens and signatures in the URLs of a text."""
    if "=" not in text and "@" not in text:
        return text
    return _SECRET.sub(rf"\1={_HIDDEN}", _URL.sub(lambda found: _hide(found[0]), text))


def _hide(url: str) -> str:
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    user, at, host = place.rpartition("@")
    # in URLs of Azure, the user may be a container
    if at and (":" in user or scheme.lower() in ("http", "https")):
        place = f"{_HIDDEN}@{host}"
    shown = f"{scheme}://{place}{slash}{path}"
    before, mark, query = shown.partition("?")
    hidden = mark and "=" in query and not _PUBLIC.fullmatch(query)
    return f"{before}?{_HIDDEN}" if hidden else shown


def show_line(text: object) -> str:
    """Return a message as one printable line, without secrets."""
    return escape_controls(hide_secrets(str(text)))


_LONGEST_QUOTE = 40  # characters


def quoted(text: str) -> str:
    """Quote user text for a message: shortened, control characters escaped."""
    return repr(text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}...")


LONGEST_SHOWN = 60  # characters


def shown(value: Any) -> str:
    """Format a JSON or TOML value for a message: short, one line, printable."""
    if isinstance(value, dict):
        return "{...}" if value else "{}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."
