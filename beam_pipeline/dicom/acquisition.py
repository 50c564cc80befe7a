"""Acquisition of a slice by its header: orientation, body part, kernel, thickness and scanner."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass

from beam_pipeline.dicom.dataset import Attributes
from headct.reasons import Rejected

AXIAL, OBLIQUE, UNKNOWN = "axial", "oblique", "unknown"
ABSENT, OTHER, OTHERS = "absent", "other", "others"  # in place of values
# Orientations by the patient's axis that a slice's normal is near: x from right to left, y from
# front to back, z from feet to head (DICOM PS3.3 C.7.6.2.1.1).
_BY_AXIS = {2: AXIAL, 1: "coronal", 0: "sagittal"}
_NEAR = math.cos(math.radians(45)) - 1e-6  # 45 degrees count as near, whatever the digits of a DS
_PARALLEL = 1e-3  # sine of the angle of two directions that span no plane
_SHORT = ("BodyPartExamined", "ConvolutionKernel")
_LONGEST_SHORT = 16  # characters of a value of a CS or SH (DICOM PS3.5 table 6.2-1)
_MOST_CHARACTERS = 64  # of all values of an attribute
_MOST_VALUES = 50  # of an attribute in the manifest


@dataclass(frozen=True)
class Acquisition:
    """Acquisition of a slice; texts are empty if absent, OTHER if not fit to be shown.

    Attributes:
        orientation: what `orientation_of` returns.
        body_part: Body Part Examined, in upper case.
        kernel: Convolution Kernel; several values are separated by backslashes.
        slice_thickness: nominal, mm; None if absent.
        scanner: Manufacturer and Manufacturer's Model Name.
    """

    orientation: str = UNKNOWN
    body_part: str = ""
    kernel: str = ""
    slice_thickness: float | None = None
    scanner: str = ""

    @classmethod
    def read(cls, attributes: Attributes) -> "Acquisition":
        """Return the acquisition of a slice; invalid values count as OTHER or absent."""
        (thickness,) = attributes.numbers("SliceThickness", 1)
        makers = (_text(attributes, name) for name in ("Manufacturer", "ManufacturerModelName"))
        return cls(
            orientation_of(attributes.numbers("ImageOrientationPatient", 6)),
            _text(attributes, "BodyPartExamined").upper(),
            _text(attributes, "ConvolutionKernel"),
            float(f"{thickness:.4g}") if thickness > 0 else None,
            " ".join(filter(None, dict.fromkeys(makers))),
        )

    def encode(self) -> str:
        """Return the values as text."""
        return json.dumps(astuple(self), separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> "Acquisition":
        """Return the acquisition of an `encode` text; of an empty text, an unknown one."""
        return cls(*json.loads(text or "[]"))


def orientation_of(directions: Sequence[float]) -> str:
    """Return axial, coronal or sagittal by the axis within 45 degrees of a slice's normal.

    The normal is the cross product of the directions (DICOM PS3.3 C.7.6.2.1.1), which need no unit
    length.

    Args:
        directions: of a row and of a column, x, y and z, as Image Orientation (Patient) has them.

    Returns:
        The orientation; OBLIQUE if no axis is as near, UNKNOWN if the directions span no plane.
    """
    if len(directions) != 6 or not all(map(math.isfinite, directions)):
        return UNKNOWN
    row, column = directions[:3], directions[3:]
    lengths = math.hypot(*row) * math.hypot(*column)
    normal = [row[i - 2] * column[i - 1] - row[i - 1] * column[i - 2] for i in range(3)]
    length = math.hypot(*normal)
    if not length > _PARALLEL * lengths:
        return UNKNOWN
    near = (name for axis, name in _BY_AXIS.items() if abs(normal[axis]) >= _NEAR * length)
    return next(near, OBLIQUE)


def _text(attributes: Attributes, keyword: str) -> str:
    try:
        values = attributes.texts(keyword)
    except Rejected:
        return OTHER
    text = " ".join("\\".join(values).split())
    longest = _LONGEST_SHORT if keyword in _SHORT else _MOST_CHARACTERS
    too_long = len(text) > _MOST_CHARACTERS or any(len(value) > longest for value in values)
    return OTHER if too_long or not text.isprintable() else text


def count_values(counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Return the number of slices per attribute and value, the commonest value first.

    Args:
        counts: slices per acquisition, as `encode` texts.
    """
    totals: dict[str, Counter[str]] = {name: Counter() for name in Acquisition.__dataclass_fields__}
    for text, slices in counts.items():
        for name, value in vars(Acquisition.decode(text)).items():
            shown = f"{value:g}" if isinstance(value, float | int) else value or ABSENT
            totals[name][shown] += slices
    return {name: _most_common(total.items()) for name, total in totals.items()}


def _most_common(values: Iterable[tuple[str, int]]) -> dict[str, int]:
    ordered = sorted(values, key=lambda pair: (-pair[1], pair[0]))
    rest = sum(number for _, number in ordered[_MOST_VALUES:])
    common = dict(ordered[:_MOST_VALUES])
    if rest:  # a value may have this name, too
        common[OTHERS] = common.get(OTHERS, 0) + rest
    return common
