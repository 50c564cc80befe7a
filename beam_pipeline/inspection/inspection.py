"""Inspection of an input by the steps of a run, without shards: a row per file, and a summary."""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import StringIO
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console

from beam_pipeline.card.card import render_inspection
from beam_pipeline.inspection.files import WRITTEN, describe_files
from beam_pipeline.options import Options
from beam_pipeline.planning.inventory import ACQUISITION, inspect_part, list_parts
from beam_pipeline.planning.join_labels import JoinedFiles, join_labels
from beam_pipeline.planning.output_checks import check_output_is_not_read
from beam_pipeline.planning.plan_shards import list_rejects, make_plan, sample_patients
from beam_pipeline.progress import Display, show_plan
from beam_pipeline.run import check_input
from beam_pipeline.run_pool import open_pool
from beam_pipeline.shards.manifest import build_manifest, judge_rejects
from beam_pipeline.shards.unfinished import ShardResult, Unfinished
from beam_pipeline.shards.writer import Measured, measure_slices
from beam_pipeline.workers import start_server
from headct.errors import UsageError
from headct.layout import ID_COLUMNS, ShardFile, label_column
from headct.reasons import Reason
from headct.stores import InputFiles

_MEASURED = 32  # slices


@dataclass(frozen=True, eq=False)
class Inspection:
    """The expected result of a run; `print` shows the counts.

    Attributes:
        files: a pandas.DataFrame with one row per file, in the order of the input:
            source: the file, relative to the input
            image_id, patient_id, study_id, series_id: as the run writes them; absent if unknown
            split, label_LABEL: of slices to write
            position_z, row_spacing, column_spacing, rows, columns, transfer_syntax, resized: as
                in index.parquet
            outcome: written, rejected, excluded, skipped (no label) or not_sampled
            reason, detail: why a file is rejected or excluded, as in rejects.jsonl
            size: of the file, bytes
            orientation, body_part, kernel, slice_thickness (mm), scanner: absent if unknown
        summary: JSON values. `counts`, `splits`, `labels`, `acquisition`, `notes` and others are
            as in the run's manifest.json, if no pixels are faulty; sizes of shards are estimates.
            `input`: numbers of files, and of the patients, studies and series of valid slices.
            `not_ct`: number of images per kind. `refusal`: why the run would fail, or None.
            `estimate`: bytes of the shards, seconds of the run, and what was measured for that.
    """

    files: pd.DataFrame
    summary: dict[str, Any]

    def __repr__(self) -> str:
        text = StringIO()
        show_plan(Console(file=text, width=100), self.summary)
        return text.getvalue().rstrip()

    def page(self) -> str:
        """Return an HTML page with the summary, which needs no other file."""
        return render_inspection(self.summary, self.files)


def inspect_input(options: Options, console: Console) -> Inspection:
    """Read the headers of an input, and plan its shards as a run does, in a temporary folder.

    Args:
        options: options of the run; their output has no effect.
        console: to show the progress on.

    Raises:
        UsageError: the input has no files, no label matches, or patients cannot be split.
        StoreError: a store fails.
    """
    with tempfile.TemporaryDirectory(prefix="headct-inspect-") as folder:
        options = options.changed(output=folder)
        _check_folder(options)
        labels, listed = check_input(options)
        unfinished = Unfinished(options.files.folder)
        if labels is not None:
            labels.keep(unfinished)
        if listed is not None:
            listed.keep(unfinished)
        del labels, listed
        start_server(options.files.input)
        began = time.monotonic()
        with Display(console, unfinished, writes=False) as display, display.looking():
            inspect = partial(inspect_part, options=options)
            parts = range(sum(1 for _ in list_parts(options)))
            for _ in open_pool(inspect, options).map(parts):
                pass
        seconds = time.monotonic() - began
        return _plan(sample_patients(join_labels(len(parts), options), options), options, seconds)


def _check_folder(options: Options) -> None:
    files = options.files
    try:
        input_files = InputFiles.parse(files.input, files.storage_patience)
        check_output_is_not_read(input_files, files.output)
    except UsageError as error:
        if not str(error).startswith("output"):
            raise
        raise UsageError(
            f"the temporary folder {files.output} lies in the input {files.input}; set TMPDIR to "
            "a folder outside of it"
        ) from None


