"""Slices with identical pixels: a patient under two names would be in two folds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beam_pipeline.dicom.slices import digest_pixels
from beam_pipeline.shards.unfinished import IdenticalPixels
from headct.stores import InputFiles

NOT_IDENTICAL = -1


@dataclass(frozen=True)
class PixelRange:
    """Where a file's pixels are.

    Attributes:
        source: the file.
        offset: of the pixels' first byte.
        bytes: how many there are.
    """

    source: str
    offset: int
    bytes: int


def find_candidates(fingerprints: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The slices whose fingerprints are not unique; 0 is no fingerprint.

    Args:
        fingerprints: [n].

    Returns:
        Places, in ascending order.
    """
    order = np.argsort(fingerprints, kind="stable")
    equal = np.diff(fingerprints[order]) == 0
    repeated = np.zeros(len(order), np.bool_)
    repeated[1:] |= equal
    repeated[:-1] |= equal
    return np.sort(order[repeated & (fingerprints[order] != 0)])


def compare_pixels(ranges: Sequence[PixelRange], files: InputFiles) -> NDArray[np.int64]:
    """Which of some files have the same pixels.

    Args:
        ranges: their pixels.
        files: where they are.

    Returns:
        [n]: the number of the group of files with the same pixels, NOT_IDENTICAL for a file that is
        like no other or that cannot be read: writing its shard will say so.

    Raises:
        StoreError: the store fails.
    """
    checksums: list[bytes] = []
    with files.reading() as reading:
        for _, pixels in reading.ahead(
            ranges,
            lambda found: reading.part(found.source, found.offset, found.bytes, digest_pixels),
        ):
            try:
                checksums.append(pixels.result())
            except OSError:
                checksums.append(b"")
    codes, different = pd.factorize(pd.Series(checksums, dtype=object))
    alone = np.bincount(codes, minlength=len(different)) == 1
    unread = np.array([checksum == b"" for checksum in different], np.bool_)
    return np.where((alone | unread)[codes], NOT_IDENTICAL, codes).astype(np.int64)


def join_groups(groups: NDArray[np.int64], identical: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number groups so that those which share identical pixels have the same number.

    Args:
        groups: [n], the group of each slice, numbered from 0.
        identical: [n], the number of the set of identical slices that each belongs to, or
            NOT_IDENTICAL.

    Returns:
        [n], from 0, in the order of first appearance.
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
        identical: [n], the number of the set of identical slices that each belongs to, or
            NOT_IDENTICAL.
        patients: [n], of each slice.
        labels: [n, l], of each slice.
    """
    marked = identical != NOT_IDENTICAL
    frame = pd.DataFrame({"set": identical[marked], "patient": patients[marked]})
    frame["labels"] = [row.tobytes() for row in labels[marked]]
    frame = frame[frame["set"].duplicated(keep=False)]  # the others of a set may be rejected
    distinct = frame.groupby("set").nunique()
    return IdenticalPixels(
        groups=len(distinct),
        slices=len(frame),
        groups_across_patients=int((distinct["patient"] > 1).sum()),
        groups_with_conflicting_labels=int((distinct["labels"] > 1).sum()),
    )
