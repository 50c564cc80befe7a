"""What an exported folder says of itself, for whoever has nothing of this project: JSON.

docs/training.md has the keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

from trainer.options import parse_windows
from trainer.runs.job import SavedRun

DESCRIPTION = "description.json"
FORMAT = 1
# Names in every format, and ONNX's operators: what runtimes since 2022 have.
INPUT, OUTPUT, OPSET = "image", "probability", 17

# The least that a CT has, and what stands where there is no image.
PADDING_HU = -1024
# Stored values of Hounsfield units, by the pipeline's option `voi`, or for what it stores with
# `hu`; in the words of NumPy.
FORMULAS: Mapping[str, str] = MappingProxyType(
    {
        "linear_exact": "floor(clip((hu - (center - width / 2)) * 255 / width, 0, 255) + 0.5)",
        "linear": "floor(clip((hu - (center - width / 2)) * 255 / maximum(width - 1, 1e-9), 0, 255)"
        " + 0.5)",
        "sigmoid": "floor(255 / (1 + exp(clip(-4 * (hu - center) / width, -500, 500))) + 0.5)",
        "hu": "clip(floor(hu + 0.5) - hu_offset, 0, 65535)",
    }
)


@dataclass(frozen=True)
class Comparison:
    """What the written models answered, beside `predict`.

    Attributes:
        images: how many.
        kind: what they were.
        precision: that `predict` computes in.
        largest_difference: of a probability, in any format.
    """

    images: int
    kind: str
    precision: str
    largest_difference: float


def describe_export(
    saved: SavedRun, files: Mapping[str, str], compared: Comparison
) -> dict[str, Any]:
    """The content of description.json.

    Args:
        saved: the run.
        files: of each format that was written.
        compared: how it was found to be right.
    """
    image = saved.image
    packages = ["keras", "tensorflow", "numpy"] + ["onnx", "tf2onnx"] * ("onnx" in files)
    return {
        "format": FORMAT,
        "files": dict(files),
        "input": {
            "name": INPUT,
            "dtype": image.dtype,
            "shape": [None, image.height, image.width, image.channels],
            "layout": "NHWC",
            "values": [0, 65535 if image.is_hounsfield else 255],
        },
        **_describe_values(saved),
        "output": {
            "name": OUTPUT,
            "dtype": "float32",
            "shape": [None, len(saved.labels)],
            "values": [0, 1],
        },
        "labels": list(saved.labels),
        "calibration": _describe_calibration(saved),
        "opset": OPSET if "onnx" in files else None,
        "saved_model_signature": "serving_default" if "saved_model" in files else None,
        "compared": asdict(compared),
        "versions": {name: version(name) for name in packages},
    }


def _describe_values(saved: SavedRun) -> dict[str, Any]:
    """How a DICOM file's Hounsfield units become the values of each channel."""
    trained = saved.description["shards"]
    options = trained.get("preprocessing", {})
    stored = [
        {key: each[key] for key in ("name", "center", "width")} for each in trained["windows"]
    ]
    chosen: list[dict[str, Any]] = []
    kind = options.get("voi")
    if saved.image.is_hounsfield:
        kind, stored = "hu", [{"name": "hu", "hu_offset": saved.image.hu_offset}]
        windows = saved.description["options"].get("windows", "")
        chosen = [asdict(each) for each in parse_windows(windows)]
    return {
        "channels": stored,
        "windows_of_model": chosen,
        "preparation": {
            "hu": "stored value * RescaleSlope + RescaleIntercept",
            "hu_repair": options.get("hu_repair"),
            "padding_hu": PADDING_HU,
            "voi": options.get("voi"),
            "formula": FORMULAS.get(str(kind)),
            "size": saved.image.height,
            "resize": "after the formula, to fit a square of this size: both sides times size /"
            " the longer side, rounded; area averages where the image shrinks, bilinear where it"
            " grows; in the middle, where the border is the formula's value of padding_hu",
        },
    }


def _describe_calibration(saved: SavedRun) -> dict[str, Any] | None:
    """What the model itself applies to its logits, before the sigmoid."""
    return saved.calibration.describe(saved.labels) if saved.calibration.changes else None
