"""Keys of objects: which ones the obstore library can ask for."""

import re

_CONTROL_CHARACTER = re.compile(r"[\0-\x1f\x7f]")
_NO_NAMES = frozenset({"", ".", ".."})  # for the library, which reads a key as a path


def is_usable(key: str) -> bool:
    """Whether the library can ask for an object: S3 and its relatives allow any text as a key."""
    return not _CONTROL_CHARACTER.search(key) and _NO_NAMES.isdisjoint(key.split("/"))


def why_unusable(key: str) -> str:
    """What is wrong with a key that is not usable, in a few words."""
    if _CONTROL_CHARACTER.search(key):
        return "its key has a control character"
    if key.startswith("/") or key.endswith("/"):
        return f"its key {'begins' if key.startswith('/') else 'ends'} with a slash"
    return "its key has '//'" if "//" in key else "its key has the part '.' or '..'"
