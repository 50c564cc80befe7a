"""Selection of slices by their headers: orientation, and conditions on attributes (`--where`)."""

import fnmatch
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from beam_pipeline.dicom.acquisition import AXIAL, UNKNOWN
from beam_pipeline.dicom.dataset import Attributes
from headct.declarations import did_you_mean
from headct.errors import UsageError
from headct.printable import quoted
from headct.reasons import Reason, Rejected

_CONDITION = re.compile(
    r"\s*(?P<absent>!?)\s*(?P<name>\w+|\(?[0-9a-f]{4},\s*[0-9a-f]{4}\)?)\s*"
    r"(?:(?P<operator><=|>=|!=|==?|<|>)(?P<values>.*))?",
    re.IGNORECASE | re.DOTALL,
)
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NUMBERS = frozenset({"DS", "IS", "FL", "FD", "SS", "US", "SL", "UL", "SV", "UV", "AS"})
_ORDERED_TEXTS = frozenset({"DA", "TM", "DT", ""})  # the digits of a date are a number
_TIME_ZONE = re.compile(r"(?<=^\d{14})((?:\.\d+)?)[+-]\d{4}$")  # of a DT
_YEARS = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}  # units of an AS per year
_SYNTAX = "TransferSyntaxUID"  # of the file meta information, which is no part of the data set
_LAST_GROUP = 0x7FE0  # pixels; attributes behind them are not read
# Attributes of the Basic Application Level Confidentiality Profile (DICOM PS3.15 table E.1-1) that
# identify a person: all names (PN), all UIDs of instances (UI), the groups of patients and visits
# except _SHARED_BY_MANY, and _IDENTIFYING.
_ABOUT_PEOPLE = (0x0010, 0x0038)
_SHARED_BY_MANY = frozenset(
    {"PatientSex", "PatientAge", "PatientSize", "PatientWeight", "PregnancyStatus", "SmokingStatus"}
)
_IDENTIFYING = frozenset(
    {
        *("AccessionNumber", "StudyID", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID"),
        *("RequestedProcedureID", "ScheduledProcedureStepID", "PerformedProcedureStepID"),
        *("PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest"),
        *("PlacerOrderNumberImagingServiceRequestRetired", "PlacerOrderNumberProcedure"),
        *("FillerOrderNumberImagingServiceRequestRetired", "FillerOrderNumberProcedure"),
        *("SpecimenAccessionNumber", "SpecimenIdentifier", "ContainerIdentifier"),
        *("ReferringPhysicianAddress", "ReferringPhysicianTelephoneNumbers", "PersonAddress"),
        *("PersonTelephoneNumbers", "PersonTelecomInformation", "OrderCallbackPhoneNumber"),
        "OrderCallbackTelecomInformation",
    }
)


@dataclass(frozen=True)
class Condition:
    """A condition on an attribute.

    Attributes:
        text: as the user wrote it.
        keyword: of the attribute; the tag in hexadecimal without a keyword.
        tags: attributes to read.
        operator: empty for a condition on presence.
        wanted: a pattern and a number per value; NaN if the value is compared as text.
        is_negated: whether no value may match.
    """

    text: str
    keyword: str
    tags: tuple[int, ...]
    operator: str
    wanted: tuple[tuple[re.Pattern[str], float], ...]
    is_negated: bool

    def holds(self, attributes: Attributes, transfer_syntax: str) -> bool:
        """Return whether a file meets the condition; values of a wrong type match nothing."""
        try:
            values = [
                value
                for value in attributes.values(self.keyword)
                if not isinstance(value, str) or value.strip(" \0")
            ]
        except Rejected:  # present, but no value of its type
            values = [None]
        if self.keyword == _SYNTAX:
            values = [transfer_syntax]
        matches = bool(values) if not self.operator else any(map(self._matches, values))
        return matches != self.is_negated

    def _matches(self, value: Any) -> bool:
        if value is None:
            return False
        if isinstance(value, bytes):  # of a private attribute
            value = value.decode("ascii", "replace")
        text = str(value).strip(" \0")
        number = _number(text)
        if self.operator in _COMPARE:
            ((_, limit),) = self.wanted
            return _COMPARE[self.operator](number, limit)
        return any(pattern.match(text) or number == wanted for pattern, wanted in self.wanted)


@dataclass(frozen=True)
class Selection:
    """The slices that a run uses, by their headers.

    Attributes:
        axial: whether slices of another orientation are excluded; unknown ones are wanted.
        conditions: all have to hold.
    """

    axial: bool = False
    conditions: tuple[Condition, ...] = ()

    @property
    def tags(self) -> tuple[int, ...]:
        """Attributes to read."""
        return tuple(tag for condition in self.conditions for tag in condition.tags)

    def check(self, orientation: str, attributes: Attributes, transfer_syntax: str) -> None:
        """Raise Rejected for a slice that is not wanted."""
        if self.axial and orientation not in (AXIAL, UNKNOWN):
            raise Rejected(Reason.NOT_AXIAL, orientation)
        for condition in self.conditions:
            if not condition.holds(attributes, transfer_syntax):
                raise Rejected(Reason.NOT_SELECTED, condition.text)


@lru_cache(maxsize=1 << 8)
def parse_condition(text: str) -> Condition:
    """Parse a condition: `KEYWORD`, `!KEYWORD`, or keyword, operator and values.

    Raises:
        UsageError: the text is no condition, or may name a person; the message quotes no value.
    """
    found = _CONDITION.fullmatch(text)
    if not found or (found["absent"] and found["operator"]):
        start = re.match(r"\W*\w*", text)
        raise UsageError(
            f"--where {quoted(start[0] if start else '')}: want KEYWORD=VALUE with =, !=, <, <=, > "
            "or >=, KEYWORD for a present attribute, or !KEYWORD for an absent one"
        )
    name, sign = found["name"], (found["operator"] or "").replace("==", "=")
    keyword, tag, vr = _look_up(name)
    is_number = _NUMBERS.issuperset(vr.split(" or ")) and bool(vr)  # such as "US or SS"
    if vr == "SQ" and sign:
        raise UsageError(f"--where {name}: the attribute is a sequence; want {name} or !{name}")
    if sign and _is_identifying(keyword, tag, vr):
        raise UsageError(
            f"--where {name}{sign}: a condition is written to the manifest, and this attribute may "
            "identify a person; use --files with a list of the files"
        )
    wanted = [value.strip() for value in (found["values"] or "").split(",")] if sign else []
    numbers = [_number(value) for value in wanted]
    if sign in _COMPARE:
        if not is_number and vr not in _ORDERED_TEXTS:
            raise UsageError(f"--where {name}{sign}: the attribute is text; want = or !=")
        if len(wanted) != 1 or any(map(math.isnan, numbers)):
            raise UsageError(f"--where {name}{sign}: want one number")
    elif is_number and any(map(math.isnan, numbers)):
        raise UsageError(f"--where {name}{sign}: want numbers, separated by commas")
    if not all(wanted):
        raise UsageError(f"--where {name}{sign}: a value is empty; want {name} or !{name}")
    if any(re.fullmatch("([\"']).*\\1", value, re.DOTALL) for value in wanted):
        raise UsageError(f"--where {name}{sign}: want values without quotation marks")
    if not is_number and vr:
        numbers = numbers if sign in _COMPARE else [math.nan] * len(wanted)
    creator = [tag & 0xFFFF0000 | (tag & 0xFFFF) >> 8] if tag >> 16 & 1 else []
    return Condition(
        text=text.strip(),
        keyword=keyword,
        tags=(tag, *creator),
        operator=sign,
        wanted=tuple(zip(map(_pattern, wanted), numbers, strict=True)),
        is_negated=sign == "!=" or bool(found["absent"]),
    )


def _look_up(name: str) -> tuple[str, int, str]:
    """Return keyword, tag and value representation of an attribute."""
    from pydicom.datadict import dictionary_has_tag, dictionary_keyword, dictionary_VR, keyword_dict
    from pydicom.tag import Tag

    digits = re.sub(r"[(),\s]", "", name)
    if digits == name:
        if name not in keyword_dict:
            meant = did_you_mean(name, keyword_dict)
            raise UsageError(f"--where {quoted(name)}: no DICOM attribute has this keyword{meant}")
        tag = Tag(name)
    else:
        tag = Tag(int(digits, 16))
    is_known = dictionary_has_tag(tag)
    keyword = dictionary_keyword(tag) if is_known else f"{tag:08x}"
    if (tag.group <= 2 and keyword != _SYNTAX) or tag.group >= _LAST_GROUP:
        raise UsageError(f"--where {name}: want an attribute of the data set before the pixels")
    return keyword, int(tag), dictionary_VR(tag) if is_known else ""


def _is_identifying(keyword: str, tag: int, vr: str) -> bool:
    if keyword in _SHARED_BY_MANY:
        return False
    is_instance = vr == "UI" and not keyword.endswith(("ClassUID", _SYNTAX))
    is_about_people = tag >> 16 in _ABOUT_PEOPLE
    return vr == "PN" or is_instance or is_about_people or keyword in _IDENTIFYING


def _number(text: str) -> float:
    """Return a number, the years of an age (AS), or NaN."""
    age = re.fullmatch(r"(\d{3})([DWMY])", text)
    if age:
        return int(age[1]) / _YEARS[age[2]]
    try:
        return math.nan if "_" in text else float(_TIME_ZONE.sub(r"\1", text))
    except ValueError:
        return math.nan


def _pattern(value: str) -> re.Pattern[str]:
    """Return the pattern of a text with `*` and `?`; its matching does not backtrack."""
    return re.compile(fnmatch.translate(value.replace("[", "[[]")), re.IGNORECASE)
