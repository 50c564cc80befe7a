"""Neighbors along a scan as channels (2.5D): which slices, and their stored images.

A sample has the channels of its slices one after the other, from bottom to top: with one
neighbor on each side and windows a, b these are a, b of the slice below, of the slice itself
and of the slice above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headct.reader import Shards
from headct.scans import Scans

Ints = npt.NDArray[np.int64]
# Positions are float32; two distances that differ by less are equal.
_SAME_MM = 1e-3


@dataclass(frozen=True)
class Neighbors:
    """Which slices of its scan a network sees with a slice.

    Attributes:
        count: neighbors on each side; 0: the slice alone.
        mm: distance of the first from the slice, of the second from the first, and so on; 0: the
            next positions, at any distance.
    """

    count: int = 0
    mm: float = 0.0

    @property
    def slices(self) -> int:
        """Number of slices of a sample."""
        return 2 * self.count + 1

    def rows(self, scans: Scans) -> Ints:
        """Return the rows of the slices of each sample, [N, slices], by row.

        Neighbors are at other positions than the slice: a second reconstruction at its position is
        none. Beyond an edge of the scan, the slice at the edge is repeated. With `mm`, a neighbor
        is the slice nearest to the wanted position, which may be the slice itself; of two at the
        same distance, it is the outer one. Of several slices at a position, the neighbor is the one
        with the lowest image id. A slice without a position is repeated.
        """
        rows = np.empty((len(scans.order), self.slices), np.int64)
        for begin, end in scans.ranges():
            order, z = scans.order[begin:end], scans.z[begin:end]
            rows[order] = order[:, None]
            known = np.isfinite(z)
            levels, first, level = np.unique(z[known], return_index=True, return_inverse=True)
            if len(levels) < 2:
                continue
            order = order[known]
            for step in range(-self.count, self.count + 1):
                wanted = self._levels(levels, step)[level]
                chosen = np.where(wanted == level, order, order[first[wanted]])
                rows[order, self.count + step] = chosen
        return rows

    def _levels(self, levels: npt.NDArray[np.float64], step: int) -> Ints:
        """Return the neighbor at `step` of each of M positions (ascending, mm), [M], 0 to M - 1."""
        last = len(levels) - 1
        if not self.mm:
            return np.clip(np.arange(last + 1) + step, 0, last)
        if step < 0:
            return last - Neighbors(0, self.mm)._levels(-levels[::-1], -step)[::-1]
        wanted = levels + step * self.mm
        above = np.clip(np.searchsorted(levels, wanted - _SAME_MM), 1, last)
        below = above - 1
        nearer = levels[above] - wanted <= wanted - levels[below] + _SAME_MM
        return np.where(nearer, above, below)

    def images(self, examples: Shards, chosen: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the samples of chosen rows of `examples`, [B, H, W, slices · C].

        Raises:
            UsageError: as for `Shards.scans` and `Shards.images`.
        """
        if not self.count:
            return examples.select(chosen).images()
        return stacked_images(examples, self.rows(examples.scans())[np.asarray(chosen)])


ALONE = Neighbors()


def stacked_images(examples: Shards, rows: Ints) -> npt.NDArray[Any]:
    """Read samples by the rows of their slices, [B, slices] → [B, H, W, slices · C].

    A slice that occurs in several samples is decoded once.
    """
    different, places = np.unique(rows, return_inverse=True)
    images = examples.select(different).images()
    return stack(images[places.reshape(rows.shape)])


def stack(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Put the channels of slices one after the other: [B, n, H, W, C] → [B, H, W, n · C]."""
    batch, _, height, width, _ = images.shape
    return images.transpose(0, 2, 3, 1, 4).reshape(batch, height, width, -1)
