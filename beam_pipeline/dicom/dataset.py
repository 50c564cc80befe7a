"""Parser of DICOM files up to the pixels: requested attributes, and the pixels' location.

The parser locates pixels without reading them: headers and slices share the parser.
"""

import io
import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pydicom import Dataset, config
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

from beam_pipeline.dicom.attributes import Elements
from headct.reasons import Reason, Rejected

# The pixels of a CT slice begin within a few KiB, or later after large private elements. For this
# many bytes of empty items pydicom needs 4 s and 120 MB.
MAX_HEADER_BYTES = 1 << 21
# Header and pixels (4096 x 4096 at 16 bits) together, deflated or not.
MAX_FILE_BYTES = MAX_HEADER_BYTES + (1 << 25)

_UNDEFINED = 0xFFFFFFFF
_META_TAGS: list[BaseTag | int] = [Tag("TransferSyntaxUID"), Tag("MediaStorageSOPClassUID")]
_PIXEL_TAGS = {
    Tag("PixelData"): "PixelData",
    Tag("FloatPixelData"): "FloatPixelData",
    Tag("DoubleFloatPixelData"): "DoubleFloatPixelData",
}
_PIXEL_GROUP = 0x7FE0
_VALUE_REPRESENTATIONS = frozenset(member.value.encode() for member in VR)
BEGINNING = 1 << 10  # bytes that `name_kind` looks at

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
_PAGES = (b"<!doctype html", b"<html")
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
        dataset: the requested attributes present in the file.
        media_class: SOP class of the file meta information; empty if absent.
        transfer_syntax: UID.
        big_endian: byte order of words.
        body: the file's bytes; the inflated data set of a deflated file.
        size: size of `body` for the whole file.
        pixels: the pixels' element; None if the pixels do not begin in `body`.
        is_cut: whether `body` lacks pixels and ends within an element.
    """

    dataset: Dataset
    media_class: str
    transfer_syntax: str
    big_endian: bool
    body: bytes
    size: int
    pixels: PixelElement | None
    is_cut: bool = False


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
    """Return the kind of a file; empty for DICOM and for unknown kinds.

    Args:
        beginning: the first `BEGINNING` bytes.
    """
    if beginning[128:132] == b"DICM":  # the preamble may be another format's (PS3.10 7.1)
        return ""
    for offset, signature, kind in _SIGNATURES:
        if beginning[offset : offset + len(signature)] == signature:
            return kind
    if beginning.lstrip()[:20].lower().startswith(_PAGES):
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
    with _ONE_AT_A_TIME, _hushed():
        try:
            yield
        except (Rejected, MemoryError):
            raise
        except Exception as error:
            raise Rejected(reason, type(error).__name__) from None


@contextmanager
def _hushed() -> Iterator[None]:
    logger = logging.getLogger("pydicom")
    propagate = logger.propagate
    # Root handlers, such as the terminal, receive nothing; handlers of pydicom's logger stay.
    logger.propagate = False
    try:
        with warnings.catch_warnings(), config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.propagate = propagate


def parse(data: bytes, size: int, tags: list[BaseTag | int]) -> Parsed:
    """Read a file up to its pixels.

    Args:
        data: the first bytes of the file, or all bytes.
        size: size of the whole file, bytes.
        tags: attributes to read; others are skipped.

    Raises:
        Rejected: the file is not DICOM, or broken before its pixels.
    """
    check_beginning(data)
    with contained(Reason.UNREADABLE):
        source = io.BytesIO(data[:MAX_HEADER_BYTES])
        source.seek(132 if data[128:132] == b"DICM" else 0)
        meta = read_dataset(source, False, True, stop_when=_after_meta, specific_tags=_META_TAGS)
        syntax = uid_of(meta, "TransferSyntaxUID")
        if syntax == DeflatedExplicitVRLittleEndian:
            data = inflate(data[source.tell() :], MAX_FILE_BYTES)
            size, source = len(data), io.BytesIO(data[:MAX_HEADER_BYTES])
        syntax = syntax or _guess_syntax(source)
        stop = _UntilPixels()
        dataset = read_dataset(
            source,
            is_implicit_VR=syntax == ImplicitVRLittleEndian,
            is_little_endian=syntax != ExplicitVRBigEndian,
            stop_when=stop,
            specific_tags=tags,
        )
        pixels = stop.element(source.tell(), bool(dataset.original_encoding[0]))
        # pydicom seeks past the end of skipped elements, and truncates other elements.
        is_cut = pixels is None and (
            source.tell() > size or any(map(_is_short, (*meta.values(), *dataset.values())))
        )
        media_class = uid_of(meta, "MediaStorageSOPClassUID")
        big_endian = syntax == ExplicitVRBigEndian
        return Parsed(dataset, media_class, syntax, big_endian, data, size, pixels, is_cut)


def inflate(data: bytes, limit: int) -> bytes:
    """Inflate a data set (DICOM PS3.5 A.5); the data set may be cut off.

    Args:
        data: a raw deflate stream (RFC 1951).
        limit: maximum size of the result, bytes.

    Raises:
        Rejected: the result is longer than the limit.
        zlib.error: the data is not a deflate stream.
    """
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = stream.decompress(data, limit)
    if len(inflated) >= limit and not stream.eof:
        raise Rejected(Reason.TOO_LARGE, f"more than {limit} bytes when inflated")
    return inflated


class _UntilPixels:
    """Stops pydicom at the pixels, and records tag, VR and length of the pixels' element."""

    def __init__(self) -> None:
        self._seen: tuple[BaseTag, str, int] | None = None

    def __call__(self, tag: BaseTag, vr: str | None, length: int) -> bool:
        # The group first: comparing tags is slow, and few are in the pixels' group.
        if tag >> 16 != _PIXEL_GROUP or tag not in _PIXEL_TAGS:
            return False
        self._seen = tag, vr or "", length
        return True

    def element(self, position: int, implicit: bool) -> PixelElement | None:
        """Return the pixels' element at a position (DICOM PS3.5 7.1)."""
        if self._seen is None:
            return None
        tag, vr, length = self._seen
        prefix = 12 if not implicit and vr in EXPLICIT_VR_LENGTH_32 else 8
        stated = None if length == _UNDEFINED else length
        return PixelElement(_PIXEL_TAGS[tag], vr, position + prefix, stated)


def _after_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag.group != 2


def _is_short(element: DataElement | RawDataElement) -> bool:
    """Return whether an element has fewer bytes than its stated length."""
    return isinstance(element, RawDataElement) and element.length > len(element.value or b"")


def uid_of(dataset: Dataset, keyword: str) -> str:
    """Return a UID; empty if absent or not text."""
    value = Elements(dataset).value(keyword)
    return str(value) if isinstance(value, str) else ""


def _guess_syntax(source: io.BytesIO) -> str:
    """Return the native transfer syntax that fits the first data element."""
    beginning = source.read(6)
    source.seek(-len(beginning), io.SEEK_CUR)
    if len(beginning) < 6 or beginning[4:] not in _VALUE_REPRESENTATIONS:
        return str(ImplicitVRLittleEndian)
    (group,) = struct.unpack("<H", beginning[:2])
    # Group 8, read in the wrong byte order, is 2048.
    return str(ExplicitVRBigEndian if group >= 1024 else ExplicitVRLittleEndian)
