"""Planning of the shards, from inventory and labels to the tables of the plan.

Memory holds some 100 bytes of numbers per file. Names and headers are read in parts of the
inventory and copied to the tables of the plan.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beam_pipeline.options import Identifiers, ImageId, LeakCheck, Options
from beam_pipeline.planning.duplicates import (
    NOT_IDENTICAL,
    PixelRange,
    compare_pixels,
    count_identical,
    find_candidates,
)
from beam_pipeline.planning.folds_from import KnownSplits, read_earlier
from beam_pipeline.planning.image_ids import Identity
from beam_pipeline.planning.join_labels import JoinedFiles, join_labels
from beam_pipeline.planning.plan import (
    BY_HEADER,
    SKIPPED,
    USED,
    VERDICTS,
    Deal,
    Judgement,
    Keys,
    count_unnamed,
    deal,
    number_by_appearance,
)
from beam_pipeline.planning.pseudonyms import number_ids, ordinals
from beam_pipeline.planning.read_inventory import Inventory, find_inventory_key
from beam_pipeline.shards.rejects import Reject, check_rejects
from beam_pipeline.shards.unfinished import Plan, Unfinished, with_metadata
from headct.layout import (
    ID_COLUMNS,
    REJECT_COLUMNS,
    REJECTS_TABLE,
    SHARDS_A_PART,
    ShardFile,
    label_column,
    ordinal,
    plan_table,
)
from headct.stores import InputFiles, decode_source, find_input, show_source

REJECTS_SCHEMA = pa.schema({column: pa.string() for column in REJECT_COLUMNS})


def plan_shards(parts: int, options: Options) -> Plan:
    """Join files with labels, deal patients to folds and slices to shards, and write the plan.

    Args:
        parts: number of parts of the inventory.
        options: options of the run.

    Raises:
        UsageError: no file is usable, or patients cannot be split as the options demand.
        TooManyRejects: more files are rejected than allowed.
        OutputError: the plan cannot be written.
        StoreError: a store fails.
    """
    unfinished = Unfinished(options.files.folder)
    joined = join_labels(parts, options)
    keys, inventory, judgement = joined.keys, joined.inventory, joined.judgement
    files_seen = len(keys.usable) - joined.skipped
    rejects = _rejects(inventory, judgement.verdicts, keys.identity, options.labels.image_id)
    check_rejects(unfinished, files_seen, rejects, options.run.max_reject_fraction)
    unfinished.write(REJECTS_TABLE, pa.Table.from_pylist(rejects, REJECTS_SCHEMA))
    identical = np.full(len(judgement.used), NOT_IDENTICAL, np.int64)
    if options.splits.leak_check is not LeakCheck.OFF:
        files = find_input(options.files.input, options.files.storage_patience)
        identical = _find_identical(inventory, keys, judgement, files)
    known = _find_known(joined, options)
    splits = known.splits.tolist() if known else None
    dealt = deal(keys, judgement, identical, options.splits, splits)
    hidden = options.labels.image_id is ImageId.ORDINAL
    plan = Plan(
        labels=judgement.names,
        files_seen=files_seen,
        skipped=joined.skipped,
        labels_without_file=judgement.labels_without_file,
        identifying_paths=0 if hidden else inventory.identifying_paths,
        image_id=keys.identity.by.value,
        labels_joined_by=joined.labels_joined_by,
        notes=(*joined.notes, *([known.note] if known else [])),
        without_patient_id=count_unnamed(keys, judgement.used),
        identical=count_identical(
            identical, keys.ids["patient_id"][judgement.used].astype(np.int64), judgement.labels
        ),
        shards=tuple(shard.name for shard in dealt.shards),
        slices=len(dealt.slices),
    )
    numbers = {}
    if options.identifiers.identifiers is Identifiers.ORDINAL:
        numbers = number_by_appearance(keys, judgement)
    identity = keys.identity
    del keys, joined
    write_plan_tables(inventory, judgement, dealt, numbers, identity, options)
    unfinished.write_plan(plan)
    return plan


def _find_known(joined: JoinedFiles, options: Options) -> KnownSplits | None:
    """Return the splits of an earlier assignment, or None without one or without folds."""
    used, splits, inventory = joined.judgement.used, options.splits, joined.inventory
    if not splits.folds_from or not len(used) or options.files.labels is None:
        return None
    earlier = read_earlier(splits.folds_from, splits.group_by, options.files.storage_patience)
    key = partial(find_inventory_key, inventory, options)
    return earlier.find(joined.keys, used, inventory.groups, key, options)


def _find_identical(
    inventory: Inventory, keys: Keys, judgement: Judgement, files: InputFiles
) -> NDArray[np.int64]:
    """Return the number of the set of identical slices per slice, or NOT_IDENTICAL."""
    identical = np.full(len(judgement.used), NOT_IDENTICAL, np.int64)
    candidates = find_candidates(keys.fingerprints[judgement.used])
    wanted = np.zeros(len(keys.usable), np.bool_)
    wanted[judgement.used[candidates]] = True
    ranges = [
        PixelRange(decode_source(row["source"]), row["pixel_offset"], row["pixel_bytes"])
        for _, table in inventory.read(wanted, ("source", "pixel_offset", "pixel_bytes"))
        for row in table.to_pylist()
    ]
    identical[candidates] = compare_pixels(ranges, files)
    return identical


def _rejects(
    inventory: Inventory, verdicts: NDArray[np.int8], identity: Identity, image_id: ImageId
) -> list[Reject]:
    """Return one row of `rejects.jsonl` per rejected file."""
    rejects = []
    columns = list(dict.fromkeys([*REJECT_COLUMNS, identity.column]))
    for places, table in inventory.read((verdicts != USED) & (verdicts != SKIPPED), columns):
        for place, row in zip(places.tolist(), table.to_pylist(), strict=True):
            reason, detail = row["reason"], row["detail"]
            if verdicts[place] != BY_HEADER:
                reason, detail = VERDICTS[verdicts[place]]
            if identity.numbered:
                row["image_id"] = ""
            elif row[identity.column]:
                row["image_id"] = row[identity.column]
            source = show_source(decode_source(row["source"]))
            if image_id is ImageId.ORDINAL:  # ordinals hide file names
                source = ordinal("file", place)
            shown = {"source": source, "image_id": row["image_id"]}
            rejects.append({**shown, "reason": str(reason), "detail": detail})
    return rejects


# Slices to plan per pass: bounds memory.
_SLICES_A_PASS = 1 << 20
_CARRIED = ("source", "size", "version", "header")


def write_plan_tables(
    inventory: Inventory,
    judgement: Judgement,
    dealt: Deal,
    numbers: dict[str, NDArray[np.int64]],
    identity: Identity,
    options: Options,
) -> None:
    """Write the tables of slices per shard, in writing order.

    Args:
        inventory: inventory of all files.
        judgement: the file of each slice.
        dealt: the slices of each shard.
        numbers: patient, study and series number per slice, if ids are ordinals.
        identity: source of the image ids.
        options: options of the run.

    Raises:
        OutputError: a table cannot be written.
        StoreError: the folder's store fails.
    """
    recorded = json.dumps(options.recorded(), sort_keys=True)
    digest = hashlib.sha256(recorded.encode()).hexdigest()
    parts = _SLICES_A_PASS // options.splits.examples_per_shard // SHARDS_A_PART
    a_pass = max(parts, 1) * SHARDS_A_PART
    firsts = range(0, len(dealt.shards), a_pass)
    edges = [*(dealt.starts[first] for first in firsts), len(dealt.slices)]
    carried = [*_CARRIED, *(column for column in ID_COLUMNS if column not in numbers)]
    carried += [] if identity.numbered else [identity.column]
    files = judgement.used[dealt.slices]
    for first, begin, end, rows in zip(
        firsts, edges, edges[1:], _rows_of_passes(inventory, files, edges, carried), strict=False
    ):
        table = _arrange(rows, judgement, dealt.slices[begin:end], numbers, identity)
        shards = dealt.shards[first : first + a_pass]
        bounds = [start - begin for start in dealt.starts[first : first + a_pass + 1]]
        inventory.unfinished.write_all(
            _plan_part(table, bounds, shards, at, first, digest)
            for at in range(0, len(shards), SHARDS_A_PART)
        )


def _rows_of_passes(
    inventory: Inventory, files: NDArray[np.int64], edges: Sequence[int], columns: Sequence[str]
) -> Iterator[pa.Table]:
    """Yield the rows of the inventory per pass, in the order of the files.

    The inventory is read once. With several passes, rows are buffered in a local temporary file
    per pass.

    Args:
        inventory: inventory of all files.
        files: files in writing order.
        edges: bounds of the passes in `files`.
        columns: columns to read.
    """
    pass_of = np.full(inventory.starts[-1], -1, np.int16)
    for number, (begin, end) in enumerate(pairwise(edges)):
        pass_of[files[begin:end]] = number
    found = ((pass_of[places], table) for places, table in inventory.read(pass_of >= 0, columns))
    if len(edges) <= 2:
        yield from ([pa.concat_tables([table for _, table in found])] if len(files) else [])
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{number}.arrow") for number in range(len(edges) - 1)]
        _deal_out(found, paths)
        for path in paths:
            with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as rows:
                yield rows.read_all()


def _deal_out(found: Iterator[tuple[NDArray[np.int16], pa.Table]], paths: Sequence[Path]) -> None:
    """Write rows to the file of their pass."""
    writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
    with ExitStack() as opened:
        for passes, table in found:
            table = pa.table({name: _plain(table[name]) for name in table.column_names})
            order = np.argsort(passes, kind="stable")
            table = table.take(pa.array(order))
            present, starts = np.unique(passes[order], return_index=True)
            for number, (begin, end) in zip(
                present.tolist(), pairwise([*starts.tolist(), len(order)]), strict=True
            ):
                if number not in writers:
                    writer = pa.ipc.new_stream(str(paths[number]), table.schema)
                    writers[number] = opened.enter_context(writer)
                writers[number].write_table(table.slice(begin, end - begin))


def _plan_part(
    table: pa.Table,
    bounds: Sequence[int],
    shards: Sequence[ShardFile],
    at: int,
    first: int,
    options_digest: str,
) -> tuple[str, list[pa.Table]]:
    """Return name and batches of the table for the shards of a pass from `at` on."""
    some = range(at, min(at + SHARDS_A_PART, len(shards)))
    known = {"shards": [shards[i].name for i in some], "options": options_digest}
    batches = [table.slice(bounds[i], bounds[i + 1] - bounds[i]) for i in some]
    return plan_table((first + at) // SHARDS_A_PART), with_metadata(batches, known)


def _arrange(
    rows: pa.Table,
    judgement: Judgement,
    slices: NDArray[np.int64],
    numbers: dict[str, NDArray[np.int64]],
    identity: Identity,
) -> pa.Table:
    """Return the plan's rows of some slices, in the given order.

    Args:
        rows: rows of the inventory, in the order of the files.
        judgement: the file of each slice.
        slices: indices into `judgement.used`.
        numbers: patient, study and series number per slice, if ids are ordinals.
        identity: source of the image ids.
    """
    files = judgement.used[slices]
    place = np.empty(len(files), np.int64)  # row of each slice
    place[np.argsort(files)] = np.arange(len(files))
    columns = {n: _plain(rows[n]).take(pa.array(place)) for n in rows.column_names}
    for column, number in numbers.items():
        columns[column] = number_ids(column, number[slices])
    if identity.numbered:
        columns["image_id"] = ordinals("image", slices)
    else:
        columns["image_id"] = columns.pop(identity.column)
    columns["number"] = pa.array(files)
    for name, values in zip(judgement.names, judgement.labels[slices].T, strict=True):
        columns[label_column(name)] = pa.array(np.ascontiguousarray(values))
    return pa.table(columns)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column without a dictionary, and with 64-bit offsets for over 2 GiB of text."""
    if pa.types.is_dictionary(column.type) or pa.types.is_string(column.type):
        return column.cast(pa.large_string())
    return column.cast(pa.large_binary()) if pa.types.is_binary(column.type) else column
