"""Reading of records in any order, by their offsets in the index.

Sampling with replacement cannot read shards in order: an example that is drawn twenty times
has twenty positions in the epoch.
"""

from __future__ import annotations

import io
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from headct.tfrecord import FRAME_BYTES, CorruptRecord
from headct.tfrecord import read_record as unframe
from trainer.data.index import Index
from trainer.data.input_pipeline import CORES, as_written


def records_at(index: Index, rows: npt.NDArray[np.int64]) -> Any:
    """Return the serialized examples of `rows`, [n], in order: dataset of strings."""

    def read(row: Any) -> Any:
        # stateless: --deterministic would call stateful functions one at a time
        function = partial(read_record, index)
        record = tf.numpy_function(function, [row], tf.string, stateful=False)
        return tf.ensure_shape(record, ())

    return tf.data.Dataset.from_tensor_slices(rows).map(as_written(read), CORES)


def read_record(index: Index, row: int) -> bytes:
    """Return the serialized example of a row.

    Raises:
        tf.errors.DataLossError: no valid record at its offset.
    """
    path, offset, size = index.files[index.file[row]], index.offset[row], index.size[row]
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        frame = file.read(size)
    data = None
    with suppress(CorruptRecord):
        data = unframe(io.BytesIO(frame), int(offset))
    if data is None or len(data) + FRAME_BYTES != size:
        raise tf.errors.DataLossError(None, None, f"no record at byte {offset} of {path.name}")
    return data
