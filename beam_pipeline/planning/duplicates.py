"""Search for slices with identical pixels, to keep a patient with two ids in one fold."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from beam_pipeline.dicom.header import checksum
from beam_pipeline.options import LeakCheck, Options
from beam_pipeline.planning.join_labels import Inventory
from beam_pipeline.shards.unfinished import IdenticalPixels
from headct.stores import InputFiles, decode_source, find_input

ALONE = -1  # in place of the number of a set


def find_identical(
    inventory: Inventory, slices: pd.DataFrame, options: Options
) -> NDArray[np.int64]:
    """Return the set of identical pixels of some rows of `Inventory.files`: a number, or ALONE.

    Raises:
        StoreError: a store fails.
    """
    identical = np.full(len(slices), ALONE, np.int64)
    if options.splits.leak_check is LeakCheck.OFF:
        return identical
    prints = slices["fingerprint"]
    candidates = (prints.duplicated(keep=False) & (prints != 0)).to_numpy()
    wanted = np.zeros(len(inventory.files), np.bool_)
    wanted[slices.index[candidates]] = True
    tables = inventory.read(wanted, ("source", "pixel_offset", "pixel_bytes"))
    rows = [row for _, table in tables for row in table.to_pylist()]
    files = find_input(options.files.input, options.files.storage_patience)
    identical[candidates] = _compare_pixels(rows, files)
    return identical


def _compare_pixels(rows: Sequence[dict[str, Any]], files: InputFiles) -> NDArray[np.int64]:
    """Number the sets of rows of the inventory with identical pixels.

    A file that cannot be read is ALONE; it is reported when its shard is written.
    """
    checksums: list[str] = []
    with files.reading() as reading:
        for _, pixels in reading.ahead(
            rows,
            lambda row: reading.part(
                decode_source(row["source"]), row["pixel_offset"], row["pixel_bytes"], checksum
            ),
        ):
            try:
                checksums.append(pixels.result())
            except OSError:
                checksums.append("")
    found = pd.Series(checksums, dtype=object)
    alone = ~found.duplicated(keep=False) | (found == "")
    return np.where(alone, ALONE, pd.factorize(found)[0]).astype(np.int64)


def join_groups(groups: ArrayLike, sets: ArrayLike) -> NDArray[np.int64]:
    """Merge groups that share a set, and renumber the groups.

    Args:
        groups: [n], group per slice, from 0.
        sets: [n], set per slice, or ALONE.

    Returns:
        [n], numbered from 0 by first appearance.
    """
    frame = pd.DataFrame({"group": np.asarray(groups), "set": np.asarray(sets)})
    if frame.empty:
        return np.empty(0, np.int64)
    shared = frame[frame["set"] != ALONE].drop_duplicates()
    lowest = np.arange(frame["group"].max() + 1)
    while True:  # of linked groups, all get the lowest number
        before = lowest.copy()
        of_sets = shared.assign(lowest=lowest[shared["group"]]).groupby("set")["lowest"]
        np.minimum.at(lowest, shared["group"], of_sets.transform("min"))
        if (lowest == before).all():
            return np.asarray(pd.factorize(lowest[frame["group"]])[0], np.int64)


def count_identical(
    identical: NDArray[np.int64], patients: ArrayLike, labels: NDArray[np.int8]
) -> IdenticalPixels:
    """Count slices with identical pixels.

    Args:
        identical: [n], number of the set of identical slices, or ALONE.
        patients: [n], patient per slice.
        labels: [n, l], labels per slice.
    """
    frame = pd.DataFrame({"set": identical, "patient": np.asarray(patients)})
    # Other slices of a set may be rejected.
    frame = frame[frame["set"].duplicated(keep=False) & (frame["set"] != ALONE)]
    frame["labels"] = [row.tobytes() for row in labels[frame.index]]
    distinct = frame.groupby("set").nunique()
    return IdenticalPixels(
        groups=len(distinct),
        slices=len(frame),
        groups_across_patients=int((distinct["patient"] > 1).sum()),
        groups_with_conflicting_labels=int((distinct["labels"] > 1).sum()),
    )
