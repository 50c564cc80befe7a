"""The data card of a directory, made when all else of it but the manifest is there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from beam_pipeline.card.choice import Choice, choose, rows_at
from beam_pipeline.card.content import Content, Seen
from beam_pipeline.card.page import render
from beam_pipeline.card.sources import Sources
from beam_pipeline.card.totals import add_up
from beam_pipeline.card.views import Views, ViewTask, view_slices
from beam_pipeline.directory.rejects import Reject
from beam_pipeline.images.windows import Window
from beam_pipeline.workers import WorkerPool
from headct.errors import StoreError
from headct.layout import CARD
from headct.stores import Folder

_STORAGE_PATIENCE = 120.0  # seconds of waiting after which the input counts as gone


@dataclass(frozen=True)
class Card:
    """What a card is made of.

    Attributes:
        manifest: of the directory, as JSON values.
        rejects: one row per file that was not used.
        index: of the directory.
        sources: its input.
    """

    manifest: dict[str, Any]
    rejects: Sequence[Reject]
    index: BinaryIO
    sources: Sources


def write_card(card: Card, folder: Folder, decode_timeout: float) -> None:
    """Write a shard directory's card.

    A file of the input that cannot be read any more costs its pictures, no more.

    Args:
        card: what it is made of.
        folder: the directory.
        decode_timeout: seconds after which a slice's decoder counts as hung.

    Raises:
        UsageError: a shard is missing or damaged.
        OutputError: it cannot be written.
        StoreError: the folder's store fails.
    """
    labels, options = card.manifest["labels"], card.manifest["options"]
    with pq.ParquetFile(card.index) as index:
        totals = add_up(index, labels)
        choice = choose(totals, labels, options["seed"])
        rows = rows_at(index, choice.rows)
    task = _task(card, folder, choice, rows)
    views = dict(zip(choice.rows, _view(task, decode_timeout), strict=True))
    seen = {number: Seen(rows[number], views[number]) for number in choice.rows}
    content = Content(card.manifest, card.rejects, totals, choice, seen)
    folder.write(CARD, render(content).encode())


def _task(card: Card, folder: Folder, choice: Choice, rows: dict[int, dict[str, Any]]) -> ViewTask:
    wanted = tuple(rows[number] for number in choice.rows)
    shown = {example.row for example in choice.examples}
    return ViewTask(
        folder=folder.url,
        patience=folder.patience,
        windows=tuple(Window(**window) for window in card.manifest["windows"]),
        rows=wanted,
        pictured=tuple(number in shown for number in choice.rows),
        files=tuple(card.sources.find(wanted)),
        source=card.sources.input(),
    )


def _view(task: ViewTask, decode_timeout: float) -> list[Views]:
    """Look at the slices in a process of their own: a decoder may crash it, or never end."""
    pool = WorkerPool(view_slices, 1, decode_timeout, _STORAGE_PATIENCE, task.folder)
    try:
        (views,) = pool.map([task])
    except StoreError:
        if task.source is None:
            raise
        return _view(replace(task, source=None), decode_timeout)
    return views
