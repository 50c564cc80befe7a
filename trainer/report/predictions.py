"""Predictions of slices and scans: two tables, and a page with the scans by their probability."""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headct.errors import UsageError
from headct.layout import IMAGE_ID, POSITION, REJECTS, SERIES_ID, STUDY_ID
from headct.page import Table, page_templates
from headct.printable import hide_secrets
from headct.reasons import EXCLUSIONS, advice_for
from trainer.display import counted
from trainer.evaluation.predict import predict_rows
from trainer.files import full_disk_reported, new_folder
from trainer.options import PredictOptions
from trainer.report.plots import Picture
from trainer.report.slices import Chosen, draw_slices
from trainer.runs.ensemble import Ensemble
from trainer.runs.evaluation_setup import EvaluationSetup
from trainer.runs.run import Run
from trainer.runs.smoothing import Smoothing

SLICES, SCANS, PAGE = "slices.csv", "scans.csv", "report.html"
SOURCE, FOLDER, COUNT = "source", "folder", "slices"
ANY = "any"  # the label to order scans by, if the run has it
# Limits of the page; the other files have all rows.
_MOST_SCANS, _MOST_REJECTS = 1000, 100


def write_predictions(
    setup: EvaluationSetup, options: PredictOptions, rejects: pd.DataFrame | None = None
) -> None:
    """Predict a split, and write tables and a page into a new or empty folder.

    No file has a patient id.

    Args:
        setup: the run and the split.
        options: folder, number of pictures, and the DICOM files if shards were made of them.
        rejects: source, image_id, reason and detail of files that were not converted.

    Raises:
        UsageError: a shard is damaged.
    """
    names, display, output = setup.run.labels, setup.display, options.output
    slices, scans = summarize(add_sources(predict_rows(setup), setup), names)
    pictures = picture_scans(setup, slices, scans.head(options.pictures))
    page = render_page(setup, options.input or setup.shards.location, scans, rejects, pictures)
    with full_disk_reported(output), new_folder(output) as folder:
        for name, table in ((SLICES, slices), (SCANS, scans)):
            table.to_csv(folder / name, index=False, float_format="%.9g")
        if rejects is not None:
            rows = rejects.to_dict("records")
            text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
            (folder / REJECTS).write_text(text, encoding="utf-8")
        (folder / PAGE).write_text(page, encoding="utf-8")
    display.say(f"{counted(len(slices), 'slice')} of {counted(len(scans), 'scan')} predicted")
    for name in (SLICES, SCANS, *([REJECTS] if rejects is not None else []), PAGE):
        display.print_unwrapped(f"written: {output / name}")


def add_sources(frame: pd.DataFrame, setup: EvaluationSetup) -> pd.DataFrame:
    """Return the predictions with the path of each slice's file, if the shards' index has it."""
    try:
        sources = setup.shards.find(setup.split, frame[IMAGE_ID].tolist()).columns(SOURCE)
    except UsageError:  # shards of other software, or without an index
        return frame
    return frame.assign(**{SOURCE: sources[SOURCE].to_numpy()})


