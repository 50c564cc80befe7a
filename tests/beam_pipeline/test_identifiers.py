import hashlib
import hmac

import pandas as pd

from beam_pipeline.identifiers import replace_ids
from beam_pipeline.options import Identifiers

KEY = b"sixteen bytes or more"
SLICES = pd.DataFrame(
    {
        "image_id": ["a", "b", "c"],
        "patient_id": ["Doe", "Roe", "Doe"],
        "study_id": ["1", "2", "3"],
        "series_id": ["Doe", "1", "1"],
    }
)


def test_ordinals_number_ids_by_their_first_slice() -> None:
    replaced = replace_ids(SLICES, Identifiers.ORDINAL, b"")
    assert replaced["patient_id"].tolist() == ["patient_000001", "patient_000002", "patient_000001"]
    assert replaced["study_id"].tolist() == ["study_000001", "study_000002", "study_000003"]
    assert replaced["series_id"].tolist() == ["series_000001", "series_000002", "series_000002"]
    assert replaced["image_id"].tolist() == ["a", "b", "c"]


def test_hashes_are_keyed_and_stable_across_data_sets() -> None:
    replaced = replace_ids(SLICES, Identifiers.HASH, KEY)
    expected = hmac.new(KEY, b"patient_id\0Roe", hashlib.sha256).hexdigest()[:16]
    assert replaced["patient_id"][1] == expected
    part = replace_ids(SLICES[1:], Identifiers.HASH, KEY)
    assert part["patient_id"].tolist() == replaced["patient_id"][1:].tolist()
    other = replace_ids(SLICES, Identifiers.HASH, KEY + b"!")
    assert not set(other["patient_id"]) & set(replaced["patient_id"])
    assert replaced["patient_id"][0] != replaced["series_id"][0]  # the same text, another purpose


def test_ids_are_kept_if_asked_for() -> None:
    pd.testing.assert_frame_equal(replace_ids(SLICES, Identifiers.KEEP, b""), SLICES)
