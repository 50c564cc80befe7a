"""Labels of images: values per class, and problems of unusable images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beam_pipeline.planning.image_ids import image_keys
from beam_pipeline.shards.unfinished import Unfinished, table_metadata
from headct.layout import LABELS_TABLE
from headct.reasons import Reason

# RSNA Intracranial Hemorrhage Detection 2019: five subtypes, and any hemorrhage.
RSNA_LABELS = (
    "epidural",
    "intraparenchymal",
    "intraventricular",
    "subarachnoid",
    "subdural",
    "any",
)
# Problems of an image's rows: reason and detail.
PROBLEMS = (
    (Reason.LABEL_INVALID, "a value is neither 0 nor 1"),
    (Reason.LABEL_INVALID, "not a value for each class"),
    (Reason.LABEL_CONFLICT, "rows contradict each other"),
)
_BAD_VALUE, _MISSING_CLASS, _CONFLICT = range(len(PROBLEMS))
_CELLS = 1 << 24  # label values that always fit in memory
# Characters to strip around a text: CSV keeps quotes that follow a space.
AROUND = ' \t"'


@dataclass(frozen=True)
class Labels:
    """The labels of a data set.

    Attributes:
        names: names of the classes, in the order of the columns.
        image_ids: string [images], as in the file; unique.
        values: int8 [images, classes], 0 or 1 unless the image has a problem.
        problems: int8 [images], index into PROBLEMS, or -1.
    """

    names: tuple[str, ...]
    image_ids: pa.ChunkedArray
    values: NDArray[np.int8]
    problems: NDArray[np.int8]

    def keep(self, unfinished: Unfinished) -> None:
        """Write the labels for the step that plans the shards.

        Raises:
            OutputError: the labels cannot be written.
            StoreError: the output's store fails.
        """
        values = pa.FixedSizeListArray.from_arrays(pa.array(self.values.ravel()), len(self.names))
        columns = {"image_id": self.image_ids, "values": values, "problem": self.problems}
        unfinished.write(LABELS_TABLE, pa.table(columns), {"names": self.names})

    @classmethod
    def find(cls, unfinished: Unfinished) -> "Labels | None":
        """Return the labels that `keep` wrote, or None."""
        table = unfinished.find(LABELS_TABLE)
        if table is None:
            return None
        names = tuple(table_metadata(table)["names"])
        values = table["values"].combine_chunks().flatten().to_numpy()
        problems = table["problem"].to_numpy()
        return cls(names, table["image_id"], values.reshape(-1, len(names)), problems)


class Values:
    """Values of a block of rows of a label file.

    Attributes:
        ids: string, unique image ids.
        keys: uint64, `image_keys` of `ids`.
        images: int32 [n], index into `keys` per row.
        columns: int16, class per row [n] (long form) or per column [classes] (wide form).
        values: int8 [n] or [n, classes], 0, 1 or -1.
    """

    def __init__(
        self, images: pa.DictionaryArray, columns: NDArray[np.int16], values: NDArray[np.int8]
    ) -> None:
        self.ids = pc.utf8_trim(images.dictionary, AROUND)
        self.keys = image_keys(self.ids)
        self.images = images.indices.to_numpy()
        self.columns = columns
        self.values = values


def collect(names: tuple[str, ...], parts: Sequence[Values], columns: NDArray[np.int64]) -> Labels:
    """Separate images with complete, valid, consistent labels from the rest.

    Args:
        names: names of the classes.
        parts: blocks of the file.
        columns: index into `names` per class number of the blocks.
    """
    every = np.concatenate([np.empty(0, np.uint64), *(part.keys for part in parts)])
    rows, found = pd.factorize(every)
    is_new = np.zeros(len(every), np.bool_)  # True at the first row of an image
    is_new[np.searchsorted(np.maximum.accumulate(rows), np.arange(len(found)))] = True
    ids = []
    cells, values = len(found) * len(names), sum(part.values.size for part in parts)
    if cells > max(_CELLS, 2 * values):  # few rows with many classes could exhaust memory
        raise ValueError(
            f"it has {len(found)} images and {len(names)} classes, but only {values} values; want "
            "a value for each class of an image"
        )
    lowest = np.full((len(found), len(names)), 2, np.int8)
    highest = np.full_like(lowest, -2)
    first = 0
    for part in parts:
        some = slice(first, first + len(part.keys))
        ids.append(part.ids.filter(pa.array(is_new[some])))
        row = rows[some][part.images]
        place = (row[:, None] if part.values.ndim == 2 else row), columns[part.columns]
        np.minimum.at(lowest, place, part.values)
        np.maximum.at(highest, place, part.values)
        first += len(part.keys)
    problems = np.full(len(found), -1, np.int8)
    problems[(lowest < 0).any(axis=1)] = _BAD_VALUE
    problems[(lowest > highest).any(axis=1)] = _MISSING_CLASS
    problems[(lowest < highest).any(axis=1)] = _CONFLICT
    return Labels(names, pa.chunked_array(ids, pa.string()), lowest, problems)
