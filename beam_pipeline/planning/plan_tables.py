"""The plans of shards: for each a table of the slices that go into it, for whoever writes it.

Names and headers pass by on their way from the inventory, a part of it at a time.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beam_pipeline.options import Options
from beam_pipeline.planning.identifiers import number_ids, ordinals
from beam_pipeline.planning.identity import Identity
from beam_pipeline.planning.plan import Deal, Judgement
from beam_pipeline.planning.read_inventory import Inventory
from beam_pipeline.shards.unfinished import with_metadata
from headct.layout import ID_COLUMNS, SHARDS_A_PART, ShardFile, label_column, plan_table

# Slices whose plans are written in one pass over the inventory: bounds memory.
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
    """Write a table of the slices of each shard, in the order to write them.

    Args:
        inventory: of all files.
        judgement: says which file a slice is.
        dealt: the slices of each shard.
        numbers: of each slice's patient, study and series, if these are numbered.
        identity: what image ids are.
        options: of the run.

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
    """The inventory's rows of the files of each pass, in the order of the files.

    The inventory is read once. Where there are several passes, the rows of each wait in a temporary
    file of this machine.

    Args:
        inventory: of all files.
        files: to write, in the order to write them.
        edges: of the passes in `files`.
        columns: of the inventory.
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
    """Write rows to the file of the pass that each belongs to."""
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
    """Some shards of a pass, beginning with the one at `at`: the table's name, and its batches."""
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
    """The rows of some slices, in the order given, as the shards' plans have them.

    Args:
        rows: of the inventory, in the order of the files.
        judgement: says which file a slice is.
        slices: places in `judgement.used`.
        numbers: of each slice's patient, study and series, if these are numbered.
        identity: what image ids are.
    """
    files = judgement.used[slices]
    place = np.empty(len(files), np.int64)  # of each slice among the rows
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
    """Without a dictionary, and with offsets that more than 2 GiB of text need."""
    if pa.types.is_dictionary(column.type) or pa.types.is_string(column.type):
        return column.cast(pa.large_string())
    return column.cast(pa.large_binary()) if pa.types.is_binary(column.type) else column
