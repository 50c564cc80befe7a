"""pydicom is the judge of what an attribute's value is."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from beam_pipeline.dicom.dataset import Attributes
from beam_pipeline.dicom.header import _KEYWORDS
from headct.reasons import Rejected
from tests.beam_pipeline.dicom_files import items, make_dicom

TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
PLAIN = [keyword for keyword in _KEYWORDS if not keyword.endswith("Sequence")]


def read(data: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(data), force=True)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("path", sorted(TEST_FILES.glob("*CT*.dcm")), ids=lambda path: path.stem)
def test_values_are_those_of_pydicom_however_often_they_were_met(path: Path) -> None:
    expected = pydicom.dcmread(path)
    for _ in range(2):
        found = Attributes(pydicom.dcmread(path))
        for keyword in PLAIN:
            value = expected.get(keyword)
            assert found.value(keyword) == (None if value == "" else value), keyword


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_equal_bytes_are_read_by_the_sign_of_their_own_file(syntax: str) -> None:
    """An implicit file's padding value is signed or not as its pixels are."""
    pixels = np.zeros((4, 4), np.int16)
    signed = read(make_dicom(pixels, syntax=syntax, PixelPaddingValue=-2000))
    unsigned = read(make_dicom(pixels.astype(np.uint16), syntax=syntax, PixelPaddingValue=63536))
    for _ in range(2):
        assert Attributes(signed).value("PixelPaddingValue") == -2000
        assert Attributes(unsigned).value("PixelPaddingValue") == 63536


CHARACTER_SETS = [None, "ISO_IR 13", "ISO_IR 100", "ISO_IR 192", "GB18030", "\\ISO 2022 IR 87"]
WRITTEN_IDS = [b"0017", b"A-1 ", b"A~1 ", b"M\xfcl ", b"\xbc\xdd", b"\x1b$B;3\x1b(B", b"a\\b "]


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("character_set", CHARACTER_SETS)
@pytest.mark.parametrize("written", WRITTEN_IDS)
def test_an_id_is_read_by_the_character_set_of_its_own_file(
    character_set: str | None, written: bytes
) -> None:
    """Bytes that were met in a file of one character set may be other text in the next."""
    pixels = np.zeros((4, 4), np.int16)
    placed = make_dicom(pixels, PatientID="%" * len(written), SpecificCharacterSet=character_set)
    data = placed.replace(b"%" * len(written), written)
    expected = read(data).PatientID
    assert Attributes(read(data)).value("PatientID") == expected
    # A UID that the file says is a text
    as_text = data.replace(b"\x20\0\x0e\0UI", b"\x20\0\x0e\0LO").replace(
        b"SERIES", written[:6].ljust(6)
    )
    assert Attributes(read(as_text)).value("SeriesInstanceUID") == read(as_text).SeriesInstanceUID


def of(**attributes: Any) -> Attributes:
    """Attributes as they are read from a file."""
    return Attributes(read(make_dicom(np.zeros((4, 4), np.int16), **attributes)))


def test_texts_are_without_the_blanks_and_zeros_around_them() -> None:
    assert of(ImageType=[" AXIAL ", "A B", "C"]).texts("ImageType") == ("AXIAL", "A B", "C")
    assert of(ImageType=["AXIAL", "A B"]).text("ImageType") == "AXIAL\\A B"
    assert of(PatientID="P\0").text("PatientID") == "P"


def test_a_text_that_is_absent_or_empty() -> None:
    for value in (None, "", "  "):
        assert of(PatientID=value).text("PatientID", required=False) == ""
        with pytest.raises(Rejected, match=r"MISSING_ATTRIBUTE.*PatientID"):
            of(PatientID=value).text("PatientID")
    assert of().texts("ImageType") == ()


def test_a_number_is_no_text() -> None:
    with pytest.raises(Rejected, match="Rows is no text"):
        of().texts("Rows")


def test_a_number_may_be_written_several_times() -> None:
    attributes = of(RescaleSlope=["2", "2.0", "2.00"])
    assert attributes.number("RescaleSlope") == attributes.integer("RescaleSlope") == 2
    with pytest.raises(Rejected, match="RescaleSlope is not one number"):
        of(RescaleSlope=["2", "2.1"]).number("RescaleSlope")


