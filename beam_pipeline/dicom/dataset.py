"""DICOM data sets: files parsed up to their pixels, and attributes with their standard types.

The parser locates pixels without reading them: headers and slices share the parser.
"""

import io
import logging
import math
import re
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from headct.reasons import Reason, Rejected

# Imported where it is used: it takes long to load, and the main process of a run reads no header.
if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.dataelem import DataElement, RawDataElement
    from pydicom.tag import BaseTag

# Transfer syntaxes without compression (DICOM PS3.5 A.1 to A.3, A.5).
IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
DEFLATED_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG_ENDIAN = "1.2.840.10008.1.2.2"

# The pixels of a CT slice begin within a few KiB, or later after large private elements. For this
# many bytes of empty items pydicom needs 4 s and 120 MB.
MAX_HEADER_BYTES = 1 << 21
# Header and pixels (4096 x 4096 at 16 bits) together, deflated or not.
MAX_FILE_BYTES = MAX_HEADER_BYTES + (1 << 25)
BEGINNING = 1 << 10  # bytes that `name_kind` looks at

# Functional groups of an enhanced image hold attributes from a plain image's top level (DICOM PS3.3
# C.7.6.16.2, C.8.15.3).
FUNCTIONAL_GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
_MACROS = (
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "CTImageFrameTypeSequence",
    "FrameContentSequence",
    "FrameAnatomySequence",
    "ContrastBolusUsageSequence",
    "CTAcquisitionTypeSequence",
    "CTAcquisitionDetailsSequence",
    "CTTableDynamicsSequence",
    "CTPositionSequence",
    "CTGeometrySequence",
    "CTReconstructionSequence",
    "CTExposureSequence",
    "CTXRayDetailsSequence",
    # of images converted from single-frame files (C.7.6.16.2.25)
    "UnassignedSharedConvertedAttributesSequence",
    "UnassignedPerFrameConvertedAttributesSequence",
)
# Value representations that depend on no character set and no other element.
_PLAIN = frozenset({"CS", "DS", "IS", "SS", "UI", "US"})
# Texts. All character sets of DICOM read ASCII alike, except for escape sequences and for backslash
# and tilde in JIS X 0201 (DICOM PS3.5 6.1).
_TEXT = frozenset({"LO", "SH"})
_DEPENDS_ON_CHARACTER_SET = re.compile(rb"[^\x00-\x7f]|[\x1b\\~]")
_LONGEST_COMMON = 128  # bytes, more than six of a DS; bounds the cache

_UNDEFINED = 0xFFFFFFFF
_META_TAGS: "list[BaseTag | int]" = [0x00020010, 0x00020002]  # transfer syntax, SOP class
_PIXEL_GROUP = 0x7FE0
_PIXEL_TAGS = {
    0x7FE00010: "PixelData",
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
}

