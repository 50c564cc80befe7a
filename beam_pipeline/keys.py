"""Secret keys for hashing ids, read where used and never written to a graph or file."""

import hashlib
import os

from headct.errors import UsageError
from headct.stores import FileInfo, InputFiles, open_file

KEY_VARIABLE = "ICH_IDENTIFIER_KEY"
_MIN_KEY_BYTES = 16
_INPUT_BYTES = 1 << 18  # half of a slice: its noise cannot be guessed


def read_key(path: str | None, patience: float) -> bytes:
    """Return the key of `--identifiers hash`.

    Args:
        path: path or URL of the key file; None to use the environment variable.
        patience: seconds to retry a failing request.

    Raises:
        UsageError: the key is missing or too short.
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
    """Return a value that distinguishes keys and reveals nothing else."""
    return hashlib.sha256(b"identifier key check" + key).hexdigest()[:16]


def input_key(files: InputFiles, listed: list[FileInfo]) -> bytes:
    """Return a key derived from the input, equal on all workers.

    The key is a digest of the first readable file, so only readers of the input can compute it. Ids
    that become ordinals are hashed with the key until then: an unfinished directory cannot be
    compared with a list of all possible ids. If no file is readable, the key is a digest of the
    listing, which is weaker than a digest of content.

    Args:
        files: the input.
        listed: the first listed files.

    Raises:
        StoreError: the input's store fails.
    """
    with files.reading() as reading:
        for info in listed:
            try:
                return reading.part(info.path, 0, _INPUT_BYTES, _digest).result()
            except OSError:  # the file is rejected later
                continue
    return _digest(repr(listed).encode())


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()
