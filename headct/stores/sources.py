"""Sources, the paths of the input's files: as tables hold them, and as they are shown."""

from headct.printable import escape_controls


def encode_source(path: str) -> bytes:
    """A path as tables hold it: names of files need not be UTF-8."""
    return path.encode("utf-8", "surrogateescape")


def decode_source(stored: bytes) -> str:
    """The path that was encoded, to open a file with."""
    return stored.decode("utf-8", "surrogateescape")


def show_source(path: str) -> str:
    """A path as it is written and shown: control characters, and what is no UTF-8, are escaped."""
    return escape_controls(encode_source(path).decode("utf-8", "backslashreplace"))