def _plan(joined: JoinedFiles, options: Options, seconds: float) -> Inspection:
    """Plan the shards, and return the inspection; `seconds` is the time of the headers."""
    rejects = list_rejects(joined, options)
    plan, dealt = make_plan(joined, options)
    files = describe_files(joined, dealt, options)
    measured = _measure(joined, files, options)
    written = files[files["outcome"] == WRITTEN]
    number = max(measured.slices, 1)
    a_slice, cpu = measured.bytes / number, measured.cpu_seconds / number
    patients = written.groupby("split", observed=True)["patient_id"].nunique()
    results = [*_results(joined, dealt, a_slice)]
    manifest = build_manifest(
        plan, options, results, {str(k): int(v) for k, v in patients.items()}, rejects
    )
    counts = manifest["counts"] | {"resized": int(written["resized"].sum())}
    del counts["repaired"]  # decided by pixels
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            del shard["sha256"]
    valid = files[files["series_id"].notna()]
    kinds = files.loc[files["reason"] == Reason.NOT_CT.value, "detail"]
    workers = min(options.run.workers, os.cpu_count() or 1)
    summary = manifest | {
        "counts": counts,
        "input": {
            "files": len(files),
            **{
                noun: int(valid[column].nunique())
                for noun, column in zip(("patients", "studies", "series"), ID_COLUMNS, strict=True)
            },
        },
        "not_ct": {
            str(kind) or "unknown": int(number) for kind, number in kinds.value_counts().items()
        },
        "refusal": _refusal(counts, options.run.max_reject_fraction),
        "estimate": {
            "bytes": round(a_slice * plan.slices),
            "seconds": round(seconds + cpu * plan.slices / workers, 1),
            "workers": workers,
            "header_seconds": round(seconds, 1),
            "slices_measured": measured.slices,
            "cpu_seconds_a_slice": round(cpu, 5),
        },
    }
    return Inspection(files, summary)


def _refusal(counts: Mapping[str, Any], allowed: float) -> str | None:
    """Return why `check_rejects` would refuse a run, or None."""
    seen, rejected = counts["files_seen"], counts["rejected"]
    too_many, none_left = judge_rejects(counts, seen, allowed)
    if too_many:
        wanted, most = seen - counts["excluded"], f"--max_reject_fraction {allowed:g} allows"
        return f"{rejected} of {wanted} files would be rejected, more than {most}"
    return f"none of {seen} files can be used" if none_left else None


def _results(
    joined: JoinedFiles, dealt: Mapping[ShardFile, NDArray[np.int64]], a_slice: float
) -> Iterator[ShardResult]:
    """Yield a result per planned shard; sizes are estimates by the mean size of a slice."""
    texts = joined.inventory.texts[ACQUISITION]
    acquisitions = joined.slices[ACQUISITION].to_numpy()
    for shard, rows in dealt.items():
        used, numbers = np.unique(acquisitions[rows], return_counts=True)
        positive = joined.labels[rows].sum(axis=0, dtype=np.int64).tolist()
        yield ShardResult(
            split=shard.split,
            file=shard.name,
            bytes=round(a_slice * len(rows)),
            sha256="",
            version="",
            plan="",
            examples=len(rows),
            label_counts=dict(zip(joined.names, positive, strict=True)),
            repaired={},
            resized=0,
            rejects=[],
            acquisitions={
                texts[code]: number
                for code, number in zip(used.tolist(), numbers.tolist(), strict=True)
            },
        )


def _measure(joined: JoinedFiles, files: pd.DataFrame, options: Options) -> Measured:
    """Convert a few slices, spread evenly over the series and within each."""
    slices, measured = joined.slices, Measured()
    order = slices.index.to_numpy()[np.argsort(slices["series_id"].to_numpy(), kind="stable")]
    places = (np.arange(_MEASURED) + 0.5) * len(order) / _MEASURED
    chosen = np.zeros(len(files), np.bool_)
    if len(order):
        chosen[order[np.unique(places.astype(np.int64))]] = True
    read = ("source", "size", "version", "header", ACQUISITION)
    parts = joined.inventory.read(chosen, read)
    described = files.loc[chosen, ["image_id", *ID_COLUMNS]].to_dict("records")
    rest = dict.fromkeys(map(label_column, joined.names), 0) | {"number": 0}
    found = chain.from_iterable(rows.to_pylist() for _, rows in parts)
    rows = [row | ids | rest for row, ids in zip(found, described, strict=True)]
    tasks = [rows[first :: options.run.workers] for first in range(options.run.workers)]
    for each in open_pool(partial(measure_slices, options=options), options).map(
        filter(None, tasks)
    ):
        measured += each
    return measured
