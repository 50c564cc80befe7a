"""From the inventory's files to the plan's: what planning reads, and what it leaves for others.

Of all files at once only numbers are held, some 100 bytes a file: names and headers pass by, a part
of the inventory at a time, on their way to the shards' plans.
"""

from functools import partial

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
from beam_pipeline.planning.earlier import KnownSplits, read_earlier
from beam_pipeline.planning.identity import Identity
from beam_pipeline.planning.join_labels import JoinedFiles, join_labels
from beam_pipeline.planning.plan import (
    BY_HEADER,
    SKIPPED,
    USED,
    VERDICTS,
    Judgement,
    Keys,
    count_unnamed,
    deal,
    number_by_appearance,
)
from beam_pipeline.planning.plan_tables import write_plan_tables
from beam_pipeline.planning.read_inventory import Inventory, find_inventory_key
from beam_pipeline.shards.rejects import Reject, check_rejects
from beam_pipeline.shards.unfinished import Plan, Unfinished
from headct.layout import REJECT_COLUMNS, REJECTS_TABLE, ordinal
from headct.stores import InputFiles, decode_source, find_input, show_source

REJECTS_SCHEMA = pa.schema({column: pa.string() for column in REJECT_COLUMNS})


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
    """What an earlier assignment says, if it is to be kept and there are folds."""
    used, splits, inventory = joined.judgement.used, options.splits, joined.inventory
    if not splits.folds_from or not len(used) or options.files.labels is None:
        return None
    earlier = read_earlier(splits.folds_from, splits.group_by, options.files.storage_patience)
    key = partial(find_inventory_key, inventory, options)
    return earlier.find(joined.keys, used, inventory.groups, key, options)


def _find_identical(
    inventory: Inventory, keys: Keys, judgement: Judgement, files: InputFiles
) -> NDArray[np.int64]:
    """For each slice, the set of those with the same pixels that it belongs to."""
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
    """A row a file that planning leaves out, as `rejects.jsonl` has it."""
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
            if image_id is ImageId.ORDINAL:  # image ids came from file names, which are not shown
                source = ordinal("file", place)
            shown = {"source": source, "image_id": row["image_id"]}
            rejects.append({**shown, "reason": str(reason), "detail": detail})
    return rejects
