"""Ids of people and files: secret keys, never written to a graph or file, and keyed hashes."""

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from headct.errors import UsageError
from headct.stores import InputFiles, open_file

KEY_VARIABLE = "ICH_IDENTIFIER_KEY"
_MIN_KEY_BYTES = 16
_INPUT_BYTES = 1 << 18  # half of a slice: its noise cannot be guessed
_HASH_CHARACTERS = 16  # 64 bits: no collision among a million ids
_SHORTEST_IDENTIFIER = 4  # letters and digits
# No PatientID has this prefix: blanks around the values, also around a backslash, are stripped.
_STUDY = "study \\ "


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


def input_key(files: InputFiles, paths: Sequence[str]) -> bytes:
    """Return a key derived from the input, equal on all workers.

    The key is a digest of the first readable file, so only readers of the input can compute it. Ids
    that become ordinals are hashed with the key until then: an unfinished directory cannot be
    compared with a list of all possible ids. If no file is readable, the key is a digest of the
    paths, which is weaker than a digest of content.

    Args:
        files: the input.
        paths: the first listed files.

    Raises:
        StoreError: the input's store fails.
    """
    with files.reading() as reading:
        for path in paths:
            try:
                return reading.part(path, 0, _INPUT_BYTES, _digest).result()
            except OSError:  # the file is rejected later
                continue
    return _digest(repr(paths).encode())


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()


def hash_id(key: bytes, column: str, text: str) -> str:
    """Return a keyed hash of an id (HMAC-SHA256, RFC 2104), 16 hexadecimal digits.

    Equal keys give equal hashes; without the key, trying all ids does not reveal an id.

    Args:
        key: the secret; empty to return the id itself.
        column: kind of the id; equal patient and study ids have different hashes.
        text: the id.
    """
    if not key:
        return text
    message = f"{column}\0{text}".encode("utf-8", "surrogateescape")
    return hmac.new(key, message, "sha256").hexdigest()[:_HASH_CHARACTERS]


def patient_of_study(study: str) -> str:
    """Return an id for a study's unknown patient, different from any other patient's id.

    Args:
        study: the written id of the study.
    """
    return f"{_STUDY}{study}"


def study_of(patient: str) -> str | None:
    """Return the study of an id that `patient_of_study` made; None for other ids."""
    return patient.removeprefix(_STUDY) if patient.startswith(_STUDY) else None


def holds_identifier(path: str, identifiers: Iterable[str]) -> bool:
    """Return whether a path contains one of the identifiers, ignoring case and punctuation.

    Identifiers of fewer than four letters and digits are skipped: many paths contain them.
    """
    folded = path.casefold()
    patterns = map(_pattern, identifiers)
    return any(pattern is not None and pattern.search(folded) for pattern in patterns)


@lru_cache(maxsize=1 << 12)  # the files of a patient share their identifiers
def _pattern(identifier: str) -> re.Pattern[str] | None:
    words = re.findall(r"[^\W_]+", identifier.casefold())
    if sum(map(len, words)) < _SHORTEST_IDENTIFIER:
        return None
    # Digits may follow a name, and letters may precede a number: DOE1990, IM12345.
    ends = words[0][0], words[-1][-1]
    before, behind = (r"\d" if end.isdigit() else r"[^\W\d_]" for end in ends)
    middle = r"[\W_]*".join(map(re.escape, words))
    return re.compile(f"(?<!{before}){middle}(?!{behind})")
