"""Header of a CT slice: reading, checks, and its text in the inventory."""

import hashlib
import json
import math
import re
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from pydantic import TypeAdapter

from beam_pipeline.dicom.acquisition import Acquisition
from beam_pipeline.dicom.dataset import (
    DEFLATED_LITTLE_ENDIAN,
    EXPLICIT_BIG_ENDIAN,
    EXPLICIT_LITTLE_ENDIAN,
    FUNCTIONAL_GROUPS,
    IMPLICIT_LITTLE_ENDIAN,
    MAX_FILE_BYTES,
    MAX_HEADER_BYTES,
    Attributes,
    Parsed,
    PixelElement,
    check_beginning,
    contained,
    parse,
)
from beam_pipeline.dicom.hounsfield import PixelEncoding
from beam_pipeline.dicom.selection import Selection
from headct.reasons import Reason, Rejected

if TYPE_CHECKING:  # takes long to load, see `dataset.py`
    from pydicom.tag import BaseTag

# Larger than any CT matrix (4096 x 4096); checked before memory is allocated.
MAX_PIXELS = 1 << 24
FIRST_BYTES = 1 << 15  # contain the header of nearly every file

_NATIVE = "native"
# Supported transfer syntaxes: name (DICOM PS3.6 table A-1), and codec.
TRANSFER_SYNTAXES = {
    IMPLICIT_LITTLE_ENDIAN: ("Implicit VR Little Endian", _NATIVE),
    EXPLICIT_LITTLE_ENDIAN: ("Explicit VR Little Endian", _NATIVE),
    DEFLATED_LITTLE_ENDIAN: ("Deflated Explicit VR Little Endian", _NATIVE),
    EXPLICIT_BIG_ENDIAN: ("Explicit VR Big Endian", _NATIVE),
    "1.2.840.10008.1.2.1.98": (
        "Encapsulated Uncompressed Explicit VR Little Endian",
        "uncompressed",
    ),
    "1.2.840.10008.1.2.5": ("RLE Lossless", "rle"),
    "1.2.840.10008.1.2.4.50": ("JPEG Baseline (Process 1)", "jpeg"),
    "1.2.840.10008.1.2.4.51": ("JPEG Extended (Process 2 and 4)", "jpeg"),
    # Two were retired in 2004 (DICOM PS3.5 2003 A.4.1), but are present in older files.
    "1.2.840.10008.1.2.4.53": (
        "JPEG Spectral Selection, Non-Hierarchical (Process 6 and 8)",
        "jpeg",
    ),
    "1.2.840.10008.1.2.4.55": (
        "JPEG Full Progression, Non-Hierarchical (Process 10 and 12)",
        "jpeg",
    ),
    "1.2.840.10008.1.2.4.57": ("JPEG Lossless, Non-Hierarchical (Process 14)", "jpeg"),
    "1.2.840.10008.1.2.4.70": (
        "JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14 [Selection Value 1])",
        "jpeg",
    ),
    "1.2.840.10008.1.2.4.80": ("JPEG-LS Lossless Image Compression", "jpegls"),
    "1.2.840.10008.1.2.4.81": ("JPEG-LS Lossy (Near-Lossless) Image Compression", "jpegls"),
    "1.2.840.10008.1.2.4.90": ("JPEG 2000 Image Compression (Lossless Only)", "j2k"),
    "1.2.840.10008.1.2.4.91": ("JPEG 2000 Image Compression", "j2k"),
    "1.2.840.10008.1.2.4.201": (
        "High-Throughput JPEG 2000 Image Compression (Lossless Only)",
        "j2k",
    ),
    "1.2.840.10008.1.2.4.202": (
        "High-Throughput JPEG 2000 with RPCL Options Image Compression (Lossless Only)",
        "j2k",
    ),
    "1.2.840.10008.1.2.4.203": ("High-Throughput JPEG 2000 Image Compression", "j2k"),
}
# With 16 bits per pixel, the pixels are little-endian words, the usual native byte order.
_PLAIN = (EXPLICIT_LITTLE_ENDIAN, IMPLICIT_LITTLE_ENDIAN)
_MAX_RESCALE = 1e6  # far above all slopes and intercepts of Hounsfield units
_CT_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.2",  # CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT
)
# Defined Terms of VOI LUT Function (DICOM PS3.3 C.11.2.1.2).
VOI_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
OTHER_FUNCTION = "OTHER"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame kinds below
_MAX_ID = 64  # characters of a UI, and of an LO (DICOM PS3.5 table 6.2-1)
# Attributes to read; other attributes count as absent. Comments give the type in the CT and
# Enhanced CT Image IODs and the defining section of DICOM PS3.3. Type 1 has a value, type 2 may be
# empty (de-identified files lack it), 3 is optional, C is conditional (PS3.5 7.4). "+" marks
# attributes required here; conversion works without the other attributes of type 1.
_KEYWORDS = (
    "SOPClassUID",  # 1, C.12.1; may be in the file meta information alone
    "SOPInstanceUID",  # 1, C.12.1; for image ids only
    "ImageType",  # 1, C.8.2.1; localizers
    "Modality",  # 1, C.7.3.1; for SOP classes other than CT's
    "PatientID",  # 2, C.7.1.1; if absent, the study stands for the patient
    "PatientName",  # 2, C.7.1.1; for names in paths only
    "AccessionNumber",  # 2, C.7.2.1; for numbers in paths only
    "StudyInstanceUID",  # 1+, C.7.2.1
    "SeriesInstanceUID",  # 1+, C.7.3.1
    "ImagePositionPatient",  # 1, C.7.6.2; 1C, C.7.6.16.2.3
    "SamplesPerPixel",  # 1+, C.7.6.3
    "PhotometricInterpretation",  # 1+, C.7.6.3
    "NumberOfFrames",  # 1, C.7.6.6; absent from a CT Image
    "Rows",  # 1+, C.7.6.3
    "Columns",  # 1+, C.7.6.3
    "PixelSpacing",  # 1, C.7.6.2; C.7.6.16.2.1
    "BitsAllocated",  # 1+, C.7.6.3
    "BitsStored",  # 1+, C.7.6.3
    "HighBit",  # 1, C.7.6.3; always BitsStored - 1
    "PixelRepresentation",  # 1+, C.7.6.3
    "PixelPaddingValue",  # 1C, C.7.5.1
    "PixelPaddingRangeLimit",  # 1C, C.7.6.3
    "WindowCenter",  # 1C, C.11.2; C.7.6.16.2.10
    "WindowWidth",  # 1C, C.11.2; C.7.6.16.2.10
    "VOILUTFunction",  # 3, C.11.2; C.7.6.16.2.10
    "RescaleIntercept",  # 1+, C.8.2.1; C.7.6.16.2.9
    "RescaleSlope",  # 1+, C.8.2.1; C.7.6.16.2.9
    "RescaleType",  # 1C, C.8.2.1; 1, C.7.6.16.2.9
    "ImageOrientationPatient",  # 1, C.7.6.2; 1C, C.7.6.16.2.4
    "SliceThickness",  # 2, C.7.6.2; C.7.6.16.2.1
    "ConvolutionKernel",  # 3, C.8.2.1; 1C, C.8.15.3.7
    "BodyPartExamined",  # 3, C.7.3.1
    "Manufacturer",  # 2, C.7.5.1; 1, C.7.5.2
    "ManufacturerModelName",  # 3, C.7.5.1; 1, C.7.5.2
    *FUNCTIONAL_GROUPS,
)


