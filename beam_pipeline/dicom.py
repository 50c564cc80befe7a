"""DICOM bytes to what the pipeline needs of them, or the reason why they are of no use."""

import io
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, config, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from beam_pipeline.errors import Reason, Rejected
from beam_pipeline.hounsfield import PixelEncoding

# Larger than any CT matrix (4096 x 4096), small enough to hold: bounds memory before allocation.
MAX_PIXELS = 1 << 24

_NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
_PIXEL_DATA = Tag("PixelData")
_HEADER_KEYWORDS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "ImagePositionPatient",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleIntercept",
    "RescaleSlope",
)


@dataclass(frozen=True)
class Header:
    """What the pipeline takes from a CT slice's header.

    Attributes:
        sop_instance_uid: empty where the file has none.
        patient_id: as written in the file.
        study_id: Study Instance UID.
        series_id: Series Instance UID.
        position_z: third coordinate of Image Position (Patient), mm; NaN if absent.
        pixel_spacing: between rows and between columns, mm; NaN if absent.
        rows: height of the stored matrix.
        columns: width of the stored matrix.
        transfer_syntax: its UID.
        encoding: how a pixel's bits become Hounsfield units.
    """

    sop_instance_uid: str
    patient_id: str
    study_id: str
    series_id: str
    position_z: float
    pixel_spacing: tuple[float, float]
    rows: int
    columns: int
    transfer_syntax: str
    encoding: PixelEncoding


@dataclass(frozen=True)
class Slice:
    """A CT slice.

    Attributes:
        header: of the same file.
        pixels: bit patterns as stored, uint8 or uint16 [rows, columns]; read-only.
    """

    header: Header
    pixels: NDArray[np.uint8] | NDArray[np.uint16]


def read_header(file: BinaryIO, size: int) -> Header:
    """Read and check a slice's header; its pixels are not read.

    Args:
        file: at its beginning; seekable.
        size: of the whole file, bytes.

    Raises:
        Rejected: the file is not a usable CT slice, as far as its header tells.
    """
    dataset = _parse(file, stop_before_pixels=True)
    header = _header(dataset)
    if UID(header.transfer_syntax) in _NATIVE:
        _check_pixel_bytes(file, size, dataset, header)
    return header


def read_slice(data: bytes) -> Slice:
    """Read a slice.

    Args:
        data: a DICOM file's bytes.

    Raises:
        Rejected: the file is not a usable CT slice.
    """
    dataset = _parse(io.BytesIO(data), stop_before_pixels=False)
    header = _header(dataset)
    if UID(header.transfer_syntax) in _NATIVE:
        pixels = _native_pixels(dataset, header)
    else:
        pixels = _decoded_pixels(dataset, header)
    if pixels.min() == pixels.max():
        raise Rejected(Reason.CONSTANT_IMAGE)
    return Slice(header, pixels)


