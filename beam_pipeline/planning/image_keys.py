"""Numbers that stand for image ids where millions are compared."""

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

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