@dataclass(frozen=True, kw_only=True)
class Header:
    """Header of a CT slice.

    Attributes:
        sop_instance_uid: empty if absent.
        patient_id: as written in the file; empty if absent.
        study_id: Study Instance UID.
        series_id: Series Instance UID.
        identifiers: PatientID, PatientName and its components, AccessionNumber; searched for in the
            file's path, never written.
        position_z: third coordinate of Image Position (Patient), mm; NaN if absent.
        pixel_spacing: between rows and between columns, mm; NaN if absent.
        rows: height of the stored matrix.
        columns: width of the stored matrix.
        transfer_syntax: UID.
        acquisition: orientation, body part, kernel, thickness and scanner.
        encoding: conversion of a pixel's bits to Hounsfield units.
        window: center and width, HU; the first of several pairs, None if absent.
        voi_function: one of VOI_FUNCTIONS; empty if absent, OTHER_FUNCTION if unknown.
        pixel_offset: offset of the first byte of pixel data in the file; None in a deflated file.
        beginning: checksum of the bytes before the pixels; if unchanged, the header is not parsed
            again. Empty if the header must always be parsed.
        identity: checksum of the ids, position and size that identify the slice.
    """

    sop_instance_uid: str = ""
    patient_id: str = ""
    study_id: str = ""
    series_id: str = ""
    identifiers: tuple[str, ...] = field(default=(), repr=False, compare=False)
    acquisition: Acquisition = field(default=Acquisition(), repr=False, compare=False)
    position_z: float
    pixel_spacing: tuple[float, float]
    rows: int
    columns: int
    transfer_syntax: str
    encoding: PixelEncoding
    window: tuple[float, float] | None = None
    voi_function: str = ""
    pixel_offset: int | None = None
    beginning: str = ""
    identity: str = ""

    @property
    def codec(self) -> str:
        """Name of the codec of the pixels."""
        return TRANSFER_SYNTAXES[self.transfer_syntax][1]

    @property
    def is_native(self) -> bool:
        """Whether the pixels are uncompressed, and not encapsulated."""
        return self.codec == _NATIVE

    @property
    def matrix_bytes(self) -> int:
        """Size of the decoded pixels."""
        return self.rows * self.columns * self.encoding.bits_allocated // 8

    def pixel_bytes(self, size: int) -> int:
        """Return the size of the pixels in a file of `size` bytes, which is not deflated."""
        assert self.pixel_offset is not None
        rest = size - self.pixel_offset
        return min(rest, self.matrix_bytes) if self.is_native else rest

    def encode(self) -> str:
        """Return the header's values as text, without ids and acquisition.

        Planning keeps a text per slice in memory; with the names, a text is twice as long.
        """
        values = vars(self) | {"encoding": [*vars(self.encoding).values()]}
        return json.dumps([values[name] for name in _ENCODED], separators=(",", ":"))

    @staticmethod
    def decode(text: str) -> "Header":
        """Return the header of an `encode` text, with empty ids."""
        values = dict(zip(_ENCODED, json.loads(text), strict=True))
        names = PixelEncoding.__dataclass_fields__
        values["encoding"] = dict(zip(names, values["encoding"], strict=True))
        return _HEADER.validate_python(values)


