"""Writer of report.html: the data card of a shard directory, or the page of a refused run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from beam_pipeline.card import charts, count_tables, facts
from beam_pipeline.card.totals import Choice, Totals, add_up, choose, rows_at
from beam_pipeline.card.views import Views, ViewTask, view_in_process
from beam_pipeline.images.windows import Window
from beam_pipeline.options import ImageId
from beam_pipeline.planning.locate_sources import locate_sources
from beam_pipeline.shards.rejects import Reject, count_reasons
from headct.errors import StoreError
from headct.layout import CARD, count_input
from headct.page import page_templates
from headct.stores import Folder, InputFiles


def write_card(
    folder: Folder,
    index: BinaryIO,
    manifest: dict[str, Any],
    rejects: Sequence[Reject],
    source: InputFiles | None,
    decode_timeout: float,
) -> None:
    """Write the data card of a shard directory.

    Omits files of the input that are no longer readable.

    Args:
        folder: the directory.
        index: the directory's index.parquet.
        manifest: the directory's manifest, not necessarily written yet.
        rejects: one row per rejected file.
        source: the run's input; None if it is gone.
        decode_timeout: timeout of a slice's decoder, seconds.

    Raises:
        UsageError: a shard is missing or damaged.
        OutputError: the card cannot be written.
        StoreError: the folder's store fails.
    """
    with pq.ParquetFile(index) as opened:
        totals = add_up(opened, manifest["labels"])
        choice = choose(totals, manifest["labels"], manifest["options"]["seed"])
        rows = rows_at(opened, choice.rows)
    task = _task(folder, manifest, choice, rows, source)
    slices = dict(zip(rows, view_in_process(task, decode_timeout), strict=True))
    values = _contents(manifest, rejects, totals, choice, slices)
    folder.write(CARD, _fill("card.html.jinja", values).encode())


def _task(
    folder: Folder,
    manifest: dict[str, Any],
    choice: Choice,
    rows: dict[int, dict[str, Any]],
    source: InputFiles | None,
) -> ViewTask:
    files: Sequence[bytes | None] = [None] * len(rows)
    if source is not None:
        try:
            files = locate_sources(
                source,
                [row["source"] for row in rows.values()],
                numbered=manifest["options"]["image_id"] == ImageId.ORDINAL,
                count=count_input(manifest["counts"]),
            )
        except (StoreError, ValueError):  # the card can show shards without the files
            source = None
    shown = {number for numbers in choice.examples.values() for number in numbers}
    return ViewTask(
        folder=folder.url,
        patience=folder.patience,
        windows=tuple(Window(**window) for window in manifest["windows"]),
        rows=tuple(rows.values()),
        pictured=tuple(number in shown for number in rows),
        files=tuple(files),
        source=source,
    )


def _contents(
    manifest: dict[str, Any],
    rejects: Sequence[Reject],
    totals: Totals,
    choice: Choice,
    slices: Mapping[int, Views],
) -> dict[str, Any]:
    """Return the values of the card's template."""
    labeled = totals.labeled > 0
    counts, split_tables = manifest["counts"], [count_tables.split_table(manifest, totals)]
    label_tables, absent = [], []
    if labeled:
        label_tables = [
            count_tables.label_table(manifest, totals),
            count_tables.co_occurrence_table(manifest, totals),
        ]
        split_tables += [count_tables.fold_table(manifest), count_tables.shard_table(manifest)]
        positives = zip(manifest["labels"], totals.positives, strict=True)
        absent = [label for label, rows in positives if not len(rows)]
    return {
        "manifest": manifest,
        "labeled": labeled,
        "headline": facts.headline(manifest, totals),
        "rejects": count_tables.reject_table(counts, rejects) if rejects else None,
        "absent": absent,
        "examples": choice.examples,
        "slices": slices,
        "charts": charts.value_charts(choice, slices, sum(counts["repaired"].values())),
        "labels": label_tables,
        "splits": split_tables,
        "missing": count_tables.missing_in_splits(manifest) if labeled else [],
        "geometry": facts.geometry(manifest, totals, slices.values()),
        "kinds": facts.kind_tables(totals, slices.values()),
        "identical": facts.identical_pixels(manifest),
        "throughput": facts.throughput(manifest),
        "origin": facts.origin(manifest),
        "options": facts.options(manifest),
        "command": facts.command(manifest),
    }


def render_refused(files_seen: int, rejects: Sequence[Reject]) -> str:
    """Return the page of a run that ended with too many rejected files."""
    counts = {"files_seen": files_seen, "rejected_by_reason": count_reasons(rejects)}
    return _fill(
        "refused.html.jinja",
        {
            "files_seen": files_seen,
            "rejected": len(rejects),
            "rejects": count_tables.reject_table(counts, rejects),
        },
    )


def _fill(template: str, values: dict[str, Any]) -> str:
    templates = page_templates(Path(__file__).parent)
    templates.filters |= {"count": count_tables.count, "minus": count_tables.with_minus}
    return templates.get_template(template).render(values)
