"""Reading of the inventory: key columns of all files at once, other columns in parts."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beam_pipeline.keys import key_check
from beam_pipeline.options import Options
from beam_pipeline.planning.image_ids import NO_UID, choose_identity, image_keys
from beam_pipeline.planning.inventory import find_key
from beam_pipeline.planning.label_match import FilePlaces
from beam_pipeline.planning.plan import Keys
from beam_pipeline.planning.pseudonyms import is_study
from beam_pipeline.shards.unfinished import Unfinished, table_metadata
from headct.errors import UsageError
from headct.layout import ID_COLUMNS, inventory_table

_KEY_COLUMNS = (
    "image_id",
    "sop_instance_uid",
    *ID_COLUMNS,
    "fingerprint",
    "path_identifies",
    "reason",
)


@dataclass
class Inventory:
    """The inventory, read in parts; `starts` has the index of each part's first row.

    Attributes:
        unfinished: the tables of the output.
        names: names of the parts.
        sizes: rows per part.
        key_check: check value of the key that ids are hashed with.
        groups: id per patient or study number, if an earlier assignment is kept.
        identifying_paths: number of files with an identifier of the patient in the path.
    """

    unfinished: Unfinished
    names: Sequence[str]
    sizes: Sequence[int]
    key_check: str = ""
    groups: Sequence[str] = ()
    identifying_paths: int = 0
    starts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.starts = np.cumsum([0, *self.sizes]).tolist()

    def read(
        self, wanted: NDArray[np.bool_], columns: Sequence[str]
    ) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
        """Yield indices and rows of the wanted files; only parts with wanted files are read.

        Args:
            wanted: [files].
            columns: columns to read.
        """
        bounds = list(pairwise(self.starts))
        needed = [i for i, (first, end) in enumerate(bounds) if wanted[first:end].any()]
        tables = self.unfinished.read_all([self.names[i] for i in needed], columns)
        for part, table in zip(needed, tables, strict=True):
            first, end = bounds[part]
            mask = wanted[first:end]
            rows = table if mask.all() else table.filter(pa.array(mask))
            yield np.flatnonzero(mask) + first, rows


def read_keys(
    unfinished: Unfinished, parts: int, options: Options, places: FilePlaces | None = None
) -> tuple[Keys, Inventory]:
    """Return the keys of all files, and the inventory for reading other columns.

    Args:
        unfinished: the tables of the output.
        parts: number of parts of the inventory.
        options: options of the run.
        places: collects the labels of the files, or None.

    Raises:
        UsageError: the input changed between two parts.
        StoreError: the folder's store fails.
    """
    names = [inventory_table(number) for number in range(parts)]
    codes = {column: _Codes() for column in ID_COLUMNS}
    of_names, uids, fingerprints, usable = [], [], [], []
    checks, identifying = set(), 0
    columns = [*_KEY_COLUMNS, *(["source"] if places else [])]
    for table in unfinished.read_all(names, columns):
        checks.add(table_metadata(table)["key_check"])
        of_names.append(image_keys(table["image_id"]))
        uids.append(_uid_keys(table["sop_instance_uid"]))
        fingerprints.append(table["fingerprint"].to_numpy())
        usable.append(pc.equal(pc.cast(table["reason"], pa.string()), "").to_numpy())
        identifying += pc.sum(table["path_identifies"], min_count=0).as_py()
        for column, of_column in codes.items():
            of_column.add(table[column])
        if places:
            places.add(table["source"].combine_chunks())
    _check_keys_equal(checks, options.files.input)
    sizes, check = [*map(len, usable)], next(iter(checks), "")
    group_column = f"{options.splits.group_by.value}_id"
    groups = codes[group_column].texts() if options.splits.folds_from else ()
    inventory = Inventory(unfinished, names, sizes, check, groups, identifying)
    joined = _join(of_names, np.uint64), _join(uids, np.uint64), _join(usable, np.bool_)
    ids = {column: of_column.join() for column, of_column in codes.items()}
    are_studies = np.array([is_study(text) for text in codes["patient_id"].texts()], np.bool_)
    keys = Keys(
        *joined[:2],
        choose_identity(
            joined[0][joined[2]],
            joined[1][joined[2]],
            options.labels.image_id,
            options.identifiers.identifiers,
        ),
        ids,
        _join(fingerprints, np.uint64),
        joined[2],
        are_studies[ids["patient_id"]],
    )
    return keys, inventory


def find_inventory_key(inventory: Inventory, options: Options) -> bytes:
    """Return the hash key of the ids in the inventory; raises as `find_key` does."""
    key = find_key(options)
    _check_keys_equal({key_check(key), inventory.key_check}, options.files.input)
    return key


def _check_keys_equal(checks: Collection[str], source: str) -> None:
    """Raise a UsageError if ids were hashed with different keys; `source` is the input."""
    if len(checks) > 1:
        raise UsageError(
            f"input {source} changed while its headers were read; the same command resumes"
        )


def _uid_keys(uids: pa.ChunkedArray) -> NDArray[np.uint64]:
    return np.where(pc.equal(uids, "").to_numpy(), np.uint64(NO_UID), image_keys(uids))


def _join(parts: list[Any], dtype: Any) -> Any:
    whole = np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)
    parts.clear()
    return whole


class _Codes:
    """Texts added in parts, numbered by first appearance."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._parts: list[NDArray[np.int32]] = []

    def add(self, texts: pa.ChunkedArray) -> None:
        for chunk in texts.chunks:
            known = self._known
            names = chunk.dictionary.to_pylist()
            places = np.array([known.setdefault(n, len(known)) for n in names], np.int32)
            self._parts.append(places[chunk.indices.to_numpy()])

    def texts(self) -> list[str]:
        return [*self._known]

    def join(self) -> NDArray[np.int32]:
        whole: NDArray[np.int32] = _join(self._parts, np.int32)
        return whole