_HEADER = TypeAdapter(Header)
_ELSEWHERE = (
    *("sop_instance_uid", "patient_id", "study_id", "series_id", "identifiers"),
    "acquisition",
)
_ENCODED = [name for name in Header.__dataclass_fields__ if name not in _ELSEWHERE]


@cache
def tags_of_header() -> "tuple[BaseTag | int, ...]":
    """Return the tags of the attributes to read."""
    from pydicom.tag import Tag

    return tuple(int(Tag(keyword)) for keyword in _KEYWORDS)


def read_header(file: BinaryIO, size: int, selection: Selection | None = None) -> Header:
    """Read and check a slice's header, without its pixels.

    Args:
        file: the file, at its beginning.
        size: size of the whole file, bytes.
        selection: which slices are wanted; by default, all.

    Raises:
        Rejected: by its header the file is not a usable CT slice, or is not wanted; `read_slice`
            raises the same error for a file that is not usable.
    """
    tags = [*tags_of_header(), *(selection.tags if selection else ())]
    parsed, beginning = None, file.read(FIRST_BYTES)
    check_beginning(beginning)
    if len(beginning) < size:
        parsed = _parse_beginning(beginning, size, tags)
    if parsed is None:
        parsed = parse(beginning + file.read(MAX_FILE_BYTES), size, tags)
    try:
        return check_header(parsed, selection)[0]
    except Rejected as rejected:
        rejected.identifiers = _identifiers(parsed.attributes)
        raise


