"""Image ids, and pseudonyms of the ids in the files' headers."""

import hmac
import re
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_SHORTEST_IDENTIFIER = 4  # letters and digits
# No PatientID has this prefix: blanks around the values, also around a backslash, are stripped.
_STUDY = "study \\ "
_HASH_CHARACTERS = 16  # 64 bits: no collision among a million ids


def hash_id(key: bytes, column: str, text: str) -> str:
    """Return a keyed hash of an id (HMAC-SHA256, RFC 2104), 16 hexadecimal digits.

    Equal keys give equal hashes; without the key, trying all ids does not reveal an id.

    Args:
        key: the secret.
        column: one of ID_COLUMNS; equal patient and study ids have different hashes.
        text: the id.
    """
    message = f"{column}\0{text}".encode("utf-8", "surrogateescape")
    return hmac.new(key, message, "sha256").hexdigest()[:_HASH_CHARACTERS]


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


def patient_of_study(study: str) -> str:
    """Return an id for a study's unknown patient, different from any other patient's id.

    Args:
        study: the written id of the study.
    """
    return f"{_STUDY}{study}"


def study_of(patient: str) -> str:
    """Return the study of an id made by `patient_of_study`."""
    return patient.removeprefix(_STUDY)


def is_study(patient: str) -> bool:
    """Return whether `patient_of_study` made a patient's id."""
    return patient.startswith(_STUDY)


def number_ids(column: str, numbers: NDArray[np.int64]) -> pa.Array:
    """Return ordinals as ids: `patient_000001` for number 0 of `patient_id`, and so on."""
    return ordinals(column.removesuffix("_id"), numbers)


def name_of(source: str) -> str:
    """Return a file's name without its suffix; digits are the end of a UID, not a suffix."""
    name = source.rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and dot and not suffix.isdigit() else name


def ordinals(noun: str, numbers: NDArray[np.int64]) -> pa.Array:
    """Return strings such as `patient_000001`, from a noun and numbers from 0."""
    digits = pc.utf8_lpad(pc.cast(pa.array(numbers + 1), pa.string()), 6, "0")
    return pc.binary_join_element_wise(noun, digits, "_")
