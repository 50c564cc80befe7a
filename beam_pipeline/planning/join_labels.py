"""Join of the inventory with the labels: a verdict and a label per file."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beam_pipeline.options import ImageId, Options
from beam_pipeline.planning.image_ids import image_keys
from beam_pipeline.planning.inventory import replace_uid
from beam_pipeline.planning.label_file import LabelFile
from beam_pipeline.planning.label_match import (
    NO_LABEL,
    FilePlaces,
    LabelIndex,
    LabelMatch,
    match_labels,
    no_match,
    plain_ids,
    settle_repeated,
)
from beam_pipeline.planning.labels import Labels
from beam_pipeline.planning.plan import SKIPPED, Judgement, Keys, find_slices, judge
from beam_pipeline.planning.read_inventory import Inventory, find_inventory_key, read_keys
from beam_pipeline.shards.unfinished import Unfinished
from headct.errors import UsageError

_AT_A_TIME = 1 << 16  # label ids per hashing step


@dataclass(frozen=True)
class JoinedFiles:
    """All files, with verdicts and labels.

    Attributes:
        keys: keys of all files.
        inventory: inventory of all files.
        judgement: the used files and their labels.
        labels_joined_by: form of the label file's ids; None without a label file.
        notes: sentences on decisions that the data made.
    """

    keys: Keys
    inventory: Inventory
    judgement: Judgement
    labels_joined_by: str | None
    notes: tuple[str, ...]

    @property
    def skipped(self) -> int:
        """Number of files skipped because the label file lacks them."""
        return int((self.judgement.verdicts == SKIPPED).sum())


def join_labels(parts: int, options: Options) -> JoinedFiles:
    """Read the inventory and the labels, and decide which files are used.

    Args:
        parts: number of parts of the inventory.
        options: options of the run.

    Raises:
        UsageError: the input has no files, or no label matches a file.
        StoreError: a store fails.
    """
    unfinished = Unfinished(options.files.folder)
    label_file = LabelFile.of(options.files, options.labels)
    # The labels kept at the start may be gone when a template's job runs again.
    labels = Labels.find(unfinished) or label_file.read() if label_file else None
    places = None
    if labels:
        index = LabelIndex.of(labels.image_ids)
        labels, places = settle_repeated(labels, index), FilePlaces(index)
    keys, inventory = read_keys(unfinished, parts, options, places)
    if not len(keys.usable):
        raise UsageError(f"input {options.files.input} holds no files")
    verdicts, slices = find_slices(keys)
    match = _match(labels, places, keys, slices, inventory, options) if labels and places else None
    judgement = judge(verdicts, slices, labels, match, options.labels.unlabeled)
    notes = [keys.identity.describe()]
    if match:
        notes.append(_describe_match(match, judgement))
    return JoinedFiles(
        keys,
        inventory,
        judgement,
        match.form.value if match else None,
        tuple(filter(None, notes)),
    )


def _describe_match(match: LabelMatch, judgement: Judgement) -> str:
    total, files = len(match.shared), int((match.places != NO_LABEL).sum())
    skipped = int((judgement.verdicts == SKIPPED).sum())
    found = total - judgement.labels_without_file
    left_out = f", {skipped} without a label skipped" if skipped else ""
    return (
        f"Labels joined by {match.form}: {found} of {total} labels, {files} of "
        f"{len(match.places)} files{left_out}."
    )


def _match(
    labels: Labels,
    places: FilePlaces,
    keys: Keys,
    slices: NDArray[np.int64],
    inventory: Inventory,
    options: Options,
) -> LabelMatch:
    """Match labels and files; raise a UsageError if no slice has a label."""
    count = len(labels.image_ids)

    def find_by_uid() -> NDArray[np.int32]:
        if not keys.uids.any():
            return np.full(len(keys.uids), NO_LABEL, np.int32)
        return LabelIndex(_hashed(labels.image_ids, inventory, options)).find(keys.uids)

    match = match_labels(places.join(), slices, count, find_by_uid)
    if match.is_empty and len(slices):
        hidden = options.labels.image_id is ImageId.ORDINAL
        path = b"" if hidden else _source(inventory, int(slices[0]))
        raise no_match(labels.image_ids, str(options.files.labels), path)
    return match


def _source(inventory: Inventory, place: int) -> bytes:
    """Return the path of the file at an index."""
    wanted = np.zeros(inventory.starts[-1], np.bool_)
    wanted[place] = True
    (found,) = (table["source"][0].as_py() for _, table in inventory.read(wanted, ["source"]))
    return bytes(found)


def _hashed(ids: pa.ChunkedArray, inventory: Inventory, options: Options) -> NDArray[np.uint64]:
    """Return the keys of label ids that are SOP Instance UIDs, hashed as in the inventory."""
    key = find_inventory_key(inventory, options)
    parts: list[NDArray[np.uint64]] = []
    for first in range(0, len(ids), _AT_A_TIME):
        texts = plain_ids(ids[first : first + _AT_A_TIME]).to_pylist()
        uids = [replace_uid(key, text, options.labels.image_id) for text in texts]
        parts.append(image_keys(pa.array(uids, pa.string())))
    return np.concatenate(parts)
