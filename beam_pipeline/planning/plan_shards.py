"""Planning of the shards, from inventory and labels to the tables of the plan.

Memory holds some 100 bytes of numbers per file. Names and headers are read in parts of the
inventory and copied to the tables of the plan.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beam_pipeline.options import GroupBy, Identifiers, ImageId, LeakCheck, Options, SplitOptions
from beam_pipeline.planning.duplicates import ALONE, count_identical, find_identical, join_groups
from beam_pipeline.planning.folds import assign_shards, assign_splits, sample_groups
from beam_pipeline.planning.folds_from import Earlier
from beam_pipeline.planning.inventory import ACQUISITION
from beam_pipeline.planning.join_labels import (
    BY_HEADER,
    NOT_SAMPLED,
    SKIPPED,
    USED,
    VERDICTS,
    Inventory,
    JoinedFiles,
    join_labels,
)
from beam_pipeline.shards.manifest import check_rejects
from beam_pipeline.shards.unfinished import Plan, Reject, with_metadata
from headct.layout import (
    ID_COLUMNS,
    REJECT_COLUMNS,
    REJECTS_TABLE,
    SHARDS_A_PART,
    UNLABELED_SPLIT,
    ShardFile,
    label_column,
    listing_table,
    ordinal,
    plan_table,
)
from headct.stores import decode_source, show_source

REJECTS_SCHEMA = pa.schema({column: pa.string() for column in REJECT_COLUMNS})
_SLICES_A_PASS = 1 << 20  # planned together: bounds memory
# Columns of the inventory in the plan; 64-bit offsets, for over 2 GiB of text.
_CARRIED = {
    "source": pa.large_binary(),
    "size": pa.int64(),
    "version": pa.large_string(),
    "header": pa.large_string(),
}


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
    joined = sample_patients(join_labels(parts, options), options)
    unfinished = joined.inventory.unfinished
    rejects = list_rejects(joined, options)
    check_rejects(unfinished, joined.files_seen, rejects, options.run.max_reject_fraction)
    unfinished.write(REJECTS_TABLE, pa.Table.from_pylist(rejects, REJECTS_SCHEMA))
    plan, dealt = make_plan(joined, options)
    _write_tables(joined, dealt, options)
    unfinished.write_plan(plan)
    return plan


def make_plan(
    joined: JoinedFiles, options: Options
) -> tuple[Plan, dict[ShardFile, NDArray[np.int64]]]:
    """Deal patients to folds and slices to shards; return the plan, and what `deal` returns.

    Raises:
        UsageError: patients cannot be split as the options demand.
        StoreError: a store fails.
    """
    inventory, slices = joined.inventory, joined.slices
    unfinished = inventory.unfinished
    hidden = options.labels.image_id is ImageId.ORDINAL  # ordinals hide file names
    identical = find_identical(inventory, slices, options)
    known, notes, not_listed = None, joined.notes, 0
    if options.selection.files:
        listed = unfinished.read_metadata(listing_table(0))
        not_listed = listed["not_listed"]
        notes = (
            f"--files: {listed['unmatched']} of {listed['entries']} entries are no file of the "
            f"input; {not_listed} files of the input are not listed.",
            *notes,
        )
    if options.splits.folds_from and joined.names and len(slices):
        known, note = Earlier.read(options).find(joined)
        notes = (*notes, note)
    dealt = deal(joined, identical, options.splits, known)
    plan = Plan(
        labels=joined.names,
        files_seen=joined.files_seen,
        not_listed=not_listed,
        skipped=joined.skipped,
        labels_without_file=joined.labels_without_file,
        identifying_paths=0 if hidden else inventory.identifying_paths,
        image_id=joined.identity.by.value,
        labels_joined_by=joined.labels_joined_by,
        label_level=joined.labels_joined_by and joined.labels_joined_by.level.value,
        notes=notes,
        not_sampled=int((joined.verdicts == NOT_SAMPLED).sum()),
        without_patient_id={
            "slices": int(slices["unnamed"].sum()),
            "studies": int(slices["study_id"][slices["unnamed"]].nunique()),
        },
        identical=count_identical(identical, slices["patient_id"], joined.labels),
        shards=tuple(shard.name for shard in dealt),
        slices=len(slices),
    )
    return plan, dealt


def list_rejects(joined: JoinedFiles, options: Options) -> list[Reject]:
    """Return one row of `rejects.jsonl` per rejected or excluded file."""
    rejects, hidden = [], options.labels.image_id is ImageId.ORDINAL
    verdicts, identity = joined.verdicts, joined.identity
    columns = {*REJECT_COLUMNS, identity.column}
    wanted = ~np.isin(verdicts, (USED, SKIPPED, NOT_SAMPLED))
    for places, table in joined.inventory.read(wanted, [*columns]):
        numbers = joined.inventory.number(places).tolist()
        for place, number, row in zip(places.tolist(), numbers, table.to_pylist(), strict=True):
            reason, detail = row["reason"], row["detail"]
            if verdicts[place] != BY_HEADER:
                reason, detail = VERDICTS[verdicts[place]]
            source = show_source(decode_source(row["source"]))
            image_id = "" if identity.numbered else row[identity.column] or row["image_id"]
            rejects.append(
                {
                    "source": ordinal("file", number) if hidden else source,
                    "image_id": image_id,
                    "reason": str(reason),
                    "detail": detail,
                }
            )
    return rejects


def sample_patients(joined: JoinedFiles, options: Options) -> JoinedFiles:
    """Return the files with a sample of the patients (`--max_patients`), or studies if grouped so.

    The sample has about the label shares of all slices. Its patients are whole: the slices are
    those that a run without the option writes.
    """
    number = options.selection.max_patients
    groups = _group(joined, options.splits) if number else np.empty(0, np.int64)
    count = int(groups.max(initial=-1)) + 1
    if not 0 < number < count:
        return joined
    chosen = sample_groups(groups, joined.labels, number, options.splits.seed)[groups]
    verdicts = joined.verdicts.copy()
    verdicts[joined.slices.index[~chosen]] = NOT_SAMPLED
    noun = "studies" if options.splits.group_by is GroupBy.STUDY else "patients"
    note = f"--max_patients: {number} of {count} {noun}, {chosen.sum()} of {len(chosen)} slices."
    return replace(
        joined,
        verdicts=verdicts,
        slices=joined.slices[chosen],
        labels=joined.labels[chosen],
        notes=(*joined.notes, note),
    )


def deal(
    joined: JoinedFiles,
    identical: NDArray[np.int64],
    options: SplitOptions,
    known: Sequence[str | None] | None = None,
) -> dict[ShardFile, NDArray[np.int64]]:
    """Deal patients to splits and slices to shards.

    Args:
        joined: the slices and their labels.
        identical: [slices], number of the set of slices with identical pixels, or ALONE.
        options: options of splits and shards.
        known: [slices], split in an earlier data set, to be kept.

    Returns:
        The indices of the slices of each shard in writing order, int64; shards in the order of
        split and number.

    Raises:
        UsageError: too few patients for the options, or `known` cannot be kept.
    """
    splits = {UNLABELED_SPLIT: np.arange(len(joined.slices))}
    if joined.names and len(joined.slices):
        groups = _group(joined, options)
        if options.leak_check is LeakCheck.JOIN:
            groups = join_groups(groups, identical)
        splits = assign_splits(groups, joined.labels, options, known)
    dealt = {}
    for split, rows in splits.items():
        count = math.ceil(len(rows) / options.examples_per_shard)
        for number, own in enumerate(assign_shards(joined.labels[rows], count, options.seed)):
            dealt[ShardFile(split, number, count)] = rows[own]
    return dealt


def _group(joined: JoinedFiles, options: SplitOptions) -> NDArray[np.int64]:
    """Return the group of each slice, a patient or study, numbered from 0."""
    if options.group_by is GroupBy.STUDY:
        groups = joined.slices["study_id"]
    else:
        # A study has one patient (DICOM PS3.3 7.3.1.2): where some of its files lack the patient
        # id, other files, also unused ones, may have it.
        files = joined.inventory.files
        files = files.loc[files["usable"], ["patient_id", "study_id", "unnamed"]]
        open_studies = files["study_id"].isin(files["study_id"][files["unnamed"]])
        shared = files["study_id"].where(open_studies, ALONE)
        groups = pd.Series(join_groups(files["patient_id"], shared), files.index)
        groups = groups[joined.slices.index]
    return np.asarray(pd.factorize(groups)[0], np.int64)


def _write_tables(
    joined: JoinedFiles, dealt: Mapping[ShardFile, NDArray[np.int64]], options: Options
) -> None:
    """Write the tables of slices per shard, in writing order."""
    inventory, slices, identity = joined.inventory, joined.slices, joined.identity
    shards, bounds = [*dealt], np.cumsum([0, *map(len, dealt.values())])
    order = np.concatenate([np.empty(0, np.int64), *dealt.values()])
    numbered = ID_COLUMNS if options.identifiers.identifiers is Identifiers.ORDINAL else ()
    numbers = {name: pd.factorize(slices[name])[0] for name in numbered}
    acquisitions = slices[ACQUISITION].to_numpy()
    numbers_of_files = inventory.number(slices.index.to_numpy())
    carried = [*_CARRIED, *(name for name in ID_COLUMNS if name not in numbered)]
    carried += [] if identity.numbered else [identity.column]
    recorded = json.dumps(options.recorded(), sort_keys=True)
    metadata = {"options": hashlib.sha256(recorded.encode()).hexdigest()}

    def plan_part(part: int, table: pa.Table) -> tuple[str, list[pa.Table]]:
        some = slice(part * SHARDS_A_PART, (part + 1) * SHARDS_A_PART)
        starts = bounds[some.start : some.stop + 1]
        own = order[starts[0] : starts[-1]]
        for name, number in numbers.items():
            table = table.append_column(name, ordinals(name.removesuffix("_id"), number[own]))
        if identity.numbered:
            table = table.append_column("image_id", ordinals("image", own))
        else:
            table = table.rename_columns({identity.column: "image_id"})
        table = table.append_column("number", pa.array(numbers_of_files[own]))
        used, codes = np.unique(acquisitions[own], return_inverse=True)
        texts = pa.array([inventory.texts[ACQUISITION][code] for code in used], pa.string())
        table = table.append_column(
            ACQUISITION, pa.DictionaryArray.from_arrays(codes.astype(np.int32), texts)
        )
        for name, values in zip(joined.names, joined.labels[own].T, strict=True):
            table = table.append_column(label_column(name), pa.array(np.ascontiguousarray(values)))
        of_shards = [
            table.slice(start, stop - start) for start, stop in pairwise(starts - starts[0])
        ]
        names = [shard.name for shard in shards[some]]
        return plan_table(part), with_metadata(of_shards, metadata | {"shards": names})

    edges = bounds[[*range(0, len(shards), SHARDS_A_PART), len(shards)]]
    tables = _rows_in_order(inventory, slices.index[order].to_numpy(), edges, carried)
    inventory.unfinished.write_all(map(plan_part, count(), tables))


def ordinals(noun: str, numbers: NDArray[np.int64]) -> pa.Array:
    """Return strings such as `patient_000001`, from a noun and numbers from 0."""
    digits = pc.utf8_lpad(pc.cast(pa.array(numbers + 1), pa.string()), 6, "0")
    return pc.binary_join_element_wise(noun, digits, "_")


def _rows_in_order(
    inventory: Inventory, files: NDArray[np.int64], edges: NDArray[np.int64], columns: Sequence[str]
) -> Iterator[pa.Table]:
    """Yield some columns of the inventory for runs of some files.

    The inventory is read once. Of many files, rows are buffered in local temporary files.

    Args:
        inventory: inventory of all files.
        files: files in the order of the rows.
        edges: bounds of the runs in `files`.
        columns: names of the columns.
    """
    positions = np.full(len(inventory.files), -1, np.int64)
    positions[files] = np.arange(len(files))
    types = {name: _CARRIED.get(name, pa.large_string()) for name in columns}
    schema = pa.schema({**types, "position": pa.int64()})
    found = (
        rows.append_column("position", pa.array(positions[places]))
        .select(schema.names)
        .cast(schema)
        for places, rows in inventory.read(positions >= 0, columns)
    )
    passes = edges[:-1] // _SLICES_A_PASS  # of the runs
    if not passes.any():
        yield from _arrange(found, edges) if len(files) else ()
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = {number: str(Path(folder, f"{number}.arrow")) for number in np.unique(passes)}
        with ExitStack() as stack:
            writers = {
                number: stack.enter_context(pa.ipc.new_stream(path, schema))
                for number, path in paths.items()
            }
            for rows in found:
                runs = np.searchsorted(edges, rows["position"], side="right") - 1
                for number in np.unique(passes[runs]):
                    writers[number].write_table(rows.filter(pa.array(passes[runs] == number)))
        for number, path in paths.items():
            with pa.memory_map(path) as file, pa.ipc.open_stream(file) as reader:
                runs = np.flatnonzero(passes == number)
                yield from _arrange([reader.read_all()], edges[runs[0] : runs[-1] + 2])


def _arrange(found: Iterable[pa.Table], edges: NDArray[np.int64]) -> Iterator[pa.Table]:
    """Yield runs of rows in the order of their positions, without the positions."""
    rows = pa.concat_tables(found)
    order = np.argsort(rows["position"])
    columns = {}
    for name in rows.column_names[:-1]:
        columns[name] = rows[name].combine_chunks()
        rows = rows.drop_columns(name)
    rows = pa.table(columns)
    for start, stop in pairwise(edges - edges[0]):
        yield rows.take(pa.array(order[start:stop]))