def _parse_beginning(beginning: bytes, size: int, tags: "list[BaseTag | int]") -> Parsed | None:
    """Parse the first bytes of a file; None if the bytes end before the pixels."""
    with suppress(Rejected):  # a truncated header may look broken
        parsed = parse(beginning, size, tags)
        if parsed.pixels and parsed.transfer_syntax != DEFLATED_LITTLE_ENDIAN:
            return parsed
    return None


def checksum(data: bytes) -> str:
    """Return a checksum of 96 bits, as text."""
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def check_header(parsed: Parsed, selection: Selection | None = None) -> tuple[Header, PixelElement]:
    """Return a file's header and pixel element, after all checks that need no pixels.

    Slices that are not wanted are not searched for faults.

    Raises:
        Rejected: the file is not a usable CT slice, or is not wanted.
    """
    with contained(Reason.UNREADABLE):
        pixels, attributes = parsed.pixels or _raise_without_pixels(parsed), parsed.attributes
        _check_modality(attributes, parsed.media_class)
        acquisition = Acquisition.read(attributes)
        if selection is not None:
            selection.check(acquisition.orientation, attributes, parsed.transfer_syntax)
        _check_frame(attributes, pixels.keyword)
        rows, columns = _shape(attributes)
        encoding = _encoding(attributes)
        transfer_syntax = parsed.transfer_syntax
        if transfer_syntax not in TRANSFER_SYNTAXES:
            named = _registered_name(transfer_syntax)
            raise Rejected(Reason.UNSUPPORTED_TRANSFER_SYNTAX, named)
        ids = (
            _identifier(attributes, "SOPInstanceUID", required=False),
            _identifier(attributes, "PatientID", required=False),
            _identifier(attributes, "StudyInstanceUID"),
            _identifier(attributes, "SeriesInstanceUID"),
        )
        row_spacing, column_spacing = attributes.numbers("PixelSpacing", 2)
        position = attributes.numbers("ImagePositionPatient", 3)[2]
        identity = repr((ids, (position, (row_spacing, column_spacing), rows, columns)))
        is_plain = transfer_syntax in _PLAIN and encoding.bits_allocated == 16
        is_deflated = transfer_syntax == DEFLATED_LITTLE_ENDIAN
        header = Header(
            sop_instance_uid=ids[0],
            patient_id=ids[1],
            study_id=ids[2],
            series_id=ids[3],
            identifiers=_identifiers(attributes),
            acquisition=acquisition,
            position_z=position,
            pixel_spacing=(row_spacing, column_spacing),
            rows=rows,
            columns=columns,
            transfer_syntax=transfer_syntax,
            encoding=encoding,
            window=_window(attributes),
            voi_function=_voi_function(attributes),
            pixel_offset=None if is_deflated else pixels.offset,
            beginning=checksum(parsed.body[: pixels.offset]) if is_plain else "",
            identity=checksum(identity.encode()),
        )
    if parsed.size > MAX_FILE_BYTES:
        raise Rejected(Reason.TOO_LARGE, f"{parsed.size} bytes")
    if header.is_native:
        if pixels.length is None:
            raise Rejected(Reason.CORRUPT_PIXELS, "encapsulated, in a native transfer syntax")
        found = min(pixels.length, parsed.size - pixels.offset)
        if pixels.vr == "OW":  # whole words: in big-endian files the first byte is the second pixel
            found -= found % 2
        check_length(found, header)
    return header, pixels


