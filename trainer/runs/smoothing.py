"""Smoothing of logits along z, by distance in mm: width and amount, and their file in a run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field
from pydantic.dataclasses import dataclass

from headct.errors import UsageError
from headct.json_documents import must, read_document
from headct.scans import Scans
from trainer.files import write_json

# Slices farther away than this many widths do not count: their weights are below 0.012.
_REACH = 3.0
NO_KERNEL = (1.0, 0.0)


@dataclass(frozen=True)
class Smoothing:
    """Smooths logits: (1 - amount) * logit + amount * the weighted mean of the scan's logits.

    A slice at a distance of d mm has weight exp(-d² / (2 width²)) in the mean. The weights of a
    slice sum to 1, so a constant is unchanged, and a temperature and a bias may be applied before
    or after.

    Attributes:
        width_mm: standard deviation of the weights.
        amount: 0 changes nothing.
        split: split of the fit; empty if unknown.
        digest: digest of the split's shards; empty if unknown.
    """

    width_mm: Annotated[
        float, Field(strict=True, ge=0.1, le=1000), must("a number from 0.1 to 1000")
    ] = 1.0
    amount: Annotated[float, Field(strict=True, ge=0, le=1), must("a number from 0 to 1")] = 0.0
    split: Annotated[str, Field(max_length=64), must("text")] = ""
    digest: Annotated[str, Field(max_length=200), must("text")] = ""

    @property
    def changes(self) -> bool:
        """Whether the smoothing changes logits."""
        return self.amount > 0

    @property
    def kernel(self) -> tuple[float, float]:
        """Width and amount; the same for all that change nothing."""
        return (self.width_mm, self.amount) if self.changes else NO_KERNEL

    def apply(self, logits: npt.NDArray[np.floating[Any]], scans: Scans) -> npt.NDArray[np.float64]:
        """Smooth the logits of the slices of some scans, [N, L]."""
        exact = logits.astype(np.float64)
        if not self.changes:
            return exact
        return mix(exact, local_means(exact, scans, self.width_mm), self.amount)


NO_SMOOTHING = Smoothing()


def mix(
    logits: npt.NDArray[np.float64], means: npt.NDArray[np.float64], amount: float
) -> npt.NDArray[np.float64]:
    """Return logits and their local means, mixed."""
    return logits + amount * (means - logits)


def local_means(
    logits: npt.NDArray[np.float64], scans: Scans, width_mm: float
) -> npt.NDArray[np.float64]:
    """Return the weighted mean of the logits around each slice, [N, L]; see `Smoothing`.

    A slice without a position keeps its logits.
    """
    x, scan, z = logits[scans.order], scans.scan, scans.z
    sums, totals = x.copy(), np.ones(len(x))
    for step in range(1, len(x)):
        distance = z[step:] - z[:-step]
        with np.errstate(invalid="ignore"):
            near = (scan[step:] == scan[:-step]) & (distance <= _REACH * width_mm)
        (lower,) = np.nonzero(near)
        if not len(lower):  # slices are in order: more steps lead farther
            break
        upper = lower + step
        weight = np.exp(-((distance[lower] / width_mm) ** 2) / 2)
        sums[lower] += weight[:, None] * x[upper]
        sums[upper] += weight[:, None] * x[lower]
        totals[lower] += weight
        totals[upper] += weight
    means = np.empty_like(sums)
    means[scans.order] = sums / totals[:, None]
    return means


def choose_smoothing(path: Path, wanted: bool) -> Smoothing:
    """Return the smoothing in a run's smoothing.json; unless wanted, one that changes nothing.

    Raises:
        UsageError: the file is missing or damaged.
    """
    if not wanted:
        return NO_SMOOTHING
    try:
        found: Smoothing = read_document(path, Smoothing)
    except FileNotFoundError:
        raise UsageError(
            f"--smooth_z: {path.parent} has no {path.name}; `evaluate --fit_smooth_z` fits it"
        ) from None
    return found


def write_smoothing(path: Path, smoothing: Smoothing) -> None:
    """Write smoothing.json."""
    write_json(path, asdict(smoothing))