_SIGNATURES = (
    (0, b"PK\3\4", "ZIP archive"),
    (257, b"ustar", "tar archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (0, b"Rar!\x1a\x07", "RAR archive"),
    (0, b"BZh", "bzip2 archive"),
    (0, b"\xfd7zXZ\0", "xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "Zstandard archive"),
    (344, b"n+1\0", "NIfTI image"),
    (344, b"ni1\0", "NIfTI header"),
    (4, b"n+2\0\r\n\x1a\n", "NIfTI image"),
    (0, b"\x5c\x01\0\0", "Analyze header"),  # 348, the size of the header, also in NIfTI
    (0, b"NRRD000", "NRRD image"),
    (0, b"ObjectType = ", "MetaImage"),
    (0, b"NDims = ", "MetaImage"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG image"),
    (0, b"\xff\xd8\xff", "JPEG image"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000 image"),
    (0, b"GIF8", "GIF image"),
    (0, b"BM", "BMP image"),
    (0, b"II*\0", "TIFF image"),
    (0, b"MM\0*", "TIFF image"),
    (8, b"WEBP", "WebP image"),
    (0, b"\x93NUMPY", "NumPy array"),
    (0, b"\x89HDF\r\n\x1a\n", "HDF5 file"),
    (0, b"MATLAB 5.0", "MATLAB file"),
    (0, b"PAR1", "Parquet table"),
    (0, b"%PDF-", "PDF document"),
)
_PAGE = re.compile(rb"(?i)\s*<(!doctype )?html")
_GZIP = b"\x1f\x8b"
# Two threads that change and restore the same settings would restore the other's values.
_ONE_AT_A_TIME = threading.RLock()


@dataclass(frozen=True)
class PixelElement:
    """The pixels' data element.

    Attributes:
        keyword: keyword of the attribute; differs for integers and floating-point numbers.
        vr: value representation; empty if implicit.
        offset: offset of the value's first byte in the body.
        length: stated length of the value, bytes; None if undefined, as for an encapsulated code
            stream (DICOM PS3.5 A.4).
    """

    keyword: str
    vr: str
    offset: int
    length: int | None


@dataclass(frozen=True)
class Parsed:
    """A file, parsed up to its pixels.

    Attributes:
        attributes: the requested attributes present in the file.
        media_class: SOP class of the file meta information; empty if absent.
        transfer_syntax: UID.
        body: the file's bytes; the inflated data set of a deflated file.
        size: size of `body` for the whole file.
        pixels: the pixels' element; None if the pixels do not begin in `body`.
        is_cut: whether `body` lacks pixels and ends within an element.
    """

    attributes: "Attributes"
    media_class: str
    transfer_syntax: str
    body: bytes
    size: int
    pixels: PixelElement | None
    is_cut: bool


class Attributes:
    """Attributes of a data set; attributes of its only frame take precedence.

    pydicom's own look-up would take most of the time per header.
    """

    def __init__(self, dataset: "Dataset") -> None:
        self._dataset = dataset
        self._elements: dict[int, Any] = {  # DataElement | RawDataElement
            int(element.tag): element for element in dataset.values()
        }

    @cached_property
    def _groups(self) -> list[list["Attributes"]]:
        """The frames of each functional group."""
        return [frames for group in FUNCTIONAL_GROUPS if (frames := self._items(group))]

    @cached_property
    def _sources(self) -> list["Attributes"]:
        first = [frames[0] for frames in self._groups]
        return [*(macro for group in first for key in _MACROS for macro in group._items(key)), self]

    @property
    def frames(self) -> int:
        """Number of frames in the functional groups."""
        return max(map(len, self._groups), default=1)

    def value(self, keyword: str) -> Any:
        """Return an attribute's value; None if absent or empty.

        Raises:
            Rejected: the attribute's bytes are no value of its type.
        """
        for source in self._sources:
            value = source._own(keyword)
            if value is not None and value != "":
                return value
        return None

    def uid(self, keyword: str) -> str:
        """Return a UID of the data set itself; empty if absent or not text."""
        value = self._own(keyword)
        return str(value) if isinstance(value, str) else ""

    def values(self, keyword: str) -> Sequence[Any]:
        """Return all values of an attribute, which may have one or several; raise as `value`."""
        return _values(self.value(keyword))

    def texts(self, keyword: str) -> tuple[str, ...]:
        """Return an attribute's texts without surrounding blanks; empty if absent."""
        values = self.values(keyword)
        if not all(isinstance(item, str) for item in values):
            raise Rejected(Reason.INVALID_ATTRIBUTE, f"{keyword} is no text")
        return tuple(item.strip(" \0") for item in values)

    def text(self, keyword: str, *, required: bool = True) -> str:
        """Return an attribute's text.

        Raises:
            Rejected: the attribute is required, and absent or empty.
        """
        text = "\\".join(self.texts(keyword))
        if required and not text:
            raise Rejected(Reason.MISSING_ATTRIBUTE, keyword)
        return text

    def plain_text(self, keyword: str) -> str:
        """Return a text of the data set itself as UTF-8, from any character set."""
        element = self._elements.get(_look_up(keyword)[0])
        value = (element and element.value) or b""
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        return text.strip(" \0")

    def number(self, keyword: str, default: float | None = None) -> float:
        """Return an attribute's number; the file may repeat the number.

        Raises:
            Rejected: the attribute is absent without a default, not finite, or has several values.
        """
        value = self.value(keyword)
        if value is None:
            if default is None:
                raise Rejected(Reason.MISSING_ATTRIBUTE, keyword)
            return default
        numbers = {_number(item) for item in _values(value)}
        if len(numbers) != 1 or not math.isfinite(number := numbers.pop()):
            raise Rejected(Reason.INVALID_ATTRIBUTE, f"{keyword} is not one number")
        return number

    def integer(self, keyword: str, default: int | None = None) -> int:
        """Return an attribute's whole number; raise as `number` does."""
        number = self.number(keyword, default)
        if number % 1:
            raise Rejected(Reason.INVALID_ATTRIBUTE, f"{keyword} is not one integer")
        return int(number)

    def numbers(self, keyword: str, count: int | None = None) -> tuple[float, ...]:
        """Return all numbers, or `count` finite ones; values that are no numbers are NaN."""
        try:
            numbers = tuple(map(_number, self.values(keyword)))
        except Rejected:
            numbers = ()
        if count is not None and (len(numbers) != count or not all(map(math.isfinite, numbers))):
            return (math.nan,) * count
        return numbers

    def _own(self, keyword: str) -> Any:
        """Return the value of the data set itself; None if absent."""
        tag, vr = _look_up(keyword)
        element = self._elements.get(tag)
        if element is None:
            return None
        try:
            if element.is_raw and _is_common(element, vr):
                implicit, little = element.is_implicit_VR, element.is_little_endian
                return _convert(tag, element.VR, element.value, implicit, little)
            return self._dataset[tag].value
        except Exception as error:  # pydicom may raise anything on untrusted bytes
            detail = f"{keyword}: {type(error).__name__}"
            raise Rejected(Reason.INVALID_ATTRIBUTE, detail) from None

    def _items(self, keyword: str) -> list["Attributes"]:
        from pydicom import Dataset

        items = _values(self._own(keyword))
        return [Attributes(item) for item in items if isinstance(item, Dataset)]


@cache  # a few keywords, looked up in every file
def _look_up(keyword: str) -> tuple[int, str]:
    """Return tag and standard value representation by keyword or hexadecimal tag."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR
    from pydicom.tag import Tag

    tag = Tag(keyword)
    return int(tag), dictionary_VR(tag) if dictionary_has_tag(tag) else ""


def _is_common(element: "RawDataElement", vr: str) -> bool:
    """Return whether a value depends only on its bytes and may recur in many files."""
    value = element.value
    if not value or len(value) > _LONGEST_COMMON or (element.VR or vr) != vr:
        return False
    return vr in _PLAIN or (vr in _TEXT and not _DEPENDS_ON_CHARACTER_SET.search(value))


@lru_cache(maxsize=1 << 12)
def _convert(tag: int, vr: str | None, value: bytes, implicit: bool, little_endian: bool) -> Any:
    """Convert a value like pydicom; cached, since most values repeat the previous file's."""
    from pydicom.dataelem import RawDataElement, convert_raw_data_element
    from pydicom.tag import BaseTag

    raw = RawDataElement(BaseTag(tag), vr, len(value), value, 0, implicit, little_endian)
    return convert_raw_data_element(raw).value


def _values(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else (value,)


def _number(item: Any) -> float:
    """Return a number, else NaN; Python's float would accept bytes and underscores."""
    if isinstance(item, bytes) or (type(item) is not int and "_" in str(item)):
        return math.nan
    try:
        return float(item)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def check_beginning(data: bytes) -> None:
    """Raise unless a file's first bytes may be DICOM (DICOM PS3.10 7.1).

    Files without preamble and prefix begin with a data element of the file meta information
    (group 2) or of the identifying group 8.

    Raises:
        Rejected: the file is not DICOM.
    """
    if data[128:132] == b"DICM" or data[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        return
    raise Rejected(Reason.NOT_DICOM, name_kind(data) if data else "empty file")


def name_kind(beginning: bytes) -> str:
    """Return the kind of a file by its first bytes; empty for DICOM and for unknown kinds."""
    if beginning[128:132] == b"DICM":  # the preamble may be another format's (PS3.10 7.1)
        return ""
    for offset, signature, kind in _SIGNATURES:
        if beginning[offset : offset + len(signature)] == signature:
            return kind
    if _PAGE.match(beginning):
        return "web page"
    return _gzip_kind(beginning) if beginning.startswith(_GZIP) else ""


def _gzip_kind(beginning: bytes) -> str:
    try:
        inside = zlib.decompressobj(wbits=31).decompress(beginning, BEGINNING)
    except zlib.error:
        return "gzip archive"
    if inside[128:132] == b"DICM":
        return "compressed DICOM file"
    kind = "" if inside.startswith(_GZIP) else name_kind(inside)
    return f"compressed {kind}" if kind else "gzip archive"


@contextmanager
def contained(reason: Reason) -> Iterator[None]:
    """Run third-party parsers on untrusted bytes; turn their failures into Rejected.

    On broken files parsers raise any exception, from IndexError to RecursionError, and their
    messages, warnings and log lines quote the header. So Rejected names only the exception's type,
    and this context drops warnings and pydicom's log lines. At the end the context restores
    the settings of pydicom, `warnings` and `logging`; one thread at a time changes the settings.

    Raises:
        Rejected: with `reason`, for any exception except Rejected itself.
        MemoryError: memory is short; sizes were checked before.
    """
    from pydicom import config

    logger = logging.getLogger("pydicom")
    with _ONE_AT_A_TIME, warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        propagate = logger.propagate
        # Root handlers, such as the terminal, receive nothing; handlers of pydicom's logger stay.
        logger.propagate = False
        try:
            yield
        except (Rejected, MemoryError):
            raise
        except Exception as error:
            raise Rejected(reason, type(error).__name__) from None
        finally:
            logger.propagate = propagate


def parse(data: bytes, size: int, tags: "list[BaseTag | int]") -> Parsed:
    """Read a file up to its pixels.

    Args:
        data: the first bytes of the file, or all bytes.
        size: size of the whole file, bytes.
        tags: attributes to read; others are skipped.

    Raises:
        Rejected: the file is not DICOM, or broken before its pixels.
    """
    from pydicom.filereader import read_dataset
    from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

    found: list[tuple[int, str | None, int]] = []

    def is_pixels(tag: "BaseTag", vr: str | None, length: int) -> bool:
        # The group first: comparing tags is slow, and few are in the pixels' group.
        if tag >> 16 == _PIXEL_GROUP and tag in _PIXEL_TAGS:
            found.append((tag, vr, length))
        return bool(found)

    check_beginning(data)
    with contained(Reason.UNREADABLE):
        source = io.BytesIO(data[:MAX_HEADER_BYTES])
        source.seek(132 if data[128:132] == b"DICM" else 0)
        meta = read_dataset(
            source, False, True, stop_when=lambda tag, *_: tag.group != 2, specific_tags=_META_TAGS
        )
        syntax = Attributes(meta).uid("TransferSyntaxUID")
        if syntax == DEFLATED_LITTLE_ENDIAN:
            data = inflate(data[source.tell() :], MAX_FILE_BYTES)
            size, source = len(data), io.BytesIO(data[:MAX_HEADER_BYTES])
        syntax = syntax or _guess_syntax(source)
        is_implicit, is_big = syntax == IMPLICIT_LITTLE_ENDIAN, syntax == EXPLICIT_BIG_ENDIAN
        dataset = read_dataset(source, is_implicit, not is_big, None, is_pixels, specific_tags=tags)
        pixels = None
        if found:
            tag, vr, length = found[0]
            # DICOM PS3.5 7.1; the VR is None in Implicit VR
            offset = source.tell() + (12 if vr in EXPLICIT_VR_LENGTH_32 else 8)
            stated = None if length == _UNDEFINED else length
            pixels = PixelElement(_PIXEL_TAGS[tag], vr or "", offset, stated)
        # pydicom seeks past the end of skipped elements, and truncates other elements.
        is_cut = pixels is None and (
            source.tell() > size or any(map(_is_short, (*meta.values(), *dataset.values())))
        )
        media_class = Attributes(meta).uid("MediaStorageSOPClassUID")
        return Parsed(Attributes(dataset), media_class, syntax, data, size, pixels, is_cut)


def inflate(data: bytes, limit: int) -> bytes:
    """Inflate a data set (DICOM PS3.5 A.5), perhaps cut off, to at most `limit` bytes.

    Raises:
        Rejected: the result is longer.
        zlib.error: the data is not a raw deflate stream (RFC 1951).
    """
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = stream.decompress(data, limit)
    if len(inflated) >= limit and not stream.eof:
        raise Rejected(Reason.TOO_LARGE, f"more than {limit} bytes when inflated")
    return inflated


def _is_short(element: "DataElement | RawDataElement") -> bool:
    """Return whether an element has fewer bytes than its stated length."""
    from pydicom.dataelem import RawDataElement

    return isinstance(element, RawDataElement) and element.length > len(element.value or b"")


def _guess_syntax(source: io.BytesIO) -> str:
    """Return the native transfer syntax that fits the first data element."""
    from pydicom.valuerep import VR

    beginning = source.read(6)
    source.seek(-len(beginning), io.SEEK_CUR)
    if len(beginning) < 6 or beginning[4:].decode("latin-1") not in [*VR]:
        return IMPLICIT_LITTLE_ENDIAN
    # The first group is 8, two bytes: 8 and 0, or 0 and 8.
    is_big = beginning[0] < beginning[1]
    return EXPLICIT_BIG_ENDIAN if is_big else EXPLICIT_LITTLE_ENDIAN
