"""Numbers that stand for image ids where millions are compared."""

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray


def image_keys(image_ids: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """64 bits for each image id, the same wherever it stands (SipHash, of pandas).

    Two of ten million different ids share one with a probability of 3 in a million.

    Args:
        image_ids: strings.

    Returns:
        uint64 [n].
    """
    texts = image_ids.to_numpy(zero_copy_only=False).astype(object, copy=False)
    return np.asarray(pd.util.hash_array(texts, categorize=False), np.uint64)