@pytest.mark.parametrize("value", [None, ""])
def test_a_default_is_for_what_is_absent_or_empty(value: str | None) -> None:
    attributes = of(RescaleSlope=value)
    assert attributes.number("RescaleSlope", 0.0) == 0
    assert attributes.integer("RescaleSlope", 7) == 7
    with pytest.raises(Rejected, match=r"MISSING_ATTRIBUTE.*RescaleSlope"):
        attributes.number("RescaleSlope")


def test_an_integer_has_no_fraction() -> None:
    assert of(NumberOfFrames="-3").integer("NumberOfFrames") == -3
    assert of(RescaleSlope="3.0").integer("RescaleSlope") == 3
    with pytest.raises(Rejected, match="RescaleSlope is not one integer"):
        of(RescaleSlope="3.5").integer("RescaleSlope")


@pytest.mark.parametrize(
    ("value", "two", "all_of_them"),
    [
        (["1", "2.5"], (1.0, 2.5), (1.0, 2.5)),
        (["1", "2", "3"], None, (1.0, 2.0, 3.0)),
        ("1", None, (1.0,)),
        (["1", "inf"], None, (1.0, math.inf)),
        (["nan", "1"], None, (math.nan, 1.0)),
        (None, None, ()),
    ],
)
def test_so_many_numbers_or_none(
    value: Any, two: tuple[float, ...] | None, all_of_them: tuple[float, ...]
) -> None:
    attributes = of(PixelSpacing=value)
    assert repr(attributes.numbers("PixelSpacing", 2)) == repr(two or (math.nan, math.nan))
    assert repr(attributes.numbers("PixelSpacing")) == repr(all_of_them)


def test_garbage_is_no_number() -> None:
    data = make_dicom(np.zeros((4, 4), np.int16), PixelSpacing=["77777", "77777"])
    attributes = Attributes(read(data.replace(b"77777\\77777", b"garbage\\1.5")))
    assert repr(attributes.numbers("PixelSpacing", 2)) == "(nan, nan)"
    assert repr(attributes.numbers("PixelSpacing")) == "(nan, 1.5)"


def test_bytes_that_are_no_value_of_their_kind_are_no_numbers() -> None:
    data = make_dicom(np.zeros((4, 4), np.int16), PixelSpacing=["77777", "77777"])
    # Doubles of 8 bytes; there are 12.
    attributes = Attributes(read(data.replace(b"\x28\x00\x30\x00DS", b"\x28\x00\x30\x00FD")))
    with pytest.raises(Rejected, match="PixelSpacing: BytesLengthException"):
        attributes.value("PixelSpacing")
    assert repr(attributes.numbers("PixelSpacing", 2)) == "(nan, nan)"
    assert attributes.numbers("PixelSpacing") == ()


@pytest.mark.parametrize("underscored", [b"1_000", b"1 000", b"1,000"])
def test_what_only_python_takes_for_a_number_is_none(underscored: bytes) -> None:
    dataset = read(make_dicom(np.zeros((4, 4), np.int16), RescaleSlope="77777"))
    data = make_dicom(np.zeros((4, 4), np.int16), RescaleSlope="77777").replace(
        b"77777", underscored
    )
    assert Attributes(dataset).number("RescaleSlope") == 77777
    with pytest.raises(Rejected, match="RescaleSlope"):
        Attributes(read(data)).number("RescaleSlope")


def test_what_a_frame_has_comes_first_and_what_it_lacks_from_the_image() -> None:
    measures = {"PixelMeasuresSequence": items(PixelSpacing=[4.0, 5.0], SliceThickness=None)}
    both = of(PixelSpacing=[1.0, 2.0], SharedFunctionalGroupsSequence=items(**measures))
    assert both.numbers("PixelSpacing", 2) == (4.0, 5.0)
    empty = {"PixelMeasuresSequence": items(PixelSpacing="")}
    top = of(PixelSpacing=[1.0, 2.0], SharedFunctionalGroupsSequence=items(**empty))
    assert top.numbers("PixelSpacing", 2) == (1.0, 2.0)
    assert (of().frames, both.frames) == (1, 1)


def test_frames_are_counted_in_the_larger_of_the_groups() -> None:
    groups = {
        "SharedFunctionalGroupsSequence": items() + items(),
        "PerFrameFunctionalGroupsSequence": items() + items() + items(),
    }
    assert of(**groups).frames == 3
