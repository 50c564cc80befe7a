"""Search for slices with identical pixels, to keep a patient with two ids in one fold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beam_pipeline.dicom.header import checksum
from beam_pipeline.shards.unfinished import IdenticalPixels
from headct.stores import InputFiles

NOT_IDENTICAL = -1


@dataclass(frozen=True)
class PixelRange:
    """Byte range of a file's pixels.

    Attributes:
        source: the file.
        offset: offset of the first byte.
        bytes: number of bytes.
    """

    source: str
    offset: int
    bytes: int


def find_candidates(fingerprints: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the slices with repeated fingerprints; 0 means no fingerprint.

    Args:
        fingerprints: [n].

    Returns:
        Indices, ascending.
    """
    order = np.argsort(fingerprints, kind="stable")
    equal = np.diff(fingerprints[order]) == 0
    repeated = np.zeros(len(order), np.bool_)
    repeated[1:] |= equal
    repeated[:-1] |= equal
    return np.sort(order[repeated & (fingerprints[order] != 0)])


def compare_pixels(ranges: Sequence[PixelRange], files: InputFiles) -> NDArray[np.int64]:
    """Group files with identical pixels.

    Args:
        ranges: pixels of the files.
        files: the input.

    Returns:
        [n]: group number per file; NOT_IDENTICAL for a file with unique pixels, and for an
        unreadable file, which is reported when its shard is written.

    Raises:
        StoreError: the store fails.
    """
    checksums: list[str] = []
    with files.reading() as reading:
        for _, pixels in reading.ahead(
            ranges,
            lambda found: reading.part(found.source, found.offset, found.bytes, checksum),
        ):
            try:
                checksums.append(pixels.result())
            except OSError:
                checksums.append("")
    codes, different = pd.factorize(pd.Series(checksums, dtype=object))
    alone = np.bincount(codes, minlength=len(different)) == 1
    unread = np.array([found == "" for found in different], np.bool_)
    return np.where((alone | unread)[codes], NOT_IDENTICAL, codes).astype(np.int64)


def join_groups(groups: NDArray[np.int64], identical: NDArray[np.int64]) -> NDArray[np.int64]:
    """Merge groups that share identical pixels, and renumber the groups.

    Args:
        groups: [n], group per slice, numbered from 0.
        identical: [n], number of the set of identical slices, or NOT_IDENTICAL.

    Returns:
        [n], numbered from 0 by first appearance.
    """
    root = list(range(int(groups.max(initial=-1)) + 1))

    def find(number: int) -> int:
        while root[number] != number:
            root[number] = root[root[number]]
            number = root[number]
        return number

    marked = identical != NOT_IDENTICAL
    pairs = pd.DataFrame({"set": identical[marked], "group": groups[marked]}).drop_duplicates()
    for _, members in pairs.groupby("set", sort=True)["group"]:
        first, *others = sorted({find(member) for member in members.tolist()})
        for other in others:
            root[other] = first
    roots = np.array([find(number) for number in range(len(root))], np.int64)
    return np.asarray(pd.factorize(roots[groups])[0], np.int64)


def count_identical(
    identical: NDArray[np.int64], patients: NDArray[np.int64], labels: NDArray[np.int8]
) -> IdenticalPixels:
    """Count slices with identical pixels.

    Args:
        identical: [n], number of the set of identical slices, or NOT_IDENTICAL.
        patients: [n], patient per slice.
        labels: [n, l], labels per slice.
    """
    marked = identical != NOT_IDENTICAL
    frame = pd.DataFrame({"set": identical[marked], "patient": patients[marked]})
    frame["labels"] = [row.tobytes() for row in labels[marked]]
    frame = frame[frame["set"].duplicated(keep=False)]  # other slices of a set may be rejected
    distinct = frame.groupby("set").nunique()
    return IdenticalPixels(
        groups=len(distinct),
        slices=len(frame),
        groups_across_patients=int((distinct["patient"] > 1).sum()),
        groups_with_conflicting_labels=int((distinct["labels"] > 1).sum()),
    )
