"""Splits of an earlier assignment, looked up for the slices of a run."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from beam_pipeline.keys import hash_id, patient_of_study, study_of
from beam_pipeline.options import Identifiers, ImageId, Options, fill_in
from beam_pipeline.planning.inventory import find_key, replace_uid
from beam_pipeline.planning.join_labels import JoinedFiles
from beam_pipeline.planning.label_match import image_keys
from beam_pipeline.planning.text_tables import open_table
from headct.errors import UsageError
from headct.layout import INDEX, MANIFEST
from headct.stores import open_file

_TABLES = {".parquet", ".csv", ".tsv", ".txt", ".gz", ".bz2", ".xz", ".zst", ".zip"}
_SPLIT, _IMAGE = "split", "image_id"
_NO_ID = "it has no such column"
_NONE_HERE = "none of them is here"
_ORDINALS = "they are ordinals, which mean nothing outside their directory"
_OTHER_KEY = "they are hashes, and this run has not their key (--identifiers hash)"


@dataclass(frozen=True)
class Earlier:
    """An earlier assignment.

    Attributes:
        table: texts: `split`, and image ids and patient or study ids, if present.
        options: options of this run.
        recorded: options of the shard directory's run, with its `identity`; empty for a table.
    """

    table: pd.DataFrame
    options: Options
    recorded: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, options: Options) -> "Earlier":
        """Read `--folds_from`.

        Raises:
            UsageError: the assignment is unreadable, lacks a column, or has no ids that can be
                compared with this run's.
            StoreError: the store fails.
        """
        path, patience = str(options.splits.folds_from), options.files.storage_patience
        is_table = PurePosixPath(path).suffix.lower() in _TABLES
        table = path if is_table else f"{path.rstrip('/')}/{INDEX}"
        wanted = (_IMAGE, f"{options.splits.group_by.value}_id")
        try:
            found = cls(_read_table(table, wanted, patience), options)
            if not is_table:
                manifest = f"{path.rstrip('/')}/{MANIFEST}"
                found = cls(found.table, options, _read_options(manifest, patience))
        except FileNotFoundError as error:
            missing = error.filename or table
            raise UsageError(f"--folds_from {path}: {missing} does not exist") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"--folds_from {path}: {error}") from None
        if all(found._why_not(column) for column in wanted):
            raise UsageError(f"--folds_from {path} cannot be joined: {found._reasons()}")
        return found

    @property
    def _group_column(self) -> str:
        return f"{self.options.splits.group_by.value}_id"

    def _kind(self, column: str) -> str | None:
        """Return what the ids are: file_name, ordinal, hash or keep; None if unknown."""
        kind: str | None = self.recorded.get("identifiers")
        if column != _IMAGE or kind is None:
            return kind
        by = self.recorded["image_id"]
        if by == ImageId.AUTO:  # UIDs, if there are any, by the rule of the other ids
            is_name = self.recorded["identity"] == ImageId.FILE_NAME
            return ImageId.FILE_NAME if is_name else kind
        return Identifiers.KEEP if by == ImageId.SOP_INSTANCE_UID else str(by)

    def _why_not(self, column: str) -> str:
        """Return why ids cannot be compared with this run's; empty if they can."""
        if column not in self.table:
            return _NO_ID
        if self._kind(column) == Identifiers.ORDINAL:
            return _ORDINALS
        check = self.options.identifiers.identifier_key_check
        has_key = check is not None and check == self.recorded.get("identifier_key_check")
        return _OTHER_KEY if self._kind(column) == Identifiers.HASH and not has_key else ""

    def _reasons(self) -> str:
        columns = self._group_column, _IMAGE
        return "; ".join(f"{column}: {self._why_not(column) or _NONE_HERE}" for column in columns)

    def find(self, joined: JoinedFiles) -> tuple[list[str | None], str]:
        """Find the splits of this run's slices by patient, or else by image.

        Returns:
            The split of each slice, None if unknown; and a sentence on the number of patients or
            studies that keep their split.

        Raises:
            UsageError: no slice is known, or a patient has two splits.
        """
        for column in (self._group_column, _IMAGE):
            forms = [] if self._why_not(column) else self._forms(column, joined)
            found = [self._look_up(column, ids, wanted) for ids, wanted in forms]
            splits = max(found, key=lambda known: known.notna().sum(), default=pd.Series())
            if splits.notna().any():
                note = self._describe(splits.notna().to_numpy(), column, joined)
                return splits.astype(object).where(splits.notna(), None).tolist(), note
        path = self.options.splits.folds_from
        raise UsageError(f"--folds_from {path} knows no slice: {self._reasons()}")

    def _forms(self, column: str, joined: JoinedFiles) -> Iterator[tuple[pd.Series, pd.Series]]:
        """Yield the ids of the rows and of this run's slices, for each way to compare them."""
        texts, kind, slices = self.table[column], self._kind(column), joined.slices
        if column == _IMAGE:
            if kind in (None, ImageId.FILE_NAME) and not joined.identity.ambiguous:
                yield _keys(texts), slices["image_id"]
            if kind != ImageId.FILE_NAME and slices["sop_instance_uid"].any():
                if kind != Identifiers.HASH:
                    key, own = find_key(self.options), self.options.labels.image_id
                    texts = texts.map(lambda text: replace_uid(key, text, own))
                yield _keys(texts), slices["sop_instance_uid"]
            return
        here = joined.inventory.texts[column]
        numbers = pd.Series(range(len(here)), here)
        if kind in (None, Identifiers.HASH):
            yield texts.map(numbers), slices[column]
        if kind in (None, Identifiers.KEEP):
            key = find_key(self.options)
            hashed = texts.map(lambda text: _hash_group(key, column, text))
            yield hashed.map(numbers), slices[column]

    def _look_up(self, column: str, ids: pd.Series, wanted: pd.Series) -> pd.Series:
        rows = self.table.assign(id=ids)[["id", _SPLIT]].dropna().drop_duplicates()
        rows = rows[rows["id"].isin(wanted)]
        if rows["id"].duplicated().any():
            raise UsageError(
                f"--folds_from {self.options.splits.folds_from} has one "
                f"{column.removesuffix('_id')} in two splits: such an assignment leaks"
            )
        return wanted.map(rows.set_index("id")[_SPLIT])

    def _describe(self, known: NDArray[np.bool_], by: str, joined: JoinedFiles) -> str:
        groups = joined.slices[self._group_column]
        every, kept = groups.nunique(), groups[known].nunique()
        noun = "studies" if self._group_column == "study_id" else "patients"
        text = f"--folds_from: {kept} of {every} {noun} keep their split, found by {by}"
        if by != _IMAGE or kept == every:
            return f"{text}."
        why = self._why_not(self._group_column) or _NONE_HERE
        return f"{text}; by {self._group_column} the others are not looked for: {why}."


