"""Whole files as pydicom reads them, or rejected: its own test files, and files with one fault."""

import io
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset, config, uid
from pydicom.pixels import apply_rescale, pixel_array

from beam_pipeline.dicom.hounsfield import Repair, hounsfield_table
from beam_pipeline.dicom.slices import Slice, read_slice
from beam_pipeline.images.convert import HU_OFFSET, Image, convert_slice
from beam_pipeline.options import ImageOptions
from headct.reasons import Reason, Rejected
from tests.beam_pipeline.dicom_files import make_dicom

TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
# Why a grayscale image of any modality may be no CT slice.
TRUE_REASONS = {
    Reason.MULTI_FRAME,
    Reason.NOT_GRAYSCALE,
    Reason.INVALID_ATTRIBUTE,
    Reason.MISSING_ATTRIBUTE,
    Reason.TRUNCATED_PIXELS,
    Reason.CORRUPT_PIXELS,
    Reason.CONSTANT_IMAGE,
    Reason.NOT_DICOM,
}
# JPEG of 12 bits: decoders round the cosines of a lossy image in different ways.
LOSSY = {"JPGExtended.dcm": 1.0, "JPEG-lossy.dcm": 1.0}


def as_ct(dataset: Dataset) -> tuple[bytes, float, float]:
    """The same image as one of CT, with the slope and intercept that it has, or 1 and 0."""
    dataset.SOPClassUID, dataset.Modality = uid.CTImageStorage, "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    slope = float(dataset.get("RescaleSlope") or 1)
    intercept = float(dataset.get("RescaleIntercept") or 0)
    dataset.RescaleSlope, dataset.RescaleIntercept = str(slope), str(intercept)
    for keyword in ("RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit"):
        if keyword in dataset:
            del dataset[keyword]
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        if not dataset.get(keyword):
            setattr(dataset, keyword, "1.2.3")
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=False)
    return file.getvalue(), slope, intercept


def images() -> dict[str, Dataset]:
    """pydicom's own test files that hold an image and can be written again."""
    found = {}
    for path in sorted(TEST_FILES.rglob("*")):
        if path.is_file():
            try:
                dataset = pydicom.dcmread(path, force=True)
                if "PixelData" in dataset and dataset.file_meta.TransferSyntaxUID:
                    found[str(path.relative_to(TEST_FILES))] = dataset
            except Exception:  # broken on purpose
                continue
    return found


def read_or_reason(data: bytes) -> Slice | Reason:
    try:
        return read_slice(data)
    except Rejected as rejected:
        return rejected.reason


def test_pydicoms_own_test_files_are_read_as_it_reads_them_or_rejected() -> None:
    outcomes: Counter[str] = Counter()
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        for name, dataset in images().items():
            try:
                expected = dataset.pixel_array
            except Exception:  # broken on purpose, or of a decoder that is not here
                expected = None
            try:
                data, slope, intercept = as_ct(dataset)
            except Exception:  # it cannot be written
                continue
            source = read_or_reason(data)
            if isinstance(source, Reason):
                assert source in TRUE_REASONS, name
                outcomes["rejected"] += 1
                continue
            outcomes["read"] += 1
            if expected is not None:
                hounsfield = hounsfield_table(source.header.encoding, Repair.NONE)[source.pixels]
                difference = np.abs(hounsfield - (expected * np.float64(slope) + intercept)).max()
                assert difference <= LOSSY.get(Path(name).name, 0.5), name
                outcomes["equal"] += 1
    assert outcomes["read"] >= 40
    assert outcomes["equal"] >= 30
    assert outcomes["rejected"] >= 30


def head(noise: int = 6) -> np.ndarray:
    """Hounsfield units of a 48 x 48 head in air."""
    y, x = np.mgrid[-23.5:24, -23.5:24]
    distance = np.hypot(x / 0.8, y)
    hounsfield = np.select([distance < 19, distance < 22], [35.0, 1200.0], -1000.0)
    hounsfield += np.random.default_rng(1).normal(0, noise, hounsfield.shape)
    return np.rint(hounsfield).clip(-1024, 3000).astype(np.int16)


def converted(data: bytes) -> Image:
    return convert_slice(read_slice(data), ImageOptions(hu=True, image_size=48))


def by_pydicom(data: bytes) -> np.ndarray:
    """Hounsfield units as pydicom computes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(data))
        return np.asarray(apply_rescale(pixel_array(io.BytesIO(data)), dataset), np.float64)


NATIVE = [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian]


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("representation", [0, 1])
@pytest.mark.parametrize("high_bit", [12, 13, 15])
def test_a_high_bit_that_is_wrong_is_read_as_by_pydicom(
    syntax: str, representation: int, high_bit: int
) -> None:
    intercept = 0 if representation else -1024
    stored = (head() - intercept).astype(np.int16 if representation else np.uint16)
    data = make_dicom(
        stored, syntax=syntax, BitsStored=12, HighBit=high_bit, RescaleIntercept=str(intercept)
    )
    image = converted(data)
    assert image.repair is Repair.LOW_BITS
    assert np.array_equal(image.pixels[..., 0].astype(float) + HU_OFFSET, by_pydicom(data))


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize(
    ("intercept", "representation", "repair"),
    [(0, 0, Repair.SIGNED), (-32768, 1, Repair.UNSIGNED), (-1024, 0, Repair.NONE)],
)
def test_a_sign_that_is_wrong_is_read_as_pydicom_reads_the_right_one(
    syntax: str, intercept: int, representation: int, repair: Repair
) -> None:
    stored = (head().astype(int) - intercept).astype(np.uint16)
    attributes = {"syntax": syntax, "RescaleIntercept": str(intercept)}
    wrong = make_dicom(stored, **attributes, PixelRepresentation=representation)
    right = make_dicom(stored, **attributes, PixelRepresentation=1 - representation)
    image = converted(wrong)
    assert image.repair is repair
    assert np.array_equal(image.pixels[..., 0].astype(float) + HU_OFFSET, by_pydicom(right))


def test_a_file_without_a_patient_is_converted_as_with_one() -> None:
    stored = (head() + 1024).astype(np.int16)
    expected = converted(make_dicom(stored)).pixels
    for patient in ("", None):
        assert np.array_equal(converted(make_dicom(stored, PatientID=patient)).pixels, expected)