def summarize(frame: pd.DataFrame, names: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a table of slices and a table of scans, the scans with the highest probability first.

    A scan is a series. Scans are ordered by their highest probability of the label `any`, or of all
    labels without that label; slices in the order of their scans, then by position.

    Args:
        frame: `Predictions.frame`, perhaps with `source`.
        names: labels.

    Returns:
        slices: source, image_id, study_id, series_id, position_z, probability_LABEL, and
            label_LABEL of labeled slices.
        scans: folder (of the files with a `source`), study_id, series_id, slices (their number),
            maximum_LABEL, mean_LABEL, of a scan model pooled_LABEL, and slice_LABEL (source or
            image_id of the maximum).
    """
    has_source = SOURCE in frame
    named = SOURCE if has_source else IMAGE_ID
    columns = [*([SOURCE] if has_source else []), IMAGE_ID, STUDY_ID, SERIES_ID, POSITION]
    columns += [f"probability_{name}" for name in names]
    labels = [f"label_{name}" for name in names]
    columns += labels if (frame[labels] >= 0).any(axis=None) else []
    columns += [
        f"{kind}_{name}"
        for kind in ("alone", "pooled")
        for name in names
        if f"{kind}_{name}" in frame
    ]
    by = [STUDY_ID, SERIES_ID]
    slices = frame.sort_values([*by, POSITION, named], ignore_index=True)[columns]
    groups = slices.groupby(by, sort=False)
    scans = groups.size().rename(COUNT).reset_index()
    if has_source:
        scans.insert(0, FOLDER, groups[SOURCE].agg(common_folder).to_numpy())
    for name in names:
        predicted = groups[f"probability_{name}"]
        scans[f"maximum_{name}"] = predicted.max().to_numpy()
        scans[f"mean_{name}"] = predicted.mean().to_numpy()
        if f"pooled_{name}" in frame:
            scans[f"pooled_{name}"] = groups[f"pooled_{name}"].first().to_numpy()
        scans[f"slice_{name}"] = slices.loc[predicted.idxmax(), named].to_numpy()
    leading = [f"maximum_{name}" for name in ([ANY] if ANY in names else names)]
    order = (-scans[leading].max(axis=1)).argsort(kind="stable").to_numpy()
    rank = np.argsort(order)[groups.ngroup()]
    return slices.iloc[rank.argsort(kind="stable")], scans.iloc[order]


def common_folder(sources: pd.Series[str]) -> str:
    """Return the folder that all paths share; empty for the input itself."""
    folders = {f"/{posixpath.dirname(source)}" for source in sources}
    return posixpath.commonpath(folders).lstrip("/")


def leading_label(scan: Mapping[Hashable, Any], names: Sequence[str]) -> str:
    """Return the label by which a row of the scans is ordered."""
    return ANY if ANY in names else max(names, key=lambda name: float(scan[f"maximum_{name}"]))


def picture_scans(
    setup: EvaluationSetup, slices: pd.DataFrame, scans: pd.DataFrame
) -> list[Picture]:
    """Draw the slice with the highest probability of each scan; none without an index.

    Args:
        setup: the run and the split.
        slices: from `summarize`.
        scans: first rows from `summarize`.
    """
    names, chosen = setup.run.labels, []
    for rank, scan in enumerate(scans.to_dict("records"), 1):
        label = leading_label(scan, names)
        of_scan = (slices[STUDY_ID] == scan[STUDY_ID]) & (slices[SERIES_ID] == scan[SERIES_ID])
        own = slices[of_scan]
        image_id = own[IMAGE_ID].iloc[own[f"probability_{label}"].argmax()]
        said = f"{label} {scan[f'maximum_{label}']:.3f}"
        place = f" ({scan.get(FOLDER) or scan[SERIES_ID]})"
        chosen.append(Chosen(image_id, names.index(label), f"Rank {rank}:", said, place))
    try:
        return draw_slices(setup, chosen) if chosen else []
    except UsageError:  # as in `add_sources`
        return []


def render_page(
    setup: EvaluationSetup,
    source: str,
    scans: pd.DataFrame,
    rejects: pd.DataFrame | None,
    pictures: Sequence[Picture] = (),
) -> str:
    """Return the page: scans, files that were not used, and the origin of the predictions.

    Args:
        setup: the run and the split.
        source: location of the shards or DICOM files.
        scans: from `summarize`.
        rejects: as for `write_predictions`.
        pictures: of the first scans.
    """
    names, run, source = setup.run.labels, setup.run, hide_secrets(source)
    leading = ANY if ANY in names else ""
    others = [name for name in names if name != leading]
    rows: list[dict[str, Any]] = []
    for scan in scans.head(_MOST_SCANS).to_dict("records"):
        label = leading_label(scan, names)
        folder = scan.get(FOLDER, "")
        rows.append(
            {
                "top": scan[f"maximum_{label}"],
                "folder": folder,
                "series": scan[SERIES_ID],
                "slices": scan[COUNT],
                "slice": scan[f"slice_{label}"].removeprefix(f"{folder}/"),
                "mean": f"{scan[f'mean_{label}']:.3f}",
                "others": [f"{scan[f'maximum_{name}']:.3f}" for name in others],
            }
        )
    excluded = 0 if rejects is None else int(rejects["reason"].isin(EXCLUSIONS).sum())
    reasons, files = (None, None) if rejects is None else reject_tables(rejects)
    template = page_templates(Path(__file__).parent).get_template("predictions.html.jinja")
    return template.render(
        name=posixpath.basename(source.rstrip("/")) or source,
        split=setup.split.name,
        leading=leading,
        others=others,
        rows=rows,
        scans=len(scans),
        slices=int(scans[COUNT].sum()),
        excluded=excluded,
        rejected=0 if rejects is None else len(rejects) - excluded,
        reasons=reasons,
        files=files,
        images=pictures,
        provenance=[
            ("Input", source),
            ("Run", run_names(run)),
            ("Model", setup.model_name),
            ("Labels", ", ".join(names)),
            ("Calibration", "temperatures and biases" if setup.calibration.changes else "none"),
            ("Smoothing along z", _describe_smoothing(setup.smoothing)),
            ("Mirror images", "averaged" if setup.flip else "not used"),
            ("Written", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ],
    )


def _describe_smoothing(smoothing: Smoothing) -> str:
    if not smoothing.changes:
        return "none"
    return f"{smoothing.amount:.0%} of the mean over a width of {smoothing.width_mm:.1f} mm"


def run_names(run: Run) -> str:
    """Return the name of a run, or of an ensemble's runs and how their answers are averaged."""
    if not isinstance(run, Ensemble):
        return run.path.resolve().name
    weights = [f" ({weight:.2f})" if run.ensemble.weights else "" for weight in run.shares]
    named = "".join(map("{}{}, ".format, run.titles, weights))
    return f"{named}mean of {run.ensemble.mean} of {len(run.networks)} networks"


def reject_tables(rejects: pd.DataFrame) -> tuple[Table, Table]:
    """Return a table of reasons with their advice, and a table of the first files."""
    reasons = [
        [reason, "excluded" if reason in EXCLUSIONS else "rejected", count, advice_for(reason)]
        for reason, count in Counter(rejects["reason"]).most_common()
    ]
    columns = [("Reason", "text"), ("", "text"), ("Files", "number"), ("What to do", "text")]
    files = rejects.sort_values(["reason", SOURCE]).head(_MOST_REJECTS)
    named = files[[SOURCE, "reason", "detail"]].to_numpy().tolist()
    more = len(rejects) - len(files)
    note = f"{more} more are in {REJECTS}." if more else ""
    headings = [("File", "text"), ("Reason", "text"), ("Detail", "text")]
    return Table("Reasons", columns, reasons), Table("Files", headings, named, (), note)