def _parse(file: BinaryIO, *, stop_before_pixels: bool) -> Dataset:
    preamble = file.read(132)
    file.seek(0)
    # Files without preamble begin with a data element of the file meta or the identifying group.
    if preamble[128:] != b"DICM" and preamble[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        raise Rejected(Reason.NOT_DICOM, "empty file" if not preamble else "")
    keywords = list(_HEADER_KEYWORDS) if stop_before_pixels else [*_HEADER_KEYWORDS, "PixelData"]
    try:
        with config.disable_value_validation():
            return dcmread(
                file, stop_before_pixels=stop_before_pixels, specific_tags=keywords, force=True
            )
    except InvalidDicomError:
        raise Rejected(Reason.NOT_DICOM) from None
    except Exception as error:  # pydicom raises whatever a broken file makes its parser meet
        raise Rejected(Reason.UNREADABLE, type(error).__name__) from None


def _header(dataset: Dataset) -> Header:
    _check_kind(dataset)
    rows, columns = _integer(dataset, "Rows"), _integer(dataset, "Columns")
    if rows < 1 or columns < 1:
        raise Rejected(Reason.INVALID_ATTRIBUTE, f"Rows x Columns is {rows} x {columns}")
    if rows * columns > MAX_PIXELS:
        raise Rejected(Reason.TOO_LARGE, f"{rows} x {columns} pixels")
    position = _numbers(dataset, "ImagePositionPatient", 3)
    spacing = _numbers(dataset, "PixelSpacing", 2)
    return Header(
        sop_instance_uid=_text(dataset, "SOPInstanceUID", required=False),
        patient_id=_text(dataset, "PatientID"),
        study_id=_text(dataset, "StudyInstanceUID"),
        series_id=_text(dataset, "SeriesInstanceUID"),
        position_z=position[2],
        pixel_spacing=(spacing[0], spacing[1]),
        rows=rows,
        columns=columns,
        transfer_syntax=str(_transfer_syntax(dataset)),
        encoding=_encoding(dataset),
    )


def _check_kind(dataset: Dataset) -> None:
    """Raise unless this is a single-frame, single-sample CT image."""
    # De-identified files may keep the SOP class in the file meta information only.
    sop_class = _value(dataset, "SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    modality = _text(dataset, "Modality", required=False)
    if modality != "CT" and sop_class != CTImageStorage:
        raise Rejected(Reason.NOT_CT)
    frames = _value(dataset, "NumberOfFrames")
    if frames is not None and frames != "" and _integer(dataset, "NumberOfFrames") > 1:
        raise Rejected(Reason.MULTI_FRAME)
    if _integer(dataset, "SamplesPerPixel") != 1:
        raise Rejected(Reason.NOT_GRAYSCALE)
    # Both kinds of monochrome hold the same Hounsfield units: they differ in the display alone.
    if not _text(dataset, "PhotometricInterpretation").startswith("MONOCHROME"):
        raise Rejected(Reason.NOT_GRAYSCALE)


def _transfer_syntax(dataset: Dataset) -> UID:
    stated = dataset.file_meta.get("TransferSyntaxUID")
    if stated:
        return UID(stated)
    implicit, little = dataset.original_encoding
    if not little:
        return ExplicitVRBigEndian
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def _encoding(dataset: Dataset) -> PixelEncoding:
    allocated = _integer(dataset, "BitsAllocated")
    if allocated not in (8, 16):
        raise Rejected(Reason.INVALID_ATTRIBUTE, f"BitsAllocated is {allocated}, not 8 or 16")
    stored = _integer(dataset, "BitsStored")
    high_bit = _integer(dataset, "HighBit", default=stored - 1)
    if not 1 <= stored <= high_bit + 1 <= allocated:
        raise Rejected(
            Reason.INVALID_ATTRIBUTE,
            f"BitsStored {stored} and HighBit {high_bit} do not fit BitsAllocated {allocated}",
        )
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    if slope == 0:
        raise Rejected(Reason.INVALID_ATTRIBUTE, "RescaleSlope is 0")
    return PixelEncoding(
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=high_bit,
        signed=_integer(dataset, "PixelRepresentation") == 1,
        slope=slope,
        intercept=intercept,
        padding=_padding(dataset),
    )


def _padding(dataset: Dataset) -> tuple[int, int] | None:
    if _value(dataset, "PixelPaddingValue") in (None, ""):
        return None
    value = _integer(dataset, "PixelPaddingValue")
    limit = _integer(dataset, "PixelPaddingRangeLimit", default=value)
    return min(value, limit), max(value, limit)


def _value(dataset: Dataset, keyword: str) -> Any:
    """An attribute's value, or None."""
    try:
        with config.disable_value_validation():
            return dataset.get(keyword)
    except Exception as error:  # a value may be anything, and so is what pydicom raises
        raise Rejected(Reason.INVALID_ATTRIBUTE, f"{keyword}: {type(error).__name__}") from None


def _text(dataset: Dataset, keyword: str, *, required: bool = True) -> str:
    value = _value(dataset, keyword)
    text = "" if value is None else str(value).strip()
    if required and not text:
        raise Rejected(Reason.MISSING_ATTRIBUTE, keyword)
    return text


def _integer(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    value = _value(dataset, keyword)
    if value is None or value == "":
        if default is None:
            raise Rejected(Reason.MISSING_ATTRIBUTE, keyword)
        return default
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise Rejected(Reason.INVALID_ATTRIBUTE, f"{keyword} is not one integer") from None


def _number(dataset: Dataset, keyword: str) -> float:
    value = _value(dataset, keyword)
    if value is None or value == "":
        raise Rejected(Reason.MISSING_ATTRIBUTE, keyword)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise Rejected(Reason.INVALID_ATTRIBUTE, f"{keyword} is not one number") from None
    if not np.isfinite(number):
        raise Rejected(Reason.INVALID_ATTRIBUTE, f"{keyword} is not finite")
    return number


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    """`count` numbers, NaN where the attribute is absent or not that."""
    value = _value(dataset, keyword)
    try:
        numbers = tuple(float(item) for item in value)
    except (TypeError, ValueError):
        numbers = ()
    return numbers if len(numbers) == count else (float("nan"),) * count


def _pixel_bytes(header: Header) -> int:
    return header.rows * header.columns * header.encoding.bits_allocated // 8


def _check_pixel_bytes(file: BinaryIO, size: int, dataset: Dataset, header: Header) -> None:
    """Raise unless the native pixel data that begins here is all in the file."""
    implicit, little = dataset.original_encoding
    element = file.read(8 if implicit else 12)
    order: Literal["little", "big"] = "little" if little else "big"
    group, number = int.from_bytes(element[:2], order), int.from_bytes(element[2:4], order)
    if (group, number) != (_PIXEL_DATA.group, _PIXEL_DATA.element):
        raise Rejected(Reason.MISSING_ATTRIBUTE, "PixelData")
    stated = int.from_bytes(element[-4:], order)
    _check_length(min(stated, size - file.tell()), header)


def _check_length(found: int, header: Header) -> None:
    needed = _pixel_bytes(header)
    if found < needed:
        raise Rejected(Reason.TRUNCATED_PIXELS, f"{max(found, 0)} of {needed} bytes")


def _native_pixels(dataset: Dataset, header: Header) -> NDArray[np.uint8] | NDArray[np.uint16]:
    data = _value(dataset, "PixelData")
    if data is None:
        raise Rejected(Reason.MISSING_ATTRIBUTE, "PixelData")
    _check_length(len(data), header)
    shape = header.rows, header.columns
    count = header.rows * header.columns
    if header.encoding.bits_allocated == 8:
        return np.frombuffer(data, np.uint8, count).reshape(shape)
    order = "<u2" if dataset.original_encoding[1] else ">u2"
    return np.frombuffer(data, order, count).astype(np.uint16, copy=False).reshape(shape)


def _decoded_pixels(dataset: Dataset, header: Header) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Decompress by whatever decoder pydicom finds for the transfer syntax."""
    if _value(dataset, "PixelData") is None:
        raise Rejected(Reason.MISSING_ATTRIBUTE, "PixelData")
    try:
        decoder = get_decoder(UID(header.transfer_syntax))
    except NotImplementedError:
        decoder = None
    if decoder is None or not decoder.is_available:
        raise Rejected(Reason.UNSUPPORTED_TRANSFER_SYNTAX, header.transfer_syntax)
    try:
        decoded, _ = decoder.as_array(dataset, raw=True)
    except Exception as error:  # decoders raise whatever a broken code stream makes them meet
        raise Rejected(Reason.CORRUPT_PIXELS, type(error).__name__) from None
    unsigned = np.dtype(f"u{decoded.dtype.itemsize}")
    if decoded.shape != (header.rows, header.columns) or unsigned.itemsize > 2:
        raise Rejected(Reason.CORRUPT_PIXELS, f"decoded to {decoded.shape} {decoded.dtype}")
    return np.ascontiguousarray(decoded).view(unsigned)
