import hashlib
import hmac

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipeline.planning.pseudonyms import (
    hash_id,
    holds_identifier,
    number_ids,
    ordinals,
)
from headct.layout import ordinal

KEY = b"sixteen bytes or more"


@pytest.mark.parametrize(
    ("column", "noun"),
    [("patient_id", "patient"), ("study_id", "study"), ("series_id", "series")],
)
def test_numbers_become_ordinals_of_their_kind(column: str, noun: str) -> None:
    ids = number_ids(column, np.array([0, 1, 0], np.int64))
    assert ids.to_pylist() == [f"{noun}_000001", f"{noun}_000002", f"{noun}_000001"]


def test_ordinals_have_six_digits_or_as_many_as_they_need() -> None:
    numbers = np.array([0, 999_998, 999_999, 12_345_677], np.int64)
    expected = ["file_000001", "file_999999", "file_1000000", "file_12345678"]
    assert ordinals("file", numbers).to_pylist() == expected
    assert ordinals("file", numbers[:0]).to_pylist() == []


@given(st.lists(st.integers(0, 10**12)))
def test_one_ordinal_is_written_as_many_are(numbers: list[int]) -> None:
    many = ordinals("image", np.array(numbers, np.int64)).to_pylist()
    assert many == [ordinal("image", number) for number in numbers]


def test_hashes_are_keyed_and_stable() -> None:
    expected = hmac.new(KEY, b"patient_id\0Roe", hashlib.sha256).hexdigest()[:16]
    assert hash_id(KEY, "patient_id", "Roe") == expected
    assert hash_id(KEY + b"!", "patient_id", "Roe") != expected
    assert hash_id(KEY, "patient_id", "Doe") != expected
    assert hash_id(KEY, "series_id", "Roe") != expected  # the same text, another purpose


def test_a_text_that_is_no_utf_8_has_a_hash() -> None:
    expected = hmac.new(KEY, b"study_id\0\xff\xc3", hashlib.sha256).hexdigest()[:16]
    assert hash_id(KEY, "study_id", "\udcff\udcc3") == expected


@pytest.mark.parametrize(
    ("path", "identifier"),
    [
        ("DOE_JOHN/IM0001", "Doe^John"),
        ("a/doejohn.dcm", "Doe^John"),
        ("mustermann1964/1.dcm", "Mustermann"),
        ("mrn47110815/1.dcm", "MRN-4711-0815"),
        ("CT12345/1.dcm", "12345"),
        ("12345_2.dcm", "12345"),
        ("müller/1", "M\u00fcller"),
    ],
)
def test_a_path_that_holds_an_identifier(path: str, identifier: str) -> None:
    assert holds_identifier(path, ["nothing", identifier])


@pytest.mark.parametrize(
    ("path", "identifier"),
    [
        ("112345.dcm", "12345"),  # another number
        ("123456.dcm", "12345"),
        ("doering/1.dcm", "Doer"),  # another word
        ("1/2/3.dcm", "2"),  # too short to tell
        ("kim/1.dcm", "Kim"),
        ("a.b/1.dcm", "a+b.*"),  # no pattern
        ("any/path", "^"),
        ("any/path", ""),
    ],
)
def test_a_path_that_does_not(path: str, identifier: str) -> None:
    assert not holds_identifier(path, [identifier])
