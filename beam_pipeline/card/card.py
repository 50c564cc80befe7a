"""The pages: report.html, the data card of a shard directory, and the page of a refused run."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from beam_pipeline.card import tables
from beam_pipeline.card.pictures import ViewTask, value_charts, view_in_process
from beam_pipeline.dicom.hounsfield import Repair
from beam_pipeline.options import ImageId, fill_in
from beam_pipeline.planning.inventory import locate_sources
from beam_pipeline.shards.manifest import count_rejects, read_rejects
from beam_pipeline.shards.output import find_manifest
from beam_pipeline.shards.unfinished import Reject
from headct.dataset_card import describe_directory
from headct.errors import StoreError, UsageError
from headct.layout import CARD, INDEX, MANIFEST, REJECTS, SCHEMA_VERSION, count_input, label_column
from headct.manifest import parse_manifest
from headct.page import page_templates
from headct.stores import Folder, InputFiles
from headct.windows import Window

INSPECTOR = "headct inspect"  # names the program in its page

# Limits of the files to read again, independent of the data set's size.
MOST_EXAMPLES = 16
SAMPLED = 20
_PER_LABEL = 2
_UNLABELED = 4
_PER_REPAIR = 4


def add_card(folder: Folder, decode_timeout: float, source: InputFiles | None = None) -> None:
    """Write the data card of a complete directory, and README.md and croissant.json if missing.

    Args:
        folder: the directory.
        decode_timeout: timeout of a slice's decoder, seconds.
        source: the run's input; None to look where the manifest says.

    Raises:
        UsageError: the directory is not complete, or a file in it is missing or damaged.
        OutputError: the card cannot be written.
        StoreError: the folder's store fails.
    """
    manifest = find_manifest(folder)
    if manifest is None:
        raise UsageError(f"{folder.url} is no finished shard directory")
    if manifest["schema_version"] != SCHEMA_VERSION:
        raise UsageError(f"{folder.url} is of schema version {manifest['schema_version']}")
    manifest["options"] = fill_in(manifest["options"])
    if source is None:
        with suppress(UsageError, StoreError):  # the input has moved
            source = InputFiles.parse(manifest["options"]["input"])
    write_card(folder, decode_timeout, source, manifest)
    with folder.open(INDEX) as index:
        columns = pq.read_schema(index).names
    checked = parse_manifest(folder.read(MANIFEST), f"{folder.url}/{MANIFEST}")
    for name, data in describe_directory(checked, columns).items():
        folder.add(name, data)  # users edit them


def write_card(
    folder: Folder, decode_timeout: float, source: InputFiles | None, manifest: dict[str, Any]
) -> None:
    """Write the data card of a complete shard directory; raises like `add_card`.

    Omits files of the input that are no longer readable, or all if `source` is None.
    """
    labels = manifest["labels"]
    try:
        rejects = read_rejects(folder)
        with folder.open(INDEX) as index:
            frame = tables.read_index(index, labels)
            choice = choose(frame, labels, manifest["options"]["seed"])
            numbers = pa.array(choice.rows, pa.int64())
            rows = ds.ParquetFileFormat().make_fragment(index).take(numbers).to_pylist()
    except (OSError, ValueError):
        raise UsageError(f"{folder.url}: {REJECTS} or {INDEX} is missing or damaged") from None
    pictured = {number for group in choice.examples.values() for number in group}
    task = ViewTask(
        folder=folder.url,
        patience=folder.patience,
        windows=tuple(Window(**window) for window in manifest["windows"]),
        rows=rows,
        pictured=[number in pictured for number in choice.rows],
        files=_locate(source, rows, manifest),
        source=source,
    )
    views = dict(zip(choice.rows, view_in_process(task, decode_timeout), strict=True))
    values = {
        "manifest": manifest,
        "examples": choice.examples,
        "slices": views,
        "charts": value_charts(
            [views[number] for number in choice.sample],
            [views[number] for number in choice.repaired],
            sum(manifest["counts"]["repaired"].values()),
        ),
        **tables.contents(manifest, frame, rejects, [view.encoding for view in views.values()]),
    }
    folder.write(CARD, _fill("card.html.jinja", values).encode())


def render_inspection(summary: dict[str, Any], files: pd.DataFrame) -> str:
    """Return the page of an inspection.

    Args:
        summary: what a run would write, in the form of a manifest.
        files: one row per file.
    """
    values = {"manifest": summary, "generator": INSPECTOR, **tables.inspection(summary, files)}
    return _fill("inspection.html.jinja", values)


def render_refused(files: int, rejects: Sequence[Reject]) -> str:
    """Return the page of a run that ended with too many rejected files.

    Args:
        files: number of files that are not excluded.
        rejects: one row per rejected or excluded file.
    """
    counts = count_rejects(rejects)
    counts["files_seen"] = files + counts["excluded"]
    values = {"files": files, "rejected": counts["rejected"]}
    values["rejects"] = [*tables.reject_tables(counts, rejects)]
    return _fill("refused.html.jinja", values)


def _fill(template: str, values: dict[str, Any]) -> str:
    templates = page_templates(Path(__file__).parent)
    templates.filters |= {"count": tables.count, "minus": tables.with_minus}
    return templates.get_template(template).render(values)


def _locate(
    source: InputFiles | None, rows: Sequence[dict[str, Any]], manifest: dict[str, Any]
) -> list[bytes | None]:
    """Return the rows' files as `locate_sources` does; the card can show shards without files."""
    if source is not None:
        try:
            return locate_sources(
                source,
                [row["source"] for row in rows],
                numbered=manifest["options"]["image_id"] == ImageId.ORDINAL,
                count=count_input(manifest["counts"]),
            )
        except (StoreError, ValueError):
            pass
    return [None] * len(rows)


