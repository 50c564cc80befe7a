"""Values of options that are lists in a text: label weights, windows, formats and trackers."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from headct.declarations import quoted
from headct.errors import UsageError

FORMATS = ("keras", "saved_model", "onnx")
TRACKERS = ("mlflow", "wandb")
DEFAULT_WEIGHTS = "any=2"  # ignored if there is no label `any`


@dataclass(frozen=True)
class ChosenWindow:
    """A display window in Hounsfield units, chosen at training time."""

    name: str
    center: Annotated[float, Field(allow_inf_nan=False)]
    width: Annotated[float, Field(gt=0, allow_inf_nan=False)]


DEFAULT_WINDOWS = (
    ChosenWindow("brain", 40, 80),
    ChosenWindow("subdural", 80, 200),
    ChosenWindow("bone", 600, 2800),
)


def label_weights(text: str, labels: tuple[str, ...], saved: bool = False) -> tuple[float, ...]:
    """Parse `name=weight,...`; return a weight per label.

    Args:
        text: text to parse.
        labels: labels of the shards.
        saved: whether the text is from run.json: earlier versions accepted a weight of `any`
            without the label.

    Raises:
        UsageError: a pair is malformed, a weight is not positive, or a label is unknown.
    """
    given = parse_weights(text)
    optional = {"any"} if saved or text == DEFAULT_WEIGHTS else set()
    unknown = sorted(set(given) - set(labels) - optional)
    if unknown:
        raise UsageError(
            f"--label_weights {unknown[0]!r}: no such label; there are {', '.join(labels)}"
        )
    return tuple(given.get(label, 1.0) for label in labels)


def parse_weights(text: str) -> dict[str, float]:
    """Parse `name=weight,...` for any labels; quotes as in CSV protect commas in names."""
    given: dict[str, float] = {}
    try:
        pairs = [pair for row in csv.reader([text], skipinitialspace=True) for pair in row]
    except csv.Error as error:
        raise UsageError(
            f"--label_weights {quoted(text)}: want name=weight,... ({error})"
        ) from None
    for pair in filter(None, pairs):
        name, _, value = pair.rpartition("=")
        try:
            given[name.strip()] = float(value)
        except ValueError:
            raise UsageError(f"--label_weights {pair!r}: want name=weight") from None
        if not 0 < given[name.strip()] < math.inf:
            raise UsageError(f"--label_weights {pair!r}: want a weight above 0")
    return given


def parse_windows(text: str) -> tuple[ChosenWindow, ...]:
    """Parse `name:center:width,...`; a default window may be given by its name alone.

    Raises:
        UsageError: a window is malformed, unknown, or without width.
    """
    defaults = {window.name: window for window in DEFAULT_WINDOWS}
    windows = []
    for given in (each.strip() for each in text.split(",")) if text else defaults:
        try:
            if given not in defaults:
                name, center, width = given.split(":")
                windows.append(ChosenWindow(name, float(center), float(width)))
            else:
                windows.append(defaults[given])
        except ValueError:
            raise UsageError(
                f"--windows {given!r}: want name:center:width or {', '.join(defaults)}"
            ) from None
    return tuple(windows)


def parse_formats(text: str) -> tuple[str, ...]:
    """Parse the names of export formats, separated by commas.

    Raises:
        UsageError: a format is unknown.
    """
    formats = tuple(text.split(","))
    if not set(formats) <= set(FORMATS):
        raise UsageError(f"--formats {quoted(text)}: want some of {', '.join(FORMATS)}")
    return formats


def parse_trackers(text: str) -> tuple[str, ...]:
    """Parse the names of experiment trackers, separated by commas; none if empty.

    Raises:
        UsageError: a tracker is unknown.
    """
    trackers = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not set(trackers) <= set(TRACKERS):
        raise UsageError(f"--track {quoted(text)}: want some of {', '.join(TRACKERS)}")
    return trackers


def checked_by(parse: Callable[[str], object]) -> AfterValidator:
    """Check a text with the function that parses it later."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)
