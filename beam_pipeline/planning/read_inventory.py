"""The inventory as planning reads it: the columns that decide at once, others a part at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beam_pipeline.directory.unfinished import Unfinished, table_metadata
from beam_pipeline.errors import UsageError
from beam_pipeline.layout import ID_COLUMNS, inventory_table
from beam_pipeline.planning.image_keys import image_keys
from beam_pipeline.planning.plan import Keys

_KEY_COLUMNS = ("image_id", *ID_COLUMNS, "fingerprint", "reason")


@dataclass
class Inventory:
    """The inventory, read a part at a time, with the place of each part's first row."""

    unfinished: Unfinished
    names: Sequence[str]
    sizes: Sequence[int]
    starts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.starts = np.cumsum([0, *self.sizes]).tolist()

    def read(
        self, wanted: NDArray[np.bool_], columns: Sequence[str]
    ) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
        """Rows of the inventory, with their places; parts without any are not read.

        Args:
            wanted: [files].
            columns: of the inventory.
        """
        bounds = list(pairwise(self.starts))
        needed = [i for i, (first, end) in enumerate(bounds) if wanted[first:end].any()]
        tables = self.unfinished.read_all([self.names[i] for i in needed], columns)
        for part, table in zip(needed, tables, strict=True):
            first, end = bounds[part]
            mask = wanted[first:end]
            rows = table if mask.all() else table.filter(pa.array(mask))
            yield np.flatnonzero(mask) + first, rows


def read_keys(unfinished: Unfinished, parts: int, source: str) -> tuple[Keys, Inventory]:
    """The columns that decide, and the inventory, to read others of.

    Args:
        unfinished: the tables of the output.
        parts: how many the inventory has.
        source: the input, for messages.

    Raises:
        UsageError: the input changed between two parts.
        StoreError: the folder's store fails.
    """
    names = [inventory_table(number) for number in range(parts)]
    codes = {column: _Codes() for column in ID_COLUMNS}
    keys_of_images, fingerprints, usable = [], [], []
    checks = set()
    for table in unfinished.read_all(names, _KEY_COLUMNS):
        checks.add(table_metadata(table)["key_check"])
        keys_of_images.append(image_keys(table["image_id"]))
        fingerprints.append(table["fingerprint"].to_numpy())
        usable.append(pc.equal(pc.cast(table["reason"], pa.string()), "").to_numpy())
        for column, of_column in codes.items():
            of_column.add(table[column])
    if len(checks) > 1:
        raise UsageError(
            f"input {source} changed while its headers were read; the same command resumes"
        )
    inventory = Inventory(unfinished, names, [len(part) for part in usable])
    keys = Keys(
        _join(keys_of_images, np.uint64),
        {column: of_column.join() for column, of_column in codes.items()},
        _join(fingerprints, np.uint64),
        _join(usable, np.bool_),
    )
    return keys, inventory


def _join(parts: list[Any], dtype: Any) -> Any:
    whole = np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)
    parts.clear()
    return whole


class _Codes:
    """Texts that come in parts, as numbers in the order of their first appearance."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._parts: list[NDArray[np.int32]] = []

    def add(self, texts: pa.ChunkedArray) -> None:
        for chunk in texts.chunks:
            known = self._known
            names = chunk.dictionary.to_pylist()
            places = np.array([known.setdefault(n, len(known)) for n in names], np.int32)
            self._parts.append(places[chunk.indices.to_numpy()])

    def join(self) -> NDArray[np.int32]:
        whole: NDArray[np.int32] = _join(self._parts, np.int32)
        return whole
