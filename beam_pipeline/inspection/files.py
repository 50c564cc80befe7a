"""A row per file of an input: what a run would do with it and why, and what its header says."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from beam_pipeline.dicom.header import Header
from beam_pipeline.options import Identifiers, ImageId, Options
from beam_pipeline.planning.inventory import ACQUISITION
from beam_pipeline.planning.join_labels import (
    NOT_SAMPLED,
    SKIPPED,
    USED,
    VERDICTS,
    Inventory,
    JoinedFiles,
)
from beam_pipeline.planning.plan_shards import ordinals
from headct.layout import ID_COLUMNS, ShardFile, label_column, ordinal
from headct.reasons import EXCLUSIONS
from headct.stores import decode_source, show_source

WRITTEN, REJECTED, EXCLUDED = "written", "rejected", "excluded"
_OUTCOMES = {USED: WRITTEN, SKIPPED: "skipped", NOT_SAMPLED: "not_sampled"}
_READ = ["source", "size", "header", "reason", "detail", "image_id", "sop_instance_uid"]
_FIRST = ("source", "image_id", *ID_COLUMNS, "split", "outcome", "reason", "detail")
_FROM_HEADER = ("position_z", "row_spacing", "column_spacing", "rows", "columns")
_ACQUIRED = ("orientation", "body_part", "kernel", "slice_thickness", "scanner")


def describe_files(
    joined: JoinedFiles, dealt: Mapping[ShardFile, NDArray[np.int64]], options: Options
) -> pd.DataFrame:
    """Return one row per file, as `Inspection.files` describes them.

    Args:
        joined: all files with their verdicts.
        dealt: indices of the slices of each shard.
        options: options of the run.
    """
    inventory, slices = joined.inventory, joined.slices
    number = len(inventory.files)
    parts = [
        _read_part(places, table, joined, options)
        for places, table in inventory.read(np.ones(number, np.bool_), _READ)
    ]
    frame = pd.concat(parts, ignore_index=True)
    for name in ("outcome", "reason", "transfer_syntax"):
        frame[name] = frame[name].astype("category")
    for name in ID_COLUMNS:
        frame[name] = _category(_ids(joined, name, options), inventory.files[name].to_numpy())
    shards = [*dealt]
    shard_of = np.full(number, len(shards))
    for place, rows in enumerate(dealt.values()):
        shard_of[slices.index[rows]] = place
    frame["split"] = _category([*(shard.split for shard in shards), ""], shard_of)
    columns = [label_column(name) for name in joined.names]
    for place, name in enumerate(columns):
        labels = np.full(number, -1, np.int8)
        labels[slices.index] = joined.labels[:, place]
        frame[name] = pd.Series(labels, dtype="Int8").mask(labels < 0)
    acquired = inventory.files[ACQUISITION].to_numpy()
    texts, acquisitions = inventory.texts[ACQUISITION], inventory.acquisitions
    for name in _ACQUIRED:
        # Files that are not usable have no acquisition, instead of an unknown one.
        values = [
            getattr(each, name) if text else None
            for text, each in zip(texts, acquisitions, strict=True)
        ]
        frame[name] = _category(values, acquired)
    frame["slice_thickness"] = frame["slice_thickness"].astype(np.float64)
    return frame[[*_FIRST, *columns, *(name for name in frame if name not in {*_FIRST, *columns})]]


def _read_part(
    places: NDArray[np.int64], table: pa.Table, joined: JoinedFiles, options: Options
) -> pd.DataFrame:
    """Return the columns that the inventory has for the files of a part."""
    inventory, verdicts = joined.inventory, joined.verdicts[places]
    reasons, details = table["reason"].to_pylist(), table["detail"].to_pylist()
    for row in np.flatnonzero(verdicts >= 0):
        reason, details[row] = VERDICTS[verdicts[row]]
        reasons[row] = reason.value
    headers = [Header.decode(text) if text else None for text in table["header"].to_pylist()]
    absent = (np.nan,) * len(_FROM_HEADER)
    values = [
        (each.position_z, *each.pixel_spacing, each.rows, each.columns) if each else absent
        for each in headers
    ]
    numbers = np.array(values, np.float64).reshape(-1, len(_FROM_HEADER)).T
    columns: dict[str, Any] = dict(zip(_FROM_HEADER, numbers, strict=True))
    size = options.image.image_size
    sides = np.maximum(columns["rows"], columns["columns"])
    resized = (columns["rows"] != size) | (columns["columns"] != size)
    for name in ("row_spacing", "column_spacing"):  # of the image, as `convert_slice` computes it
        columns[name] = np.where(resized, columns[name] / (size / sides), columns[name])
    for name in ("rows", "columns"):
        columns[name] = pd.array(columns[name], "Int32")
    unread = np.isnan(sides)
    return pd.DataFrame(
        {
            "source": pd.array(_sources(inventory, places, table, options), "str"),
            "image_id": pd.array(_image_ids(joined, places, table), "str"),
            **columns,
            "transfer_syntax": [each and each.transfer_syntax for each in headers],
            "resized": pd.arrays.BooleanArray(resized & ~unread, unread),
            "outcome": [
                _OUTCOMES.get(verdict) or (EXCLUDED if reason in EXCLUSIONS else REJECTED)
                for verdict, reason in zip(verdicts.tolist(), reasons, strict=True)
            ],
            "reason": reasons,
            "detail": pd.array(details, "str"),
            "size": table["size"].to_numpy(),
        }
    )


def _sources(
    inventory: Inventory, places: NDArray[np.int64], table: pa.Table, options: Options
) -> list[str]:
    if options.labels.image_id is ImageId.ORDINAL:  # ordinals hide file names
        return [ordinal("file", number) for number in inventory.number(places).tolist()]
    return [show_source(decode_source(source)) for source in table["source"].to_pylist()]


def _image_ids(joined: JoinedFiles, places: NDArray[np.int64], table: pa.Table) -> Sequence[str]:
    """Return the ids of images, numbered or as the inventory has them."""
    if not joined.identity.numbered:
        known = zip(
            table[joined.identity.column].to_pylist(), table["image_id"].to_pylist(), strict=True
        )
        return [text or name for text, name in known]
    index = joined.slices.index.to_numpy()
    numbers = np.searchsorted(index, places)
    is_slice = np.isin(places, index)
    texts = ordinals("image", numbers).to_pylist()
    return [text if used else "" for text, used in zip(texts, is_slice, strict=True)]


def _ids(joined: JoinedFiles, name: str, options: Options) -> Sequence[str]:
    """Return the written id per number of an id; ordinals of slices first, as in the run."""
    texts = joined.inventory.texts[name]
    if options.identifiers.identifiers is not Identifiers.ORDINAL:
        return texts
    files = joined.inventory.files
    others = files.loc[files["usable"], name]
    seen = pd.unique(pd.concat([joined.slices[name], others]))
    written = np.full(len(texts), "", object)
    written[seen] = ordinals(name.removesuffix("_id"), np.arange(len(seen))).to_pylist()
    return list(written)


def _category(values: Sequence[Any], numbers: NDArray[Any]) -> "pd.Series[Any]":
    """Return values by their numbers; an empty value is absent."""
    codes, categories = pd.factorize(np.array([value or None for value in values], object))
    return pd.Series(pd.Categorical.from_codes(codes[numbers], pd.Index(categories)))
