"""Scans: the slices of a series along z, with the gaps between them in mm."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from headct.errors import UsageError
from headct.layout import ID_COLUMNS, IMAGE_ID, POSITION, SERIES_ID

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
SPLIT = "split"


@dataclass(frozen=True)
class Scans:
    """N slices, ordered scan by scan and in each scan from bottom to top.

    A scan is a series of one study of one patient. Its slices are ordered by `position_z`, whatever
    the order of their files, records or instance numbers, so a reversed series is the same scan.

    - Slices at the same z (two reconstructions in one series) follow each other, with a gap of 0,
      in the order of their image ids.
    - Slices without a position come last, in the order of their image ids; their gaps are NaN.
      Where all slices of a scan have one z, as in coronal images, z says nothing: all are without a
      position.
    - A rejected or missing slice leaves a larger gap.
    - A slice without a series id is a scan of its own.

    Attributes:
        order: rows of the slices, [N].
        starts: where each of S scans begins in `order`, and at last N, [S + 1].
        z: positions in the order of `order`, mm, [N]; NaN where unknown.
    """

    order: Ints
    starts: Ints
    z: Floats

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[Ints]:
        """Yield the rows of each scan."""
        return (self.order[begin:end] for begin, end in self.ranges())

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield where each scan begins and ends in `order`."""
        return zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True)

    @property
    def scan(self) -> Ints:
        """Number of the scan of each slice, in the order of `order`, [N]."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @property
    def in_order(self) -> Self:
        """The same scans of rows that have been put in `order`."""
        return replace(self, order=np.arange(len(self.order)))

    @property
    def gaps(self) -> Floats:
        """Distance to the slice before in the same scan, mm, [N]; NaN if none or unknown."""
        gaps = np.diff(self.z, prepend=np.nan)
        gaps[self.starts[:-1]] = np.nan
        return gaps


def find_scans(rows: pd.DataFrame, where: str) -> Scans:
    """Return the scans of a table with one row per slice, in any order.

    Args:
        rows: image_id, series_id and position_z (mm; NaN if unknown), and, if known, patient_id,
            study_id and split.
        where: location of the table, for messages.

    Raises:
        UsageError: a column is missing, or a series has slices in several splits.
    """
    for name in (IMAGE_ID, SERIES_ID, POSITION):
        if name not in rows:
            raise UsageError(
                f"{where}: has no {name}, so which slices are a scan, and in which order, is not"
                " known; shards that this version writes have it"
            )
    texts = {
        name: rows[name].fillna("").astype(str) for name in (IMAGE_ID, *ID_COLUMNS) if name in rows
    }
    image = pd.factorize(texts.pop(IMAGE_ID), sort=True)[0]
    alone = (texts[SERIES_ID] == "").to_numpy()
    keys = pd.DataFrame({**texts, "own": image * alone})
    scan = keys.groupby([*keys], sort=True).ngroup().to_numpy()
    z = rows[POSITION].to_numpy(np.float64, na_value=np.nan)
    z = np.where(np.isfinite(z), z, np.nan)
    spread = pd.Series(z).groupby(scan).agg(["min", "max", "size"])
    flat = (spread["min"] == spread["max"]) & (spread["size"] > 1)
    z[flat.to_numpy()[scan]] = np.nan
    if SPLIT in rows:
        splits = rows[SPLIT].groupby(scan).nunique()
        if divided := int((splits > 1).sum()):
            raise UsageError(
                f"{where}: {divided} series have slices in several splits, so their scans cannot be"
                " used: a scan belongs to one patient, and patients are never divided"
            )
    order = np.lexsort((image, z, scan))
    starts = np.searchsorted(scan[order], np.arange(len(spread) + 1))
    return Scans(order, starts, z[order])
