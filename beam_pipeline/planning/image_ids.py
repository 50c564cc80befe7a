"""Image ids and their 64-bit keys: unambiguous file names, else SOP Instance UIDs."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from beam_pipeline.options import Identifiers, ImageId

_AT_A_TIME = 1 << 16  # ids converted together: a Python object takes 60 bytes or more


def image_keys(image_ids: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """Return a 64-bit key per image id, independent of the order (SipHash, of pandas).

    The probability of a collision among ten million ids is 3 in a million.

    Args:
        image_ids: strings.

    Returns:
        uint64 [n].
    """
    parts = image_ids.chunks if isinstance(image_ids, pa.ChunkedArray) else [image_ids]
    keys = [
        pd.util.hash_array(
            part[first : first + _AT_A_TIME].to_numpy(zero_copy_only=False).astype(object),
            categorize=False,
        )
        for part in parts
        for first in range(0, len(part), _AT_A_TIME)
    ]
    return np.concatenate([np.empty(0, np.uint64), *keys])


NO_UID = 0  # the key of a SOP Instance UID that is absent


@dataclass(frozen=True)
class Identity:
    """Source of the image ids.

    Attributes:
        by: FILE_NAME or SOP_INSTANCE_UID.
        numbered: whether ordinals are written instead.
        ambiguous: number of usable files that share a name with another slice.
    """

    by: ImageId
    numbered: bool
    ambiguous: int

    @property
    def column(self) -> str:
        """The inventory's column that distinguishes slices."""
        return "image_id" if self.by is ImageId.FILE_NAME else "sop_instance_uid"

    def describe(self) -> str:
        """Return a sentence on why image ids are not file names; empty if they are."""
        if self.by is ImageId.FILE_NAME or not self.ambiguous:
            return ""
        written = "ordinals" if self.numbered else "these, by --identifiers"
        return (
            f"{self.ambiguous} files have the name of another slice, so slices are told apart by "
            f"SOP Instance UID; image ids are {written}."
        )


def choose_identity(
    names: NDArray[np.uint64],
    uids: NDArray[np.uint64],
    image_id: ImageId,
    identifiers: Identifiers,
) -> Identity:
    """Choose file names as ids if they distinguish the usable slices, else UIDs.

    Copies of a slice under one name do not count as ambiguous: they are duplicates by either id.

    Args:
        names: [n], `image_keys` of the file names of usable files.
        uids: [n], `image_keys` of the SOP Instance UIDs; NO_UID if absent.
        image_id: the user's choice.
        identifiers: treatment of other ids.
    """
    ambiguous = _count_ambiguous(names[uids != NO_UID], uids[uids != NO_UID])
    by = image_id
    if image_id in (ImageId.AUTO, ImageId.ORDINAL):
        by = ImageId.SOP_INSTANCE_UID if ambiguous else ImageId.FILE_NAME
    hidden = by is ImageId.SOP_INSTANCE_UID and identifiers is Identifiers.ORDINAL
    numbered = image_id is ImageId.ORDINAL or (image_id is ImageId.AUTO and hidden)
    return Identity(by, numbered, ambiguous)


def _count_ambiguous(names: NDArray[np.uint64], uids: NDArray[np.uint64]) -> int:
    """Count the files that share a name with a file of another UID."""
    order = np.lexsort((uids, names))
    names, uids = names[order], uids[order]
    same = names[1:] == names[:-1]
    differing = np.unique(names[1:][same & (uids[1:] != uids[:-1])])
    return int(np.isin(names, differing).sum())
