"""Signed distances in millimetres over the points of a slice, from which a head is put together.

A distance is negative inside. Most are first-order approximations, good near the surface, which is
where they are looked at. Fields are computed on a coarse grid and enlarged: a distance is smooth
where a mask is not, so the edge stays sharp at a sixteenth of the cost. Only a sheet (a sulcus, the
falx) is kept as a signed distance to its middle until it is enlarged, for its fold at 0 is sharp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

SIZE = 512  # pixels a side of a slice
COARSE = 128  # points a side of the grid that distances are computed on

# Always float32 here; numpy's annotations do not say so of float32 times a Python float.
Field = npt.NDArray[np.floating[Any]]
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Points:
    """Positions in the head (mm): x to the patient's left, y to the back, z to the vertex."""

    x: Field
    y: Field
    z: Field

    def folded(self) -> Points:
        """The same points with both halves of the head laid on the left one."""
        return Points(np.abs(self.x), self.y, self.z)

    def moved(self, x: Field, y: Field) -> Points:
        """The points shifted by (x, y) mm within their slice."""
        return Points(self.x + x, self.y + y, self.z)

    def height_scaled(self, factor: float) -> Points:
        """The points with z scaled, which stretches whatever is built on them by 1 / factor."""
        return Points(self.x, self.y, self.z * np.float32(factor))


@dataclass(frozen=True)
class Waves:
    """A smooth random field: plane waves of near-equal length and random direction and phase.

    Its zero crossings wind like sulci, and it can be evaluated at any point, so it is consistent
    from slice to slice without a volume in memory.
    """

    vectors: Field  # [n, 3], radians per mm
    phases: Field  # [n]

    @classmethod
    def random(
        cls, rng: np.random.Generator, wavelength: float, spread: float = 0.25, count: int = 10
    ) -> Waves:
        """Waves of about `wavelength` mm, relative standard deviation `spread`."""
        directions = rng.standard_normal((count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = wavelength * np.exp(spread * rng.standard_normal((count, 1)))
        return cls(
            (2 * np.pi * directions / lengths).astype(np.float32),
            rng.uniform(0, 2 * np.pi, count).astype(np.float32),
        )

    def at(self, points: Points) -> Field:
        """Values of mean 0 and standard deviation 1 at the points."""
        total = np.zeros(points.x.shape, np.float32)
        for (kx, ky, kz), phase in zip(self.vectors, self.phases, strict=True):
            total += np.sin(kx * points.x + ky * points.y + kz * points.z + phase)
        return total * np.float32(np.sqrt(2 / len(self.phases)))


def ellipsoid(points: Points, center: Vector, axes: Vector) -> Field:
    """Distance to an ellipsoid with the given semi-axes (I. Quilez's two-norm approximation)."""
    offsets = [
        (values - np.float32(middle)) / np.float32(axis)
        for values, middle, axis in zip((points.x, points.y, points.z), center, axes, strict=True)
    ]
    k0 = np.sqrt(offsets[0] ** 2 + offsets[1] ** 2 + offsets[2] ** 2)
    k1 = np.sqrt(
        sum(((o / np.float32(a)) ** 2 for o, a in zip(offsets, axes, strict=True)), np.float32(0))
    )
    # At the centre both norms vanish; the distance there is minus the smallest semi-axis.
    return np.where(k0 > 1e-3, k0 * (k0 - 1) / np.maximum(k1, 1e-6), -min(axes)).astype(np.float32)


def capsule(points: Points, start: Vector, end: Vector, radii: tuple[float, float]) -> Field:
    """Distance to a round-ended rod from `start` to `end`, its radius changing between them."""
    axis = np.subtract(end, start).astype(np.float32)
    px, py, pz = (
        values - np.float32(first)
        for values, first in zip((points.x, points.y, points.z), start, strict=True)
    )
    along = (px * axis[0] + py * axis[1] + pz * axis[2]) / np.float32(axis @ axis)
    along = np.clip(along, 0, 1)
    away = (px - along * axis[0]) ** 2 + (py - along * axis[1]) ** 2 + (pz - along * axis[2]) ** 2
    radius = np.float32(radii[0]) + along * np.float32(radii[1] - radii[0])
    return np.asarray(np.sqrt(away) - radius, np.float32)


def union(*distances: Field) -> Field:
    """Distance to the nearest of several shapes."""
    result = distances[0]
    for distance in distances[1:]:
        result = np.minimum(result, distance)
    return np.asarray(result, np.float32)


def common(*distances: Field | float) -> Field:
    """Distance to what several shapes have in common; a number stands for a constant field."""
    result = distances[0]
    for distance in distances[1:]:
        result = np.maximum(result, distance)
    return np.asarray(result, np.float32)


def blend(first: Field, second: Field, width: float) -> Field:
    """Union of two shapes whose joint is rounded over `width` mm (I. Quilez's polynomial one)."""
    mix = np.maximum(np.float32(width) - np.abs(first - second), 0) / np.float32(width)
    return np.asarray(np.minimum(first, second) - mix * mix * np.float32(width / 4), np.float32)


def enlarge(field: Field) -> Field:
    """A coarse field on the image's grid, [128, 128] to [512, 512]."""
    small = np.asarray(field, np.float32)
    return np.asarray(cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR))


def coverage(distance: Field, softness: float | Field = 1.0) -> Field:
    """The part of each voxel inside a shape, 0 to 1: its edge is `softness` mm wide."""
    return np.asarray(np.clip(0.5 - distance / np.asarray(softness, np.float32), 0, 1), np.float32)


def paint(image: Field, part: Field, value: float | Field) -> Field:
    """The image with `part` (0 to 1) of each voxel replaced by `value`."""
    return np.asarray(image + part * (value - image), np.float32)
