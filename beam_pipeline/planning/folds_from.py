"""Splits of an earlier assignment, looked up for the slices of a run."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from beam_pipeline.options import GroupBy, Identifiers, ImageId, Options, fill_in
from beam_pipeline.planning.image_ids import image_keys
from beam_pipeline.planning.inventory import replace_uid
from beam_pipeline.planning.plan import Keys
from beam_pipeline.planning.pseudonyms import hash_id, is_study, patient_of_study, study_of
from beam_pipeline.planning.text_tables import open_table
from headct.errors import UsageError
from headct.layout import INDEX, MANIFEST
from headct.stores import DEFAULT_PATIENCE, open_file

_TABLES = {".parquet", ".csv", ".tsv", ".txt", ".gz", ".bz2", ".xz", ".zst", ".zip"}
_SPLIT, _IMAGE = "split", "image_id"
_NO_ID = "it has no such column"
_ORDINALS = "they are ordinals, which mean nothing outside their directory"
_OTHER_KEY = "they are hashes, and this run has not their key (--identifiers hash)"
_SHARED_NAMES = "they are file names, and here several slices share one"


@dataclass(frozen=True)
class Earlier:
    """An earlier assignment.

    Attributes:
        path: path that the user gave.
        ids: columns of image ids and of patient or study ids, if present.
        splits: split per row, or None.
        group_column: `patient_id` or `study_id`.
        options: options of the shard directory's run, with its `identity`; empty for a table.
    """

    path: str
    ids: dict[str, NDArray[np.object_]]
    splits: NDArray[np.object_]
    group_column: str
    options: dict[str, Any] = field(default_factory=dict)

    def why_no_groups(self, options: Options) -> str:
        """Return why patient ids cannot be compared with this run's; empty if they can."""
        if self.group_column not in self.ids:
            return _NO_ID
        kind = self.options.get("identifiers")
        if kind == Identifiers.ORDINAL:
            return _ORDINALS
        return _OTHER_KEY if kind == Identifiers.HASH and not self._has_key(options) else ""

    def why_no_images(self, options: Options) -> str:
        """Return why image ids cannot be compared with this run's; empty if they can."""
        if _IMAGE not in self.ids:
            return _NO_ID
        kind = self.options.get("image_id")
        if kind == ImageId.ORDINAL:
            return _ORDINALS
        if kind == ImageId.AUTO and self.options["identity"] == ImageId.SOP_INSTANCE_UID:
            if self.options["identifiers"] == Identifiers.ORDINAL:
                return _ORDINALS
            if self.options["identifiers"] == Identifiers.HASH and not self._has_key(options):
                return _OTHER_KEY
        return ""

    def check(self, options: Options) -> None:
        """Raise a UsageError if neither kind of id can be compared with this run's."""
        if self.why_no_groups(options) and self.why_no_images(options):
            raise UsageError(f"--folds_from {self.path} cannot be joined: {self._reasons(options)}")

    def _reasons(self, options: Options) -> str:
        images, groups = self.why_no_images(options), self.why_no_groups(options)
        reasons = [
            f"{column}: {why or 'none of them is here'}"
            for column, why in ((self.group_column, groups), (_IMAGE, images))
        ]
        return "; ".join(reasons)

    def _has_key(self, options: Options) -> bool:
        check = options.identifiers.identifier_key_check
        return check is not None and check == self.options.get("identifier_key_check")

    def find(
        self,
        keys: Keys,
        used: NDArray[np.int64],
        groups: Sequence[str],
        key: Callable[[], bytes],
        options: Options,
    ) -> "KnownSplits":
        """Find the splits of this run's slices by patient, or else by image.

        Args:
            keys: keys of all files.
            used: indices of the files that are slices.
            groups: text per number of `keys.ids[group_column]`.
            key: returns the hash key of the ids in the inventory; empty if ids are kept.
            options: options of this run.

        Raises:
            UsageError: no slice is known, or a patient has two splits.
        """
        found = []
        if not self.why_no_groups(options):
            of_slices = keys.ids[self.group_column][used]
            found += [split[of_slices] for split in self._by_group(groups, key)]
        known = max(found, key=_count, default=_nothing(len(used)))
        by = self.group_column
        if not _count(known) and not self.why_no_images(options):
            known = max(self._by_image(keys, used, key, options), key=_count)
            by = _IMAGE
        if not _count(known):
            raise UsageError(f"--folds_from {self.path} knows no slice: {self._reasons(options)}")
        return KnownSplits(
            known, self._describe(known, by, keys.ids[self.group_column][used], options)
        )

    def _by_group(
        self, groups: Sequence[str], key: Callable[[], bytes]
    ) -> list[NDArray[np.object_]]:
        """Return the split of each group, by plain id and by this run's hashed id."""
        frame = pd.DataFrame({"id": self.ids[self.group_column], "split": self.splits})
        frame = frame[frame["id"] != ""].dropna().drop_duplicates()
        kind = self.options.get("identifiers")
        ways: list[Callable[[str], str]] = []
        if kind in (None, Identifiers.HASH):
            ways.append(str)
        if kind in (None, Identifiers.KEEP):
            ways.append(partial(_hashed, key(), self.group_column))
        found = []
        for way in ways:
            own = frame.assign(id=[way(text) for text in frame["id"]])
            own = own[own["id"].isin(set(groups))]
            if own["id"].duplicated().any():
                noun = self.group_column.removesuffix("_id")
                raise UsageError(
                    f"--folds_from {self.path} has one {noun} in two splits: such an assignment "
                    "leaks"
                )
            found.append(
                _lookup(pd.Index(own["id"]), own["split"].to_numpy(np.object_), pd.Index(groups))
            )
        return found

    def _by_image(
        self, keys: Keys, used: NDArray[np.int64], key: Callable[[], bytes], options: Options
    ) -> list[NDArray[np.object_]]:
        """Return the split of each slice, per possible form of the image id."""
        texts = self.ids[_IMAGE]
        kind = self.options.get("image_id")
        kind = self.options["identity"] if kind == ImageId.AUTO else kind
        if pd.Index(texts).duplicated().any():
            raise UsageError(f"--folds_from {self.path}: an image_id has two rows")
        found = [_nothing(len(used))]
        if kind in (None, ImageId.FILE_NAME) and not keys.identity.ambiguous:
            found.append(_lookup(_keys(texts), self.splits, pd.Index(keys.names[used])))
        if kind in (None, ImageId.SOP_INSTANCE_UID) and keys.uids.any():
            own_key, own = key(), options.labels.image_id
            hashed = self.options.get("image_id") == ImageId.AUTO and self._has_key(options)
            uids = [text if hashed else replace_uid(own_key, text, own) for text in texts]
            found.append(_lookup(_keys(uids), self.splits, pd.Index(keys.uids[used])))
        return found

    def _describe(
        self, known: NDArray[np.object_], by: str, groups: NDArray[np.int32], options: Options
    ) -> str:
        every, kept = len(np.unique(groups)), len(np.unique(groups[pd.notna(known)]))
        noun = "studies" if self.group_column == "study_id" else "patients"
        text = f"--folds_from: {kept} of {every} {noun} keep their split, found by {by}"
        if by != _IMAGE or kept == every:
            return f"{text}."
        why = self.why_no_groups(options) or "none of them is here"
        return f"{text}; by {self.group_column} the others are not looked for: {why}."


