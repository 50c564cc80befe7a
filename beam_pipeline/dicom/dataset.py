"""DICOM bytes to a data set of few attributes, and where its pixels are.

Nothing here knows of CT. The pixels are found, not read: inspection of a header and reading of a
slice go through the same code.
"""

import io
import struct
import zlib
from dataclasses import dataclass

from pydicom import Dataset
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
from beam_pipeline.dicom.other_files import name_kind
from beam_pipeline.dicom.third_party import contained
from headct.reasons import Reason, Rejected

# The pixels of a CT slice begin within a few KiB, behind large private elements within some more.
# Made of nothing but empty items, so many bytes take pydicom 4 s and 120 MB.
MAX_HEADER_BYTES = 1 << 21
# Header and pixels (4096 x 4096 of 16 bits) together, deflated or not.
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


@dataclass(frozen=True)
class PixelElement:
    """Where the pixels are.

    Attributes:
        keyword: of the attribute: integers or floating-point numbers.
        vr: value representation; empty where the file does not say.
        offset: of the value's first byte in the body.
        length: of the value as the file says, bytes; None if it says "undefined", which is the
            sign of an encapsulated code stream (DICOM PS3.5 A.4).
    """

    keyword: str
    vr: str
    offset: int
    length: int | None


@dataclass(frozen=True)
class Parsed:
    """A file, read up to its pixels.

    Attributes:
        dataset: of the attributes asked for, as far as the file has them.
        media_class: SOP class of the file meta information; empty where the file has none.
        transfer_syntax: its UID.
        big_endian: the order of bytes in words.
        body: the file's bytes; if these are deflated, its data set's bytes, inflated.
        size: how many bytes `body` has when the file is read whole.
        pixels: where they are, or None if they do not begin in `body`.
        is_cut: whether `body` has no pixels and ends within an element.
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
    """Raise unless a file that begins like this may be DICOM (DICOM PS3.10 7.1).

    Files without preamble and prefix begin with a data element of the file meta information
    (group 2) or of the identifying group 8.

    Raises:
        Rejected: it is something else.
    """
    if data[128:132] == b"DICM" or data[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        return
    raise Rejected(Reason.NOT_DICOM, name_kind(data) if data else "empty file")


def parse(data: bytes, size: int, tags: list[BaseTag | int]) -> Parsed:
    """Read a file up to its pixels.

    Args:
        data: its first bytes, or all.
        size: of the whole file, bytes.
        tags: the attributes to read; others are skipped.

    Raises:
        Rejected: it is no DICOM file, or broken before its pixels.
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
        # pydicom seeks beyond the end of an element that it skips, and keeps others short.
        is_cut = pixels is None and (
            source.tell() > size or any(map(_is_short, (*meta.values(), *dataset.values())))
        )
        media_class = uid_of(meta, "MediaStorageSOPClassUID")
        big_endian = syntax == ExplicitVRBigEndian
        return Parsed(dataset, media_class, syntax, big_endian, data, size, pixels, is_cut)


def inflate(data: bytes, limit: int) -> bytes:
    """Inflate a data set (DICOM PS3.5 A.5), as far as the bytes go.

    Args:
        data: a raw deflate stream (RFC 1951).
        limit: bytes that the result may have; no more is ever allocated.

    Raises:
        Rejected: there is more.
        zlib.error: it is no deflate stream.
    """
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = stream.decompress(data, limit)
    if len(inflated) >= limit and not stream.eof:
        raise Rejected(Reason.TOO_LARGE, f"more than {limit} bytes when inflated")
    return inflated


class _UntilPixels:
    """Stops pydicom at the pixels, and remembers what it read of their element."""

    def __init__(self) -> None:
        self._seen: tuple[BaseTag, str, int] | None = None

    def __call__(self, tag: BaseTag, vr: str | None, length: int) -> bool:
        # The group first: comparing tags costs much, and nearly none are in the pixels' group.
        if tag >> 16 != _PIXEL_GROUP or tag not in _PIXEL_TAGS:
            return False
        self._seen = tag, vr or "", length
        return True

    def element(self, position: int, implicit: bool) -> PixelElement | None:
        """The pixels' element, which begins at a position (DICOM PS3.5 7.1)."""
        if self._seen is None:
            return None
        tag, vr, length = self._seen
        prefix = 12 if not implicit and vr in EXPLICIT_VR_LENGTH_32 else 8
        stated = None if length == _UNDEFINED else length
        return PixelElement(_PIXEL_TAGS[tag], vr, position + prefix, stated)


def _after_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag.group != 2


def _is_short(element: DataElement | RawDataElement) -> bool:
    """Whether an element has less bytes than it says."""
    return isinstance(element, RawDataElement) and element.length > len(element.value or b"")


def uid_of(dataset: Dataset, keyword: str) -> str:
    """A UID; empty where it is absent, or no text."""
    value = Elements(dataset).value(keyword)
    return str(value) if isinstance(value, str) else ""


def _guess_syntax(source: io.BytesIO) -> str:
    """The native transfer syntax whose first data element looks like the one here."""
    beginning = source.read(6)
    source.seek(-len(beginning), io.SEEK_CUR)
    if len(beginning) < 6 or beginning[4:] not in _VALUE_REPRESENTATIONS:
        return str(ImplicitVRLittleEndian)
    (group,) = struct.unpack("<H", beginning[:2])
    # Group 8, read in the wrong order, is 2048.
    return str(ExplicitVRBigEndian if group >= 1024 else ExplicitVRLittleEndian)
