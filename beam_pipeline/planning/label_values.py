"""The texts of a label file's cells as values of labels: 0, 1, or -1 for all else."""

from contextlib import suppress

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beam_pipeline.planning.labels import AROUND
from headct.printable import quoted

_TRUTHS = {"true": 1, "false": 0}  # as pandas, R and Parquet have them, in any case
# Words that say nothing about who somebody is.
_ANSWERS = {"yes", "no", "y", "n", "t", "f", "positive", "negative", "pos", "neg"}


def parse_values(texts: pa.StringArray) -> NDArray[np.int8]:
    """Return 0 and 1 as they are, all else as -1: int8 [n]."""
    encoded = texts.dictionary_encode()
    different = np.array([_value(text) for text in encoded.dictionary.to_pylist()], np.int8)
    return np.asarray(different[encoded.indices.to_numpy()])


def check_values(column: str, texts: pa.StringArray, values: NDArray[np.int8]) -> None:
    """Raise a ValueError if most values of a column are not those of a label.

    Args:
        column: its name.
        texts: [n].
        values: [n], what `parse_values` makes of the texts.
    """
    wrong = values < 0
    if wrong.sum() * 2 > len(wrong):
        raise ValueError(
            f"column {quoted(column)} is not of 0 and 1"
            f"{_instance(texts.filter(pa.array(wrong)))}; write 0 and 1, or true and false, or "
            "name the columns of the classes with --label_columns"
        )


def is_like_a_value(text: str) -> bool:
    """Return whether a text is a label's value, a number, or an answer to a question."""
    return _value(text) >= 0 or text.lower() in _ANSWERS or _is_number(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _instance(texts: pa.Array) -> str:
    """A value to recognize a column by; long numbers and other text may say who somebody is."""
    for text in texts.unique().to_pylist():
        with suppress(ValueError):
            if text.lower() in _ANSWERS or abs(float(text)) < 1000:
                return f", but for instance {text}"
    return ""


def _value(text: str) -> int:
    plain = text.strip(AROUND).lower()
    if plain in _TRUTHS:
        return _TRUTHS[plain]
    try:
        number = float(plain.replace(",", "."))  # as half of Europe writes 1.0
    except ValueError:
        return -1
    return int(number) if number in (0, 1) else -1