def _hash_group(key: bytes, column: str, text: str) -> str:
    study = study_of(text)
    if study is None or not key:
        return hash_id(key, column, text)
    return patient_of_study(hash_id(key, "study_id", study))


def _keys(texts: pd.Series) -> pd.Series:
    return pd.Series(image_keys(pa.array(texts, pa.string())))


def _read_table(path: str, wanted: tuple[str, ...], patience: float) -> pd.DataFrame:
    with open_table(path, patience) as table:
        names = [name for name in wanted if name in table.columns]
        if _SPLIT not in table.columns or not names:
            columns = ", ".join(map(repr, table.columns[:20]))
            raise ValueError(f"it has the columns {columns}; want split and {' or '.join(wanted)}")
        names.append(_SPLIT)
        blocks = [*table.read([table.columns.index(name) for name in names])]
    texts = {
        name: [text for block in blocks for text in block[place].to_pylist()]
        for place, name in enumerate(names)
    }
    found = pd.DataFrame(texts, dtype=object)
    return found.assign(split=found[_SPLIT].where(found[_SPLIT] != "", None))


def _read_options(path: str, patience: float) -> dict[str, Any]:
    with open_file(path, patience) as file:
        manifest = json.loads(file.read())
    if not isinstance(manifest, dict) or not isinstance(manifest.get("options"), dict):
        raise ValueError(f"{path} is not a shard directory's manifest")
    identity = manifest.get(_IMAGE, ImageId.FILE_NAME.value)  # the only one of old versions
    return {**fill_in(manifest["options"]), "identity": identity}
