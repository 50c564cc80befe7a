"""Image ids, and what is written instead of the ids in the files' headers."""

import hmac
import re
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_SHORTEST_IDENTIFIER = 4  # letters and digits
# No PatientID begins so: its values are without blanks around them, behind a backslash, too.
_STUDY = "study \\ "
_HASH_CHARACTERS = 16  # 64 bits: no two of a million ids share one by chance


def hash_id(key: bytes, column: str, text: str) -> str:
    """A keyed hash of an id (HMAC-SHA256, RFC 2104), 16 hexadecimal digits.

    It is the same wherever the key is the same; without the key, trying all ids leads nowhere.

    Args:
        key: the secret.
        column: one of ID_COLUMNS: a patient's id that is also a study's has another hash.
        text: the id.
    """
    message = f"{column}\0{text}".encode("utf-8", "surrogateescape")
    return hmac.new(key, message, "sha256").hexdigest()[:_HASH_CHARACTERS]


def holds_identifier(path: str, identifiers: Iterable[str]) -> bool:
    """Whether a path holds one of a file's own identifiers, whatever the case and the punctuation.

    Identifiers of fewer than four letters and digits are not looked for: they are in many paths.
    """
    folded = path.casefold()
    patterns = map(_pattern, identifiers)
    return any(pattern is not None and pattern.search(folded) for pattern in patterns)


@lru_cache(maxsize=1 << 12)  # the files of a patient share their identifiers
def _pattern(identifier: str) -> re.Pattern[str] | None:
    words = re.findall(r"[^\W_]+", identifier.casefold())
    if sum(map(len, words)) < _SHORTEST_IDENTIFIER:
        return None
    # A name may be followed by digits, and a number by letters: IM12345, DOE1990.
    ends = words[0][0], words[-1][-1]
    before, behind = (r"\d" if end.isdigit() else r"[^\W\d_]" for end in ends)
    middle = r"[\W_]*".join(map(re.escape, words))
    return re.compile(f"(?<!{before}){middle}(?!{behind})")


def patient_of_study(study: str) -> str:
    """The id of the unknown patient of a study: it is no other study's, and no known patient's.

    Args:
        study: the id that is written for the study.
    """
    return f"{_STUDY}{study}"


def study_of(patient: str) -> str:
    """The study that an id of `patient_of_study` is of."""
    return patient.removeprefix(_STUDY)


def is_study(patient: str) -> bool:
    """Whether a patient's id is that of `patient_of_study`."""
    return patient.startswith(_STUDY)


def number_ids(column: str, numbers: NDArray[np.int64]) -> pa.Array:
    """Ids that lead nowhere back: `patient_000001` for number 0 of `patient_id`, and so on."""
    return ordinals(column.removesuffix("_id"), numbers)


def name_of(source: str) -> str:
    """A file's name without its suffix; a part of digits is none, but the end of a UID."""
    name = source.rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and dot and not suffix.isdigit() else name


def ordinals(noun: str, numbers: NDArray[np.int64]) -> pa.Array:
    """The same for many numbers: strings."""
    digits = pc.utf8_lpad(pc.cast(pa.array(numbers + 1), pa.string()), 6, "0")
    return pc.binary_join_element_wise(noun, digits, "_")