def check_length(found: int, header: Header) -> None:
    """Raise Rejected if decoded pixels have fewer bytes than the matrix."""
    if found < header.matrix_bytes:
        detail = f"{max(found, 0)} of {header.matrix_bytes} bytes"
        raise Rejected(Reason.TRUNCATED_PIXELS, detail)


def _identifiers(attributes: Attributes) -> tuple[str, ...]:
    name = attributes.plain_text("PatientName")
    texts = attributes.plain_text("PatientID"), attributes.plain_text("AccessionNumber")
    return tuple(filter(None, (*texts, name, *re.split(r"[\^=\s]+", name))))


def _identifier(attributes: Attributes, keyword: str, *, required: bool = True) -> str:
    """Return an id; empty if the values are blank or empty."""
    text = attributes.text(keyword, required=required)
    if len(text) > _MAX_ID:
        raise Rejected(Reason.INVALID_ATTRIBUTE, f"{keyword} has more than {_MAX_ID} characters")
    if text.strip("\\ \0\t\r\n"):
        return text
    if required:
        raise Rejected(Reason.MISSING_ATTRIBUTE, keyword)
    return ""


def _check_modality(attributes: Attributes, media_class: str) -> None:
    """Raise unless the file is a CT image, and no scout view."""
    # De-identified files may have the SOP class only in the file meta information.
    sop_class = attributes.text("SOPClassUID", required=False) or media_class
    if sop_class not in _CT_CLASSES:
        if attributes.text("Modality", required=False) != "CT":
            raise Rejected(Reason.NOT_CT, _registered_name(sop_class))
        if sop_class == _SECONDARY_CAPTURE or sop_class.startswith(f"{_SECONDARY_CAPTURE}."):
            # Pictures of dose reports, 3D views or screens have gray levels, not Hounsfield units.
            raise Rejected(Reason.SECONDARY_CAPTURE)
    if "LOCALIZER" in (*attributes.texts("ImageType"), *attributes.texts("FrameType")):
        raise Rejected(Reason.LOCALIZER)


def _check_frame(attributes: Attributes, pixels: str) -> None:
    """Raise unless the image has a single frame and a single sample, in Hounsfield units."""
    if max(attributes.frames, attributes.integer("NumberOfFrames", default=1)) > 1:
        raise Rejected(Reason.MULTI_FRAME)
    # Both hold the same Hounsfield units: MONOCHROME1 inverts only the display, after the VOI
    # transformation (DICOM PS3.3 C.7.6.3.1.2).
    gray = ("MONOCHROME1", "MONOCHROME2")
    if (
        attributes.integer("SamplesPerPixel") != 1
        or attributes.text("PhotometricInterpretation") not in gray
    ):
        raise Rejected(Reason.NOT_GRAYSCALE)
    if pixels != "PixelData":
        raise Rejected(Reason.INVALID_ATTRIBUTE, f"{pixels} for PixelData")
    # Multi-energy CT also makes maps of electron density or iodine (PS3.3 C.11.1.1.2).
    if attributes.text("RescaleType", required=False) not in ("", "HU", "US"):
        raise Rejected(Reason.INVALID_ATTRIBUTE, "RescaleType is not HU")


def _registered_name(uid: str) -> str:
    """Return the name of a UID in the standard; empty if it has none.

    Only such a name is reported: a file may have any text in place of the UID.
    """
    from pydicom.uid import UID

    name = UID(uid).name
    return "" if name == uid else name