@dataclass(frozen=True)
class Choice:
    """Slices to read again, as row numbers of the index."""

    examples: dict[str, list[int]]  # slices to show, per heading: a label or a repair
    sample: list[int]  # sample of all slices
    repaired: list[int]

    @property
    def rows(self) -> list[int]:
        """All rows, ascending."""
        shown = (row for rows in self.examples.values() for row in rows)
        return sorted({*shown, *self.sample, *self.repaired})


def choose(frame: pd.DataFrame, labels: Sequence[str], seed: int) -> Choice:
    """Return the slices that a card shows: the same slices for the same index and seed."""
    random = np.random.default_rng(seed)

    def pick(rows: Any, number: int) -> list[int]:
        chosen = random.choice(rows, min(number, len(rows)), replace=False)
        return [int(row) for row in np.sort(chosen)]

    repaired = {
        f"repair: {name}": pick(np.flatnonzero(frame["repair"] == name), _PER_REPAIR)
        for name in sorted({*frame["repair"].cat.categories} - {Repair.NONE.value})
    }
    groups = {label: np.flatnonzero(frame[label_column(label)] == 1) for label in labels}
    if labels:
        negative = (frame[[*map(label_column, labels)]] == 0).all(axis=1)
        groups[tables.NO_LABEL] = np.flatnonzero(negative)
    names = [name for name, rows in groups.items() if len(rows)][:MOST_EXAMPLES]
    examples: dict[str, list[int]] = {name: [] for name in names}  # in the order of the labels
    taken: list[int] = []
    # Rare labels first: their slices may have other labels too, and appear only once.
    for name in sorted(names, key=lambda name: (len(groups[name]), name)):
        free = groups[name][~np.isin(groups[name], taken)]
        number = min(_PER_LABEL, MOST_EXAMPLES // len(names))
        examples[name] = pick(free if len(free) else groups[name], number)
        taken += examples[name]
    if not names:
        examples["slices"] = pick(np.arange(len(frame)), _UNLABELED)
    return Choice(
        examples | {name: rows[:1] for name, rows in repaired.items()},
        sample=pick(np.arange(len(frame)), SAMPLED),
        repaired=[row for rows in repaired.values() for row in rows],
    )