@dataclass(frozen=True)
class KnownSplits:
    """Splits of this run's slices in an earlier assignment.

    Attributes:
        splits: split per slice; None if unknown.
        note: sentence on the number of patients or studies that keep their split.
    """

    splits: NDArray[np.object_]
    note: str


def _hashed(key: bytes, column: str, text: str) -> str:
    if key and is_study(text):
        return patient_of_study(hash_id(key, "study_id", study_of(text)))
    return hash_id(key, column, text) if key else text


def _nothing(count: int) -> NDArray[np.object_]:
    return np.full(count, None, np.object_)


def _count(splits: NDArray[np.object_]) -> int:
    return int(pd.notna(splits).sum())


def _keys(texts: Sequence[str] | NDArray[np.object_]) -> pd.Index:
    return pd.Index(image_keys(pa.array(texts, pa.string())))


def _lookup(known: pd.Index, splits: Any, wanted: pd.Index) -> NDArray[np.object_]:
    """Return the split of each wanted id, or None."""
    found = pd.Series(splits, known, dtype=object).reindex(wanted)
    return found.where(found.notna(), None).to_numpy(np.object_)


def read_earlier(path: str, group_by: GroupBy, patience: float = DEFAULT_PATIENCE) -> Earlier:
    """Read an earlier assignment.

    Args:
        path: a shard directory; or a CSV or Parquet table with the column `split` and one of
            `image_id`, `patient_id` and `study_id`.
        group_by: unit that must not be in two folds.
        patience: seconds to retry a failing request.

    Raises:
        UsageError: the assignment is unreadable or lacks a column.
        StoreError: the store fails.
    """
    is_table = PurePosixPath(path).suffix.lower() in _TABLES
    table = path if is_table else f"{path.rstrip('/')}/{INDEX}"
    column = f"{group_by.value}_id"
    try:
        ids, splits = _read_columns(table, (_IMAGE, column), patience)
        options = {} if is_table else _read_options(f"{path.rstrip('/')}/{MANIFEST}", patience)
    except FileNotFoundError as error:
        raise UsageError(f"--folds_from {path}: {error.filename or table} does not exist") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"--folds_from {path}: {error}") from None
    return Earlier(path, ids, splits, column, options)


def _read_columns(
    path: str, wanted: Sequence[str], patience: float
) -> tuple[dict[str, NDArray[np.object_]], NDArray[np.object_]]:
    with open_table(path, patience) as table:
        names = [name for name in wanted if name in table.columns]
        if _SPLIT not in table.columns or not names:
            columns = ", ".join(map(repr, table.columns[:20]))
            raise ValueError(f"it has the columns {columns}; want split and {' or '.join(wanted)}")
        places = [table.columns.index(name) for name in (*names, _SPLIT)]
        parts = [[column.to_numpy(False) for column in rows] for rows in table.read(places)]
    joined = [np.concatenate([_nothing(0), *column]) for column in zip(*parts, strict=True)]
    *ids, splits = joined or [_nothing(0)] * len(places)
    splits[splits == ""] = None
    return dict(zip(names, ids, strict=True)), splits


def _read_options(path: str, patience: float) -> dict[str, Any]:
    with open_file(path, patience) as file:
        manifest = json.loads(file.read())
    if not isinstance(manifest, dict) or not isinstance(manifest.get("options"), dict):
        raise ValueError(f"{path} is not a shard directory's manifest")
    identity = manifest.get(_IMAGE, ImageId.FILE_NAME.value)  # the only one of old versions
    return {**fill_in(manifest["options"]), "identity": identity}
