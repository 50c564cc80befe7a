"""Image ids: file names where these tell slices apart, else SOP Instance UIDs; 64 bits for each."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from beam_pipeline.options import Identifiers, ImageId

_AT_A_TIME = 1 << 16  # ids that are Python objects: 60 bytes each and more


def image_keys(image_ids: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """64 bits for each image id, the same wherever it stands (SipHash, of pandas).

    Two of ten million different ids share one with a probability of 3 in a million.

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
    """What image ids are made of.

    Attributes:
        by: FILE_NAME or SOP_INSTANCE_UID.
        numbered: whether ordinals are written instead.
        ambiguous: how many usable files share a name with another slice.
    """

    by: ImageId
    numbered: bool
    ambiguous: int

    @property
    def column(self) -> str:
        """The inventory's column of what tells slices apart."""
        return "image_id" if self.by is ImageId.FILE_NAME else "sop_instance_uid"

    def describe(self) -> str:
        """Say why image ids are not file names, in a sentence; empty if they are."""
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
    """Decide by the usable files whether their names tell them apart.

    Copies of a slice under one name do not speak against names: they are duplicates either way.

    Args:
        names: [n], `image_keys` of the file names of usable files.
        uids: [n], of their SOP Instance UIDs; NO_UID where a file has none.
        image_id: what the user wants.
        identifiers: what is written for other ids.
    """
    ambiguous = _count_ambiguous(names[uids != NO_UID], uids[uids != NO_UID])
    by = image_id
    if image_id in (ImageId.AUTO, ImageId.ORDINAL):
        by = ImageId.SOP_INSTANCE_UID if ambiguous else ImageId.FILE_NAME
    hidden = by is ImageId.SOP_INSTANCE_UID and identifiers is Identifiers.ORDINAL
    numbered = image_id is ImageId.ORDINAL or (image_id is ImageId.AUTO and hidden)
    return Identity(by, numbered, ambiguous)


def _count_ambiguous(names: NDArray[np.uint64], uids: NDArray[np.uint64]) -> int:
    """How many files have a name that files with another UID have too."""
    order = np.lexsort((uids, names))
    names, uids = names[order], uids[order]
    same = names[1:] == names[:-1]
    differing = np.unique(names[1:][same & (uids[1:] != uids[:-1])])
    return int(np.isin(names, differing).sum())
