"""pydicom is the judge of what an attribute's value is."""

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from beam_pipeline.dicom.attributes import Attributes
from beam_pipeline.dicom.slices import _KEYWORDS
from tests.beam_pipeline.dicom_files import make_dicom

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