def _raise_without_pixels(parsed: Parsed) -> NoReturn:
    """Raise Rejected with the reason for missing pixels."""
    classes = (parsed.attributes.uid("SOPClassUID"), parsed.media_class)
    if any(sop_class in _CT_CLASSES for sop_class in classes):
        if parsed.size > MAX_HEADER_BYTES:
            detail = f"no pixels begin in the first {MAX_HEADER_BYTES} bytes"
            raise Rejected(Reason.TOO_LARGE, detail)
        raise Rejected(Reason.TRUNCATED_PIXELS, "the file ends before its pixels")
    for sop_class in classes:
        if (name := _registered_name(sop_class)).endswith("Image Storage"):
            raise Rejected(Reason.NOT_CT, name)
    if parsed.is_cut or not any(classes):
        detail = "the file ends within its header" if parsed.is_cut else "no SOP class, no pixels"
        raise Rejected(Reason.UNREADABLE, detail)
    # Structured reports, RT structures and plans, DICOMDIR.
    raise Rejected(Reason.NO_PIXELS)


def _shape(attributes: Attributes) -> tuple[int, int]:
    rows, columns = attributes.integer("Rows"), attributes.integer("Columns")
    if rows < 1 or columns < 1:
        raise Rejected(Reason.INVALID_ATTRIBUTE, f"Rows x Columns is {rows} x {columns}")
    if rows * columns > MAX_PIXELS:
        raise Rejected(Reason.TOO_LARGE, f"{rows} x {columns} pixels")
    return rows, columns


def _encoding(attributes: Attributes) -> PixelEncoding:
    allocated = attributes.integer("BitsAllocated")
    if allocated not in (8, 16):
        raise Rejected(Reason.INVALID_ATTRIBUTE, f"BitsAllocated is {allocated}, not 8 or 16")
    stored = attributes.integer("BitsStored")
    high_bit = attributes.integer("HighBit", default=stored - 1)
    if not 1 <= stored <= high_bit + 1 <= allocated:
        raise Rejected(
            Reason.INVALID_ATTRIBUTE,
            f"BitsStored {stored} and HighBit {high_bit} do not fit BitsAllocated {allocated}",
        )
    representation = attributes.integer("PixelRepresentation")
    if representation not in (0, 1):
        detail = f"PixelRepresentation is {representation}, not 0 or 1"
        raise Rejected(Reason.INVALID_ATTRIBUTE, detail)
    is_signed = representation == 1
    return PixelEncoding(
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=high_bit,
        signed=is_signed,
        slope=_rescale(attributes, "RescaleSlope"),
        intercept=_rescale(attributes, "RescaleIntercept"),
        padding=_padding(attributes, stored, is_signed),
    )


def _rescale(attributes: Attributes, keyword: str) -> float:
    value = attributes.number(keyword)
    if abs(value) > _MAX_RESCALE or (value == 0 and keyword == "RescaleSlope"):
        raise Rejected(Reason.INVALID_ATTRIBUTE, f"{keyword} is out of range")
    return value


def _padding(attributes: Attributes, stored: int, is_signed: bool) -> tuple[int, int] | None:
    """Return the range of stored values outside the image (DICOM PS3.3 C.7.5.1.1.2).

    The values should have the pixels' sign (C.7.5.1), but files often have the other sign: for
    signed pixels, a US of 63536 is -2000.
    """
    if attributes.value("PixelPaddingValue") is None:
        return None
    value = attributes.integer("PixelPaddingValue")
    limit = attributes.integer("PixelPaddingRangeLimit", default=value)
    lowest = -(1 << (stored - 1)) if is_signed else 0
    values = range(lowest, lowest + (1 << stored))
    first, last = sorted(
        next((reading for reading in (n, n - 0x10000, n + 0x10000) if reading in values), n)
        for n in (value, limit)
    )
    return first, last


def _window(attributes: Attributes) -> tuple[float, float] | None:
    centers, widths = attributes.numbers("WindowCenter"), attributes.numbers("WindowWidth")
    for center, width in zip(centers[:1], widths[:1], strict=False):
        if math.isfinite(center) and 0 < width < math.inf:
            return center, width
    return None


def _voi_function(attributes: Attributes) -> str:
    try:
        name = attributes.text("VOILUTFunction", required=False).upper()
    except Rejected:
        return OTHER_FUNCTION
    return name if name in ("", *VOI_FUNCTIONS) else OTHER_FUNCTION
