"""From the inventory's files to the plan's: what planning reads, and what it leaves for others.

Of all files at once only numbers are held, some 100 bytes a file: names and headers pass by, a part
of the inventory at a time, on their way to the shards' plans.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beam_pipeline.directory.index import LABEL_PREFIX
from beam_pipeline.directory.rejects import REJECTS, Reject, check_rejects, encode_rejects
from beam_pipeline.directory.unfinished import Unfinished, table_metadata, with_metadata
from beam_pipeline.errors import UsageError
from beam_pipeline.layout import (
    REJECTS_TABLE,
    SHARDS_A_PART,
    ShardFile,
    inventory_table,
    plan_table,
)
from beam_pipeline.options import Identifiers, ImageId, LeakCheck, Options
from beam_pipeline.planning.assignment import read_assignment
from beam_pipeline.planning.duplicates import (
    NOT_IDENTICAL,
    IdenticalPixels,
    PixelRange,
    compare_pixels,
    count_identical,
    find_candidates,
)
from beam_pipeline.planning.identifiers import ID_COLUMNS, number_ids, ordinal, ordinals
from beam_pipeline.planning.image_keys import image_keys
from beam_pipeline.planning.inventory import decode_source, show_source
from beam_pipeline.planning.labels import LabelFile
from beam_pipeline.planning.plan import (
    BY_HEADER,
    USED,
    VERDICTS,
    Deal,
    Judgement,
    Keys,
    deal,
    judge,
    number_by_appearance,
)
from beam_pipeline.storage import InputFiles

# Slices whose plans are written in one pass over the inventory: bounds memory.
_SLICES_A_PASS = 1 << 20

REJECTS_SCHEMA = pa.schema(
    {column: pa.string() for column in ("source", "image_id", "reason", "detail")}
)
_CARRIED = ("source", "size", "image_id", "header")
_KEY_COLUMNS = ("image_id", *ID_COLUMNS, "fingerprint", "reason")


@dataclass(frozen=True)
class Plan:
    """What is known before the shards are written.

    Attributes:
        labels: names of the classes.
        files_seen: how many files the input has.
        labels_without_file: how many labeled image ids have no file.
        identical: slices with identical pixels among those to write.
        shards: the shards' file names, in order.
        slices: how many there are to write.
    """

    labels: tuple[str, ...]
    files_seen: int
    labels_without_file: int
    identical: IdenticalPixels
    shards: tuple[str, ...]
    slices: int

    def encode(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Plan":
        """The plan that was encoded."""
        values = json.loads(data)
        values["identical"] = IdenticalPixels(**values["identical"])
        values["labels"], values["shards"] = tuple(values["labels"]), tuple(values["shards"])
        return cls(**values)


def plan_shards(parts: int, options: Options) -> Plan:
    """Join files with labels, deal patients to folds and slices to shards, and write the plan.

    Args:
        parts: how many the inventory has.
        options: of the run.

    Raises:
        UsageError: there are no files, none can be used, or they cannot be dealt as asked.
        TooManyRejects: more files than allowed cannot be used.
        OutputError: the plan cannot be written.
        StoreError: a store fails.
    """
    unfinished = Unfinished(options.files.folder)
    inventory = [inventory_table(number) for number in range(parts)]
    labels = None
    if options.files.labels:
        file = LabelFile(
            options.files.labels,
            options.labels.id_column,
            options.labels.label_columns,
            options.files.storage_patience,
        )
        labels = file.read()
    keys, sizes = _read_keys(unfinished, inventory, options)
    if not len(keys.usable):
        raise UsageError(f"input {options.files.input} holds no files")
    judgement = judge(keys, labels)
    del labels
    parts_of = _Parts(unfinished, inventory, sizes)
    rejects = _rejects(parts_of, judgement.verdicts, options)
    unfinished.folder.write(REJECTS, encode_rejects(rejects))
    check_rejects(len(keys.usable), rejects, options.run.max_reject_fraction)
    unfinished.write(REJECTS_TABLE, pa.Table.from_pylist(rejects, REJECTS_SCHEMA))
    identical = _find_identical(parts_of, keys, judgement, options)
    earlier = None
    if options.splits.folds_from:
        earlier = read_assignment(options.splits.folds_from, options.files.storage_patience)
    dealt = deal(keys, judgement, identical, options.splits, earlier)
    plan = Plan(
        labels=judgement.names,
        files_seen=len(keys.usable),
        labels_without_file=judgement.labels_without_file,
        identical=count_identical(
            identical, keys.ids["patient_id"][judgement.used].astype(np.int64), judgement.labels
        ),
        shards=tuple(shard.name for shard in dealt.shards),
        slices=len(dealt.slices),
    )
    numbers = {}
    if options.identifiers.identifiers is Identifiers.ORDINAL:
        numbers = number_by_appearance(keys, judgement)
    del keys
    _write_plans(parts_of, judgement, dealt, numbers, options)
    unfinished.write_plan(plan.encode())
    return plan


def _read_keys(
    unfinished: Unfinished, inventory: Sequence[str], options: Options
) -> tuple[Keys, list[int]]:
    """The columns that decide, and how many rows each part of the inventory has."""
    codes = {column: _Codes() for column in ID_COLUMNS}
    keys_of_images, fingerprints, usable = [], [], []
    checks = set()
    for table in unfinished.read_all(inventory, _KEY_COLUMNS):
        checks.add(table_metadata(table)["key_check"])
        keys_of_images.append(image_keys(table["image_id"]))
        fingerprints.append(table["fingerprint"].to_numpy())
        usable.append(pc.equal(pc.cast(table["reason"], pa.string()), "").to_numpy())
        for column, of_column in codes.items():
            of_column.add(table[column])
    if len(checks) > 1:
        raise UsageError(
            f"input {options.files.input} changed while its headers were read; "
            "the same command resumes"
        )
    sizes = [len(part) for part in usable]
    keys = Keys(
        _join(keys_of_images, np.uint64),
        {column: of_column.join() for column, of_column in codes.items()},
        _join(fingerprints, np.uint64),
        _join(usable, np.bool_),
    )
    return keys, sizes


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


@dataclass
class _Parts:
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


def _find_identical(
    parts: _Parts, keys: Keys, judgement: Judgement, options: Options
) -> NDArray[np.int64]:
    """For each slice, the set of those with the same pixels that it belongs to."""
    identical = np.full(len(judgement.used), NOT_IDENTICAL, np.int64)
    if options.splits.leak_check is LeakCheck.OFF:
        return identical
    candidates = find_candidates(keys.fingerprints[judgement.used])
    wanted = np.zeros(len(keys.usable), np.bool_)
    wanted[judgement.used[candidates]] = True
    ranges = [
        PixelRange(decode_source(row["source"]), row["pixel_offset"], row["pixel_bytes"])
        for _, table in parts.read(wanted, ("source", "pixel_offset", "pixel_bytes"))
        for row in table.to_pylist()
    ]
    files = InputFiles.parse(options.files.input, options.files.storage_patience)
    identical[candidates] = compare_pixels(ranges, files)
    return identical


def _rejects(parts: _Parts, verdicts: NDArray[np.int8], options: Options) -> list[Reject]:
    """A row a file that planning leaves out, as `rejects.jsonl` has it."""
    rejects = []
    for places, table in parts.read(verdicts != USED, REJECTS_SCHEMA.names):
        for place, row in zip(places.tolist(), table.to_pylist(), strict=True):
            reason, detail = row["reason"], row["detail"]
            if verdicts[place] != BY_HEADER:
                reason, detail = VERDICTS[verdicts[place]]
            shown = _shown(row["source"], row["image_id"], place, options)
            rejects.append({**shown, "reason": str(reason), "detail": detail})
    return rejects


def _shown(source: bytes, image_id: str, place: int, options: Options) -> dict[str, str]:
    """File names are not shown where image ids, which come from them, are not to be."""
    if options.labels.image_id is ImageId.ORDINAL:
        return {"source": ordinal("file", place), "image_id": ""}
    return {"source": show_source(decode_source(source)), "image_id": image_id}


def _write_plans(
    parts: _Parts,
    judgement: Judgement,
    dealt: Deal,
    numbers: dict[str, NDArray[np.int64]],
    options: Options,
) -> None:
    recorded = json.dumps(options.recorded(), sort_keys=True)
    digest = hashlib.sha256(recorded.encode()).hexdigest()
    a_pass = (
        max(_SLICES_A_PASS // options.splits.examples_per_shard // SHARDS_A_PART, 1) * SHARDS_A_PART
    )
    firsts = range(0, len(dealt.shards), a_pass)
    edges = [*(dealt.starts[first] for first in firsts), len(dealt.slices)]
    carried = [*_CARRIED, *(column for column in ID_COLUMNS if column not in numbers)]
    files = judgement.used[dealt.slices]
    for first, begin, end, rows in zip(
        firsts, edges, edges[1:], _rows_of_passes(parts, files, edges, carried), strict=False
    ):
        table = _arrange(rows, judgement, dealt.slices[begin:end], numbers, options)
        shards = dealt.shards[first : first + a_pass]
        bounds = [start - begin for start in dealt.starts[first : first + a_pass + 1]]
        parts.unfinished.write_all(
            _plan_part(table, bounds, shards, at, first, digest)
            for at in range(0, len(shards), SHARDS_A_PART)
        )


def _rows_of_passes(
    parts: _Parts, files: NDArray[np.int64], edges: Sequence[int], columns: Sequence[str]
) -> Iterator[pa.Table]:
    """The inventory's rows of the files of each pass, in the order of the files.

    The inventory is read once. Where there are several passes, the rows of each wait in a temporary
    file of this machine.

    Args:
        parts: of the inventory.
        files: to write, in the order to write them.
        edges: of the passes in `files`.
        columns: of the inventory.
    """
    pass_of = np.full(parts.starts[-1], -1, np.int16)
    for number, (begin, end) in enumerate(pairwise(edges)):
        pass_of[files[begin:end]] = number
    found = ((pass_of[places], table) for places, table in parts.read(pass_of >= 0, columns))
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
    options: Options,
) -> pa.Table:
    """The rows of some slices, in the order given, as the shards' plans have them.

    Args:
        rows: of the inventory, in the order of the files.
        judgement: says which file a slice is.
        slices: places in `judgement.used`.
        numbers: of each slice's patient, study and series, if these are numbered.
        options: of the run.
    """
    files = judgement.used[slices]
    place = np.empty(len(files), np.int64)  # of each slice among the rows
    place[np.argsort(files)] = np.arange(len(files))
    columns = {n: _plain(rows[n]).take(pa.array(place)) for n in rows.column_names}
    for column, number in numbers.items():
        columns[column] = number_ids(column, number[slices])
    if options.labels.image_id is ImageId.ORDINAL:
        columns["image_id"] = ordinals("image", slices)
    columns["number"] = pa.array(files)
    for name, values in zip(judgement.names, judgement.labels[slices].T, strict=True):
        columns[LABEL_PREFIX + name] = pa.array(np.ascontiguousarray(values))
    return pa.table(columns)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without a dictionary, and with offsets that more than 2 GiB of text need."""
    if pa.types.is_dictionary(column.type) or pa.types.is_string(column.type):
        return column.cast(pa.large_string())
    return column.cast(pa.large_binary()) if pa.types.is_binary(column.type) else column
