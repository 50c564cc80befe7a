"""Search for slices with identical pixels, to keep a patient with two ids in one fold."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from beam_pipeline.dicom.header import checksum
from beam_pipeline.dicom.slices import last_range
from beam_pipeline.options import LeakCheck, Options
from beam_pipeline.planning.join_labels import Inventory
from beam_pipeline.run_pool import open_pool
from beam_pipeline.shards.unfinished import IdenticalPixels, Unfinished
from beam_pipeline.workers import Watch
from headct.layout import inventory_table
from headct.stores import decode_source, find_input

ALONE = -1  # in place of the number of a set
_FILES_A_TASK = 512
_COLUMNS = ("source", "pixel_offset", "pixel_bytes")


class Suspects(NamedTuple):
    """Files of a part of the inventory whose pixels are compared.

    Attributes:
        first: position of the first one among all.
        part: number of the part.
        rows: their rows in the part.
        is_whole: whether all pixels are compared, or only the last ones.
    """

    first: int
    part: int
    rows: list[int]
    is_whole: bool


def find_identical(
    inventory: Inventory, slices: pd.DataFrame, options: Options
) -> NDArray[np.int64]:
    """Return the set of identical pixels of some rows of `Inventory.files`: a number, or ALONE.

    Slices with equal fingerprints may differ elsewhere, as those of a phantom do. Their last pixels
    tell most of them apart; only the others are read whole. Worker processes read them. A file that
    cannot be read is ALONE; it is reported when its shard is written.

    Raises:
        StoreError: a store fails.
    """
    identical = np.full(len(slices), ALONE, np.int64)
    if options.splits.leak_check is LeakCheck.OFF:
        return identical
    suspects = slices["fingerprint"].reset_index(drop=True)
    suspects = suspects[suspects != 0]
    files = slices.index.to_numpy()
    for is_whole in (False, True):
        suspects = suspects[suspects.duplicated(keep=False)]
        digests = _digest(inventory, files[suspects.index], options, is_whole=is_whole)
        frame = pd.DataFrame({"set": suspects, "digest": digests})
        frame = frame[frame["digest"] != ""]
        suspects = frame.groupby(["set", "digest"]).ngroup()
    suspects = suspects[suspects.duplicated(keep=False)]
    identical[suspects.index] = suspects
    return identical


def _digest(
    inventory: Inventory, files: NDArray[np.int64], options: Options, *, is_whole: bool
) -> NDArray[np.object_]:
    """Return a digest of the pixels of each file, empty where it cannot be read.

    Args:
        inventory: inventory of all files.
        files: indices of files, ascending.
        options: options of the run.
        is_whole: whether to read all pixels.
    """
    parts = np.searchsorted(inventory.starts, files, side="right") - 1
    edges = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(files)]
    tasks = [
        Suspects(first, part, (own - inventory.starts[part]).tolist(), is_whole)
        for start, stop in pairwise(edges)
        for first in range(start, stop, _FILES_A_TASK)
        for part, own in [(int(parts[first]), files[first : min(stop, first + _FILES_A_TASK)])]
    ]
    found = np.empty(len(files), object)
    for first, digests in open_pool(partial(digest_pixels, options=options), options).map(tasks):
        found[first : first + len(digests)] = digests
    return found


def digest_pixels(suspects: Suspects, watch: Watch, *, options: Options) -> tuple[int, list[str]]:
    """Return the position of the first file, and a digest per file, empty if it cannot be read.

    Args:
        suspects: the files.
        watch: notified of each file that was read.
        options: options of the run.

    Raises:
        StoreError: a store fails.
    """
    unfinished = Unfinished(options.files.folder)
    table = unfinished.read(inventory_table(suspects.part), _COLUMNS)
    files = find_input(options.files.input, options.files.storage_patience)
    columns = [table[name].to_pylist() for name in _COLUMNS]

    def digests() -> Iterator[str]:
        for _, pixels in reading.ahead(suspects.rows, ask):
            try:
                yield pixels.result()
            except OSError:
                yield ""
            watch.waiting()

    def ask(row: int) -> Any:
        source, offset, length = (column[row] for column in columns)
        if not suspects.is_whole:
            offset, length = last_range(offset, length)
        return reading.part(decode_source(source), offset, length, checksum)

    with files.reading() as reading:
        return suspects.first, [*digests()]


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
