"""One record read back: an Example as the contract has it, and its image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beam_pipeline.dicom.slices import MAX_PIXELS
from beam_pipeline.directory.example import decode_example
from beam_pipeline.images.png import decode_png, read_png_header
from beam_pipeline.verify.findings import printable
from headct.layout import EXAMPLE_FEATURES, ID_COLUMNS

_TYPES = {"PNG": bytes, "string": bytes, "int64": int, "float32": float}
_LABEL_VALUES = frozenset((-1, 0, 1))


@dataclass(frozen=True)
class Record:
    """An Example of the contract."""

    image: bytes  # PNG
    ids: dict[str, str]  # image_id, patient_id, study_id and series_id as written
    label: tuple[int, ...]  # 1, 0, or -1 for unknown, one a class
    position_z: float  # mm
    pixel_spacing: tuple[float, ...]  # between rows and between columns, mm


def read_features(data: bytes, labels: Sequence[str] | None) -> Record:
    """A serialized Example's record; the labels are None if they are not known.

    Raises:
        ValueError: how it differs from the contract.
    """
    features: dict[str, Any] = decode_example(data)
    if wrong := _check_features(features, labels):
        raise ValueError("; ".join(wrong))
    try:
        ids = {name: features[name][0].decode() for name in ("image_id", *ID_COLUMNS)}
    except UnicodeError:
        raise ValueError("an id is not UTF-8") from None
    return Record(
        image=features["image"][0],
        ids=ids,
        label=tuple(features["label"]),
        position_z=features["position_z"][0],
        pixel_spacing=tuple(features["pixel_spacing"]),
    )


def _check_features(features: dict[str, Any], labels: Sequence[str] | None) -> list[str]:
    """What differs from the contract."""
    wrong = []
    expected = {feature.name for feature in EXAMPLE_FEATURES}
    if features.keys() != expected:
        missing = ", ".join(sorted(expected - features.keys()))
        more = ", ".join(map(printable, sorted(features.keys() - expected)))
        wrong.append(f"features missing: {missing or '-'}; more: {more or '-'}")
    for name, dtype, shape, _ in EXAMPLE_FEATURES:
        values, kind = features.get(name), _TYPES[dtype]
        if values is None:
            continue
        (count,) = shape or (1,)
        if count == "labels":
            count = len(values if labels is None else labels)
        if len(values) != count or not all(isinstance(value, kind) for value in values):
            kinds = sorted({type(value).__name__ for value in values})
            wrong.append(f"{name} is {len(values)} {'/'.join(kinds)}, not {count} {kind.__name__}")
    if not wrong and not set(features["label"]) <= _LABEL_VALUES:
        wrong.append(f"label is {features['label']}, not of -1, 0 and 1")
    return wrong


def decode_image(png: bytes, image: dict[str, Any] | None) -> NDArray[np.uint8 | np.uint16]:
    """The pixels, [height, width, channels]; what the manifest says of them is None if unknown.

    Raises:
        ValueError: what is wrong.
    """
    header = read_png_header(png)
    if image is not None:
        shape = image["height"], image["width"], image["channels"]
        if header.shape != shape:
            raise ValueError(f"the image is {_times(header.shape)}, not {_times(shape)}")
        if header.dtype != image["dtype"]:
            raise ValueError(f"the image is {header.dtype}, not {image['dtype']}")
    height, width, _ = header.shape
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"the image is {_times(header.shape)}: too large")
    return decode_png(png, header)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
