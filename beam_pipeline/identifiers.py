"""What is written instead of the ids in the files' headers."""

import hmac

import pandas as pd

from beam_pipeline.options import Identifiers

_NOUNS = {"patient_id": "patient", "study_id": "study", "series_id": "series"}
ID_COLUMNS = tuple(_NOUNS)
_HASH_CHARACTERS = 16  # 64 bits: no two of a million ids share one by chance


def replace_ids(slices: pd.DataFrame, identifiers: Identifiers, key: bytes) -> pd.DataFrame:
    """Replace patient, study and series ids.

    ORDINAL numbers them by their first slice: nothing leads back, and the same input gives the
    same numbers. HASH makes keyed hashes (HMAC-SHA256, RFC 2104), the same in every data set under
    the same key; without the key, trying all ids leads nowhere. KEEP leaves them as they are.

    Args:
        slices: with the str columns of `ID_COLUMNS`, in a fixed order.
        identifiers: which of the three.
        key: secret of the hashes.
    """
    if identifiers is Identifiers.KEEP:
        return slices
    if identifiers is Identifiers.ORDINAL:
        return slices.assign(**{c: ordinals(slices[c], noun) for c, noun in _NOUNS.items()})
    return slices.assign(**{c: _hashes(slices[c], c, key) for c in _NOUNS})


def ordinals(ids: pd.Series, noun: str) -> list[str]:
    """`noun_000001` for the first id, and so on."""
    return [f"{noun}_{number + 1:06d}" for number in pd.factorize(ids)[0]]


def _hashes(ids: pd.Series, purpose: str, key: bytes) -> pd.Series:
    """The purpose keeps a patient's id that is also a study's from giving the same hash."""
    different = ids.unique()
    hashes = [
        hmac.new(key, f"{purpose}\0{text}".encode(), "sha256").hexdigest()[:_HASH_CHARACTERS]
        for text in different
    ]
    return ids.map(dict(zip(different, hashes, strict=True)))
