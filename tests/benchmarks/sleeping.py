"""Workers of a simulated run, which sleep instead of reading headers and converting slices.

A module of its own, without Beam: every worker process imports it. What a task itself takes, such
as writing its table, is part of the time that its slices take.
"""

import hashlib
import time
from collections import Counter
from pathlib import Path

from beam_pipeline.options import Options
from beam_pipeline.planning.inventory import Inspected
from beam_pipeline.shards.formats import index_table
from beam_pipeline.shards.unfinished import ShardResult, Unfinished, table_metadata
from beam_pipeline.workers import Watch
from headct.layout import (
    SHARDS_A_PART,
    ShardFile,
    inventory_table,
    label_column,
    labels_of,
    listing_table,
    plan_table,
    written_table,
)

HEADER_SECONDS, SLICE_SECONDS = 0.3e-3, 1.3e-3


def inspect_asleep(number: int, _watch: Watch, *, options: Options) -> Inspected:
    """Sleep in place of `inspect_part`, and store the part of the inventory made up before."""
    began = time.monotonic()
    unfinished = Unfinished(options.files.folder)
    files = unfinished.read_metadata(listing_table(number))["files"]
    made_up = Path(options.files.output).with_name("made-up")
    name = f".unfinished/{inventory_table(number)}.arrow"
    unfinished.folder.write(name, (made_up / name).read_bytes(), durable=False)
    _sleep_until(began + HEADER_SECONDS * files)
    return Inspected(files, 0, 0)


def write_asleep(number: int, _watch: Watch, *, options: Options) -> ShardResult:
    """Sleep in place of `write_shard`, and store the rows of the index."""
    began = time.monotonic()
    unfinished = Unfinished(options.files.folder)
    plan = unfinished.read_batch(plan_table(number // SHARDS_A_PART), number % SHARDS_A_PART)
    shard = table_metadata(plan)["shards"][number % SHARDS_A_PART]
    rows, labels = plan.to_pylist(), labels_of(plan.column_names)
    split = ShardFile.parse(shard).split
    image = {"position_z": 1.0, "row_spacing": 0.5, "column_spacing": 0.5, "rows": 512}
    image |= {"columns": 512, "transfer_syntax": "1.2.840.10008.1.2.1", "repair": "none"}
    image |= {"resized": False, "split": split, "shard": shard, "offset": 0, "bytes": 1}
    image |= {"image_offset": 0, "image_bytes": 1}
    described = [
        row | image | {"record": place, "source": row["source"].decode()}
        for place, row in enumerate(rows)
    ]
    unfinished.folder.write(shard, b"", durable=False)
    counts = {label: sum(row[label_column(label)] == 1 for row in rows) for label in labels}
    sha256, version = hashlib.sha256().hexdigest(), unfinished.folder.version(shard)
    acquisitions = dict(Counter(row["acquisition"] for row in rows))
    result = ShardResult(
        *(split, shard, 0, sha256, version, "", len(rows), counts, {}, acquisitions, 0, [])
    )
    unfinished.write(written_table(shard), index_table(described, labels), vars(result))
    _sleep_until(began + SLICE_SECONDS * len(rows))
    return result


def _sleep_until(end: float) -> None:
    time.sleep(max(end - time.monotonic(), 0))
