"""A label file to a table of labels by image id."""

from dataclasses import dataclass, field
from typing import Any

import fsspec
import numpy as np
import pandas as pd

from beam_pipeline.errors import Reason, UsageError

# RSNA Intracranial Hemorrhage Detection 2019: the five subtypes, and whether there is any.
RSNA_LABELS = (
    "epidural",
    "intraparenchymal",
    "intraventricular",
    "subarachnoid",
    "subdural",
    "any",
)


@dataclass(frozen=True)
class Labels:
    """The labels of a data set.

    Attributes:
        names: of the classes, in the order of the columns.
        table: int8, 0 or 1, a column a class, indexed by image id (unique).
        unusable: the reason and its detail for every image id whose rows cannot be used.
    """

    names: tuple[str, ...]
    table: pd.DataFrame
    unusable: dict[str, tuple[Reason, str]] = field(default_factory=dict)


def check_label_file(path: str) -> None:
    """Raise at once if a label file is missing or has other columns.

    Raises:
        UsageError: with what was found.
    """
    _check_columns(path, list(_read_csv(path, nrows=0).columns))


def read_labels(path: str) -> Labels:
    """Read the long form that Kaggle distributes: a row `<image id>_<class>,<0 or 1>` a class.

    Identical repeated rows count once. An image id with contradicting rows, with a value other
    than 0 and 1, or without a row for each class is unusable.

    Raises:
        UsageError: the file cannot be read, or has other columns or no rows.
    """
    rows = _read_csv(path)
    _check_columns(path, list(rows.columns))
    if rows.empty:
        raise UsageError(f"label file {path} has no rows")
    key = rows["ID"].str.rpartition("_")
    value = pd.to_numeric(rows["Label"], errors="coerce").where(lambda v: v.isin([0, 1]))
    long = pd.DataFrame({"image_id": key[0], "name": key[2], "value": value.fillna(-1)})
    if (long["image_id"] == "").any():
        raise UsageError(f"label file {path}: an ID is not of the form <image id>_<class>")
    long = long.astype({"value": np.int8}).drop_duplicates()
    return _pivot(long, _class_names(long["name"]))


def _read_csv(path: str, **options: Any) -> pd.DataFrame:
    try:
        with fsspec.open(path, "rb", compression="infer") as file:
            rows: pd.DataFrame = pd.read_csv(file, dtype=str, keep_default_na=False, **options)
            return rows
    except FileNotFoundError:
        raise UsageError(f"label file {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read label file {path}: {error}") from None


def _check_columns(path: str, columns: list[str]) -> None:
    if not {"ID", "Label"} <= set(columns):
        raise UsageError(
            f"label file {path} has the columns {', '.join(map(repr, columns))}; "
            "expected 'ID' and 'Label', with rows like ID_0123abcde_subdural,0"
        )


def _class_names(found: pd.Series) -> tuple[str, ...]:
    """The classes in the file: RSNA's in their usual order, others as they first appear."""
    names = tuple(found.unique())
    return RSNA_LABELS if set(names) == set(RSNA_LABELS) else names


def _pivot(long: pd.DataFrame, names: tuple[str, ...]) -> Labels:
    unusable: dict[str, tuple[Reason, str]] = {}
    repeated = long.duplicated(["image_id", "name"], keep=False)
    for image_id in long.loc[repeated, "image_id"].unique():
        unusable[image_id] = (Reason.LABEL_CONFLICT, "rows contradict each other")
    wide = (
        long[~long["image_id"].isin(unusable)]
        .pivot(index="image_id", columns="name", values="value")
        .reindex(columns=list(names))
    )
    for image_id in wide.index[wide.isna().any(axis=1)]:
        unusable[image_id] = (Reason.LABEL_INVALID, "not a row for each class")
    for image_id in wide.index[(wide < 0).any(axis=1)]:
        unusable[image_id] = (Reason.LABEL_INVALID, "a value is neither 0 nor 1")
    return Labels(names, wide.drop(index=list(unusable), errors="ignore").astype(np.int8), unusable)
