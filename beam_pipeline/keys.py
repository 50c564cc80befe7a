"""The secrets that ids are hashed with, read where they are used: no graph, no file holds one."""

import hashlib
import os

from headct.errors import UsageError
from headct.stores import FileInfo, InputFiles, open_file

KEY_VARIABLE = "ICH_IDENTIFIER_KEY"
_MIN_KEY_BYTES = 16
_INPUT_BYTES = 1 << 18  # half of a slice: more noise than can be guessed


def read_key(path: str | None, patience: float) -> bytes:
    """The key of `--identifiers hash`.

    Args:
        path: of the file that holds it, or its URL; None to take the environment variable.
        patience: seconds after which a request that fails is given up.

    Raises:
        UsageError: there is none, or it is too short.
        StoreError: the file's store fails.
    """
    if path is None:
        key = os.environb.get(KEY_VARIABLE.encode(), b"")
    else:
        try:
            with open_file(path, patience) as file:
                key = file.read().strip()
        except OSError as error:
            raise UsageError(f"--identifier_key_file {path}: {error.strerror}") from None
    if len(key) < _MIN_KEY_BYTES:
        raise UsageError(
            f"--identifiers hash needs a key of {_MIN_KEY_BYTES} bytes or more, from "
            f"--identifier_key_file or the environment variable {KEY_VARIABLE}"
        )
    return key


def key_check(key: bytes) -> str:
    """Tells one key from another, and nothing else of them."""
    return hashlib.sha256(b"identifier key check" + key).hexdigest()[:16]


def input_key(files: InputFiles, listed: list[FileInfo]) -> bytes:
    """A key that only who can read the input can know, the same for every worker.

    It is made of the bytes of the first file that can be read. Ids that are to be numbered are
    hashed with it in the meantime, so that what lies in an unfinished directory cannot be compared
    with a list of all ids that there may be. Where none of them can be read, it is made of what is
    listed: weaker, but ids are never left as they are.

    Args:
        files: the input.
        listed: its first files.

    Raises:
        StoreError: the input's store fails.
    """
    with files.reading() as reading:
        for info in listed:
            try:
                return reading.part(info.path, 0, _INPUT_BYTES, _digest).result()
            except OSError:  # of this file; it will be rejected
                continue
    return _digest(repr(listed).encode())


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()
