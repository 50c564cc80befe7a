"""Attributes of a DICOM data set, read with their standard types."""

import math
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.tag import BaseTag, Tag

from headct.reasons import Reason, Rejected

# Functional groups of an enhanced image hold attributes from a plain image's top level (DICOM PS3.3
# C.7.6.16.2, C.8.15.3).
FUNCTIONAL_GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
_MACROS = (
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "CTImageFrameTypeSequence",
)
# Value representations that depend on no character set and no other element.
_PLAIN = frozenset({"CS", "DS", "IS", "SS", "UI", "US"})
# Texts. All character sets of DICOM read ASCII alike, except for escape sequences and for backslash
# and tilde in JIS X 0201 (DICOM PS3.5 6.1).
_TEXT = frozenset({"LO", "SH"})
_DEPENDS_ON_CHARACTER_SET = re.compile(rb"[^\x00-\x7f]|[\x1b\\~]")
_LONGEST_COMMON = 64  # bytes; bounds the cache


class Attributes:
    """Attributes of a data set; attributes of its only frame take precedence.

    Attributes:
        frames: number of frames in the functional groups.
    """

    def __init__(self, dataset: Dataset) -> None:
        top = Elements(dataset)
        groups = [items for key in FUNCTIONAL_GROUPS if (items := top.items(key))]
        first = [Elements(items[0]) for items in groups]
        macros = [
            Elements(macro) for group in first for key in _MACROS for macro in group.items(key)
        ]
        self._sources = [*macros, top]
        self.frames = max(map(len, groups), default=1)

    def value(self, keyword: str) -> Any:
        """Return an attribute's value; None if absent or empty.

        Raises:
            Rejected: the attribute's bytes are no value of its type.
        """
        for source in self._sources:
            value = source.value(keyword)
            if value is not None and value != "":
                return value
        return None

    def texts(self, keyword: str) -> tuple[str, ...]:
        """Return an attribute's texts without surrounding blanks; empty if absent."""
        value = self.value(keyword)
        values = _values(value)
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
        """Return a text as UTF-8, from any character set; empty if absent."""
        value = next(filter(None, (source.stored(keyword) for source in self._sources)), b"")
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

    def numbers(self, keyword: str, count: int) -> tuple[float, ...]:
        """Return `count` finite numbers; NaNs if the attribute has other values."""
        try:
            numbers = tuple(_number(item) for item in _values(self.value(keyword)))
        except Rejected:
            numbers = ()
        if len(numbers) != count or not all(map(math.isfinite, numbers)):
            return (math.nan,) * count
        return numbers

    def first_number(self, keyword: str) -> float:
        """Return the first of several numbers; NaN without numbers."""
        try:
            values = _values(self.value(keyword))
        except Rejected:
            values = ()
        return _number(values[0]) if values else math.nan


class Elements:
    """Elements of a data set; pydicom's own look-up takes most of the time per header."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._elements: dict[int, DataElement | RawDataElement] = {
            int(element.tag): element for element in dataset.values()
        }

    def value(self, keyword: str) -> Any:
        """Return an attribute's value; None if absent."""
        tag, vr = _look_up(keyword)
        element = self._elements.get(tag)
        if element is None:
            return None
        try:
            if isinstance(element, RawDataElement) and _is_common(element, vr):
                implicit, little = element.is_implicit_VR, element.is_little_endian
                return _convert(tag, element.VR, element.value, implicit, little)
            return self._dataset[tag].value
        except Exception as error:  # pydicom may raise anything on untrusted bytes
            detail = f"{keyword}: {type(error).__name__}"
            raise Rejected(Reason.INVALID_ATTRIBUTE, detail) from None

    def stored(self, keyword: str) -> Any:
        """Return an attribute's bytes, or the value if pydicom has converted the bytes."""
        element = self._elements.get(_look_up(keyword)[0])
        return None if element is None else element.value

    def items(self, keyword: str) -> Sequence[Dataset]:
        """Return a sequence's items; empty if absent."""
        return [item for item in _values(self.value(keyword)) if isinstance(item, Dataset)]


@cache  # a few keywords, looked up in every file
def _look_up(keyword: str) -> tuple[int, str]:
    """Return an attribute's tag and standard value representation."""
    return int(Tag(keyword)), dictionary_VR(keyword)


def _is_common(element: RawDataElement, vr: str) -> bool:
    """Return whether a value depends only on its bytes and may recur in many files."""
    value = element.value
    if not value or len(value) > _LONGEST_COMMON or (element.VR or vr) != vr:
        return False
    return vr in _PLAIN or (vr in _TEXT and not _DEPENDS_ON_CHARACTER_SET.search(value))


@lru_cache(maxsize=1 << 12)
def _convert(tag: int, vr: str | None, value: bytes, implicit: bool, little_endian: bool) -> Any:
    """Convert a value like pydicom; cached, since most values repeat the previous file's."""
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
