"""Tables and facts of a card, from the index, the manifest and the rejects."""

import csv
import io
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from markupsafe import Markup
from rich.filesize import decimal

from beam_pipeline.dicom.acquisition import ABSENT, OTHER, OTHERS
from beam_pipeline.dicom.header import TRANSFER_SYNTAXES
from beam_pipeline.dicom.hounsfield import PixelEncoding
from beam_pipeline.options import Options, RunOptions
from beam_pipeline.progress import describe_time
from beam_pipeline.shards.unfinished import Reject
from headct.declarations import Mark
from headct.layout import ID_COLUMNS, REJECT_COLUMNS, label_column
from headct.page import Table
from headct.reasons import advice_for
from headct.windows import FROM_FILE, PRESETS

Facts = list[tuple[str, Any]]
Manifest = Mapping[str, Any]
# Caption, heading, unit, and number per kind.
_Kinds = tuple[str, str, str, list[tuple[Any, int]]]

NO_LABEL = "no label"
LISTED = "rejects.jsonl has them all."
_TEXTS = ["split", *ID_COLUMNS, "transfer_syntax", "repair"]
_NUMBERS = ["position_z", "rows", "columns", "row_spacing"]
_NAMED_COLUMNS = 8  # with more labels, columns have numbers
_MOST_ROWS = 12  # limit of a table of sizes, distances or encodings
# Paths may name people and computers: the command has shell variables instead of paths.
_VARIABLES = {
    "input": ("input", "$INPUT"),
    "labels": ("labels", "$LABELS"),
    "folds_from": ("folds_from", "$FOLDS_FROM"),
    "files": ("files", "$FILES"),
    "identifier_key_check": ("identifier_key_file", "$KEY_FILE"),
}


def read_index(index: BinaryIO, labels: Sequence[str]) -> pd.DataFrame:
    """Return the columns of an index that the tables need; texts are categories."""
    columns = [*_TEXTS, *_NUMBERS, *map(label_column, labels)]
    frame: pd.DataFrame = pq.read_table(index, columns=columns, read_dictionary=_TEXTS).to_pandas()
    return frame


def contents(
    manifest: Manifest,
    frame: pd.DataFrame,
    rejects: Sequence[Reject],
    encodings: Iterable[PixelEncoding | None],
) -> dict[str, Any]:
    """Return the tables and facts of the card's template.

    Args:
        manifest: the directory's manifest.
        frame: its index, from `read_index`.
        rejects: one row per rejected or excluded file.
        encodings: of the slices that were read again; None for unread ones.
    """
    return {
        **_contents(manifest, frame, rejects, encodings),
        "throughput": throughput(manifest),
        "origin": [
            ("digest", Markup("<code>{}</code>").format(manifest["digest"])),
            ("created", manifest["created"]),
            *manifest["software"].items(),
        ],
    }


def inspection(summary: Manifest, files: pd.DataFrame) -> dict[str, Any]:
    """Return the tables and facts of an inspection's template.

    Args:
        summary: what a run would write, in the form of a manifest.
        files: one row per file.
    """
    labels = [*map(label_column, summary["labels"])]
    written = files[files["outcome"] == "written"].astype(dict.fromkeys(labels, np.int8))
    for name in written.select_dtypes("category"):
        written[name] = written[name].cat.remove_unused_categories()
    named = files[files["reason"] != ""].sort_values("source").drop_duplicates("reason")
    rejects = [
        {name: str(row[name]) for name in REJECT_COLUMNS} for row in named.to_dict("records")
    ]
    estimate = summary["estimate"]
    return {
        **_contents(summary, written, rejects, []),
        "estimate": [
            ("size of the shards", f"about {decimal(estimate['bytes'])}"),
            ("time", f"about {describe_time(estimate['seconds'])} on {estimate['workers']} cores"),
            ("headers", f"{describe_time(estimate['header_seconds'])}, measured"),
            ("a slice", f"{1000 * estimate['cpu_seconds_a_slice']:.1f} ms of a core, measured"),
        ],
    }


def _contents(
    manifest: Manifest,
    frame: pd.DataFrame,
    rejects: Sequence[Reject],
    encodings: Iterable[PixelEncoding | None],
) -> dict[str, Any]:
    """Return the tables and facts that a card and an inspection share."""
    labels, counts, splits = manifest["labels"], manifest["counts"], manifest["splits"]
    values = frame[[*map(label_column, labels)]].set_axis([*labels], axis=1)
    known = values.ne(-1).all(axis=1) if labels else pd.Series(False, frame.index)
    positive = values[known] == 1
    labeled = len(positive) > 0
    lacking = {
        label: [name for name, split in splits.items() if not split["label_counts"][label]]
        for label in (labels if labeled else ())
    }
    listed = "preprocess lists them all in rejects.jsonl." if "estimate" in manifest else LISTED
    return {
        "labeled": labeled,
        "headline": _headline(manifest, frame),
        "rejects": [*reject_tables(counts, rejects, listed)],
        "absent": [label for label, names in lacking.items() if len(names) == len(splits)],
        "missing": [pair for pair in lacking.items() if 0 < len(pair[1]) < len(splits)],
        "labels": [_label_table(positive, frame), _pair_table(positive)] if labeled else [],
        "splits": [_split_table(manifest, frame), *([_fold_table(manifest)] if labeled else ())],
        "geometry": _geometry(manifest, frame),
        "kinds": [
            *_count_tables(_acquisition(manifest)),
            *_count_tables(_kinds(frame, encodings)),
        ],
        "identical": _identical_pixels(manifest),
        "options": [
            (name, ("given" if value else "none") if name in _VARIABLES else _text(value) or "none")
            for name, value in manifest["options"].items()
            if name != "identifier_key_check"
        ],
        "command": command(manifest),
    }


# ---- Numbers as text


def count(number: int) -> str:
    """Return a whole number with separators: 752,803."""
    return f"{number:,}"


def percent(share: float) -> str:
    """Return a share, with two significant digits if small: 14 %, 0.42 %."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.2g} %"


def with_minus(text: str) -> str:
    """Return a text with hyphens replaced by minus signs."""
    return text.replace("-", "\N{MINUS SIGN}")


def _spread(numbers: "pd.Series[Any]", unit: str = "") -> str:
    """Return median, quartiles and range of numbers."""
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return "unknown"
    least, lower, median, upper, most = np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1])
    if least == most:
        return f"{median:.4g}{unit}, all the same"
    half = "" if lower == upper else f"half of them {lower:.4g} to {upper:.4g}, "
    return f"median {median:.4g}{unit} ({half}all {least:.4g} to {most:.4g})"


def _columns(*headings: str, text: tuple[int, ...] = ()) -> list[tuple[str, str]]:
    """Return columns of numbers; the first column and the given columns hold text."""
    return [
        (heading, "text" if number in (0, *text) else "number")
        for number, heading in enumerate(headings)
    ]


# ---- Files and the run


def _headline(manifest: Manifest, frame: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return the figures at the top of the card: name, value, detail."""
    counts = manifest["counts"]
    shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
    skipped = counts.get("unlabeled_skipped", 0)  # older versions skipped no files
    without_id = counts.get("without_patient_id", {}).get("studies", 0)
    studies = f"{count(frame['study_id'].nunique())} studies"
    studies += f"; {count(without_id)} without PatientID, each for a patient" if without_id else ""
    repairs: dict[str, int] = counts.get("repaired", {})
    written, rejected, seen = (counts[name] for name in ("written", "rejected", "files_seen"))
    unlabeled = f"; {count(skipped)} without a label skipped" if skipped else ""
    not_listed = counts.get("not_listed", 0)
    unlabeled += f"; {count(not_listed)} others not in --files" if not_listed else ""
    excluded = counts.get("excluded", 0)  # older versions rejected these files
    unwanted = f"; {count(excluded)} excluded as not wanted" if excluded else ""
    if others := counts.get("not_sampled", 0):
        unlabeled += f"; {count(others)} of patients who are not in the sample"
    used = f"{percent(written / max(seen, 1))} of the files; {count(counts['resized'])} resized"
    patients, size = frame["patient_id"].nunique(), decimal(sum(shard["bytes"] for shard in shards))
    slices, repaired = "slices written", sum(repairs.values())
    listed = ", ".join(f"{name} {count(n)}" for name, n in repairs.items())
    fourth = ("repaired", count(repaired), listed or "no badly encoded files")
    if estimate := manifest.get("estimate"):  # of an inspection
        slices, size = "slices to write", f"about {size}"
        cores = f"about, on {estimate['workers']} cores"
        fourth = ("time", describe_time(estimate["seconds"]), cores)
    return [
        ("files seen", count(seen), f"in the input{unlabeled}"),
        (slices, count(written), used),
        fourth,
        ("rejected", count(rejected), f"{percent(rejected / max(seen, 1))} of the files{unwanted}"),
        ("patients", count(patients), studies),
        ("shards", count(len(shards)), size),
    ]


def reject_tables(
    counts: Mapping[str, Any],
    rejects: Sequence[Reject],
    listed: str = LISTED,
) -> Iterator[Table]:
    """Yield tables of rejected and excluded files, unless there are none.

    A table has one row per reason, with an example and advice.

    Args:
        counts: the manifest's counts; those of earlier versions have no excluded files.
        rejects: one row per rejected or excluded file.
        listed: sentence on where all are listed.
    """
    examples = {row["reason"]: row for row in sorted(rejects, key=lambda row: row["source"])[::-1]}
    columns = _columns(
        "reason", "files", "of all", "example", "detail", "what to do", text=(3, 4, 5)
    )
    for what, meaning in ("rejected", ""), ("excluded", "They are sound, but not wanted. "):
        by_reason = counts.get(f"{what}_by_reason", {}).items()
        rows: list[list[Any]] = []
        for reason, number in sorted(by_reason, key=lambda pair: (-pair[1], pair[0])):
            example = examples.get(reason, {"source": "", "detail": ""})
            source = Markup("<code>{}</code>").format(example["source"])
            rows.append([reason, count(number), percent(number / counts["files_seen"]), source])
            rows[-1] += [example["detail"], advice_for(reason)]
        if rows:
            note = meaning + listed
            yield Table(f"Files that were {what}", columns, rows, note=note)


def _identical_pixels(manifest: Manifest) -> Facts:
    counts, policy = manifest["counts"]["identical_pixels"], manifest["options"]["leak_check"]
    meaning = {
        "join": "patients who share pixels are kept in one fold",
        "report": "only counted: patients who share pixels may be in different folds",
        "off": "not looked for",
    }
    return [
        ("leak check", f"{policy}: {meaning.get(policy, '')}"),
        ("groups of identical pixels", count(counts["groups"])),
        ("slices in them", count(counts["slices"])),
        ("groups across patients", count(counts["groups_across_patients"])),
        ("groups with labels that differ", count(counts["groups_with_conflicting_labels"])),
    ]


def throughput(manifest: Manifest) -> Facts:
    """Return runner, start and duration of the run, if recorded in the manifest."""
    run: Any = manifest.get("run")
    try:
        duration = str(timedelta(seconds=round(run["seconds"])))
        facts: Facts = [("runner", run["runner"]), ("started", run["started"])]
        if run["starts"] > 1:
            duration += f" from the first of {run['starts']} starts, pauses included"
            return [*facts, ("wall time", duration)]
        rate = manifest["counts"]["files_seen"] / max(run["seconds"], 0.1)
    except (KeyError, TypeError, ValueError, OverflowError):
        return [("run", "not recorded")]
    return [*facts, ("wall time", duration), ("files per second", f"{rate:,.3g}")]


def command(manifest: Manifest) -> str:
    """Return the command that reproduces the directory, without options at their default."""
    words = ["python -m beam_pipeline", '--output "$OUTPUT"']
    defaults = Options.of(input="", output="").recorded()
    repeated = {k for k, field in Options.fields().items() if Mark.REPEATED in field.metadata}
    for name, value in manifest["options"].items():
        if value == defaults.get(name) or value in (None, []):
            continue
        if name in _VARIABLES:
            words.append('--{} "{}"'.format(*_VARIABLES[name]))
        elif name in repeated:
            words += [f"--{name} {shlex.quote(each)}" for each in value]
        else:
            words.append(f"--{name}" + f" {shlex.quote(_text(value))}" * (value is not True))
    counts = manifest["counts"]
    wanted = counts["files_seen"] - counts.get("excluded", 0)
    rejected = counts["rejected"] / wanted
    if rejected > RunOptions().max_reject_fraction:
        words.append(f"--max_reject_fraction {math.ceil(rejected * 100) / 100:g}")
    return " ".join(words)


def _text(value: Any) -> str:
    """Return a recorded option as the command line takes it."""
    if isinstance(value, list):  # names with a comma are quoted as in CSV
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(map(_text, value))
        return text.getvalue()
    if isinstance(value, dict):
        name, center, width = value["name"], value["center"], value["width"]
        if center is None:
            return FROM_FILE
        return str(name) if PRESETS.get(name) == (center, width) else f"{name}:{center}:{width}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


# ---- Labels and splits


def _label_table(positive: pd.DataFrame, frame: pd.DataFrame) -> Table:
    patients = frame["patient_id"].nunique()
    ids = frame.loc[positive.index, ["study_id", "patient_id"]]
    bar = Markup(
        '<span class="share"><span class="bar" aria-hidden="true">'
        '<span style="width: {:.1f}%"></span></span> {}</span>'
    )
    rows: list[list[Any]] = []
    for label, slices in [*positive.items(), (NO_LABEL, ~positive.any(axis=1))]:
        share = slices.mean()
        studies, with_label = ids[slices].nunique()
        people = f"{count(with_label)} ({percent(with_label / patients)})"
        rows.append(
            [label, count(int(slices.sum())), bar.format(100 * share, percent(share))]
            + (["", ""] if label == NO_LABEL else [count(studies), people])
        )
    columns = _columns("label", "slices", "share of slices", "studies", "patients", text=(2,))
    return Table("Slices with each label", columns, rows, note="A slice may have several labels.")


def _pair_table(positive: pd.DataFrame) -> Table:
    labels = [*positive]
    heat = Markup('<span class="heat" style="--share: {:.0f}%">{} <small>{}</small></span>')
    numbered = len(labels) > _NAMED_COLUMNS
    rows: list[list[Any]] = []
    for number, label in enumerate(labels):
        both = positive[positive[label]].sum()
        shares = both / max(both[label], 1)
        cells = [heat.format(100 * shares[o], count(both[o]), percent(shares[o])) for o in labels]
        cells[number] = Markup("<strong>{}</strong>").format(count(both[label]))
        rows.append([f"{number + 1} {label}" if numbered else label, *cells])
    names = [str(number + 1) for number in range(len(labels))] if numbered else labels
    note = "The percentage, and the shade, is the share of the row's label."
    note += " Columns have the numbers of the rows." * numbered
    columns = _columns("of the slices with", *names)
    return Table("Slices that have both labels", columns, rows, note=note)


def _fold_table(manifest: Manifest) -> Table:
    """Return slices per label and split, with the deviation from the share of all slices."""
    splits, labels = manifest["splits"], manifest["labels"]
    examples = sum(split["examples"] for split in splits.values())
    rows: list[list[Any]] = []
    for label in labels:
        total = sum(split["label_counts"][label] for split in splits.values())
        cells: list[Any] = [label]
        for split in splits.values():
            number, expected = split["label_counts"][label], total * split["examples"] / examples
            cells.append(count(number))
            if expected:
                off = 100 * (number / expected - 1)
                deviation = with_minus(f"{off:+.0f} %" if abs(off) >= 10 else f"{off:+.1f} %")
                cells[-1] += Markup(" <small>{}</small>").format(deviation)
        rows.append([*cells, count(total)])
    shards = [_most_off(split["shards"], labels) for split in splits.values()]
    note = (
        "The percentage is the deviation of the label's share in the split from its share in all "
        "slices. Patients are not divided, so a rare label cannot be quite even. The last row has "
        "the slices that a shard has more or fewer than the split's share, for the shard and label "
        "that differ most: below 1 is as even as whole slices can be."
    )
    columns = _columns("label", *splits, "all")
    totals = [["a shard is off by", *shards, ""]]
    return Table("Slices with each label, by split", columns, rows, totals, note)


def _most_off(shards: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> str:
    sizes = np.array([[shard["examples"]] for shard in shards])
    counts = np.array([[shard["label_counts"][label] for label in labels] for shard in shards])
    off = np.abs(counts - sizes * counts.sum(axis=0) / max(sizes.sum(), 1))
    return f"{off.max():.1f}"


def _split_table(manifest: Manifest, frame: pd.DataFrame) -> Table:
    """Return the content of each split."""
    by_split = frame.groupby("split", observed=True)
    splits = by_split[[*ID_COLUMNS]].nunique().assign(slices=by_split.size())
    splits.columns = ["patients", "studies", "series", "slices"]
    splits = splits.set_axis(splits.index.astype(str)).reindex([*manifest["splits"]], fill_value=0)
    shards = [split["shards"] for split in manifest["splits"].values()]
    splits["shards"] = [len(own) for own in shards]
    splits["size"] = [sum(shard["bytes"] for shard in own) for own in shards]
    splits.loc["all"] = splits.sum()
    rows: list[list[Any]] = [
        [name, *map(count, map(int, numbers)), decimal(int(size))]
        for name, *numbers, size in splits.itertuples(name=None)
    ]
    totals = rows.pop()
    return Table("Splits", _columns("split", *splits), rows, [totals] if len(rows) > 1 else ())


# ---- Geometry and encodings


def _geometry(manifest: Manifest, frame: pd.DataFrame) -> Facts:
    image, resized = manifest["image"], count(manifest["counts"]["resized"])
    return [
        ("slices per study", _spread(frame["study_id"].value_counts())),
        ("distance of slices", f"{_spread(_distances(frame), ' mm')}; each series' median"),
        ("pixel spacing", f"{_spread(frame['row_spacing'], ' mm')}; between rows of the images"),
        (
            "stored images",
            f"{image['height']} x {image['width']}, {image['channels']} channels of "
            f"{image['dtype']}; {resized} were resized",
        ),
    ]


def _distances(frame: pd.DataFrame) -> "pd.Series[float]":
    """Return the median distance between neighboring slices per series with neighbors, mm."""
    known = frame[["series_id", "position_z"]].dropna().sort_values(["series_id", "position_z"])
    distances = known.groupby("series_id", observed=True)["position_z"].diff()
    # Slices at one position are a second reconstruction or a copy, not neighbors.
    neighbors = known.assign(distance=distances)[distances > 0]
    return neighbors.groupby("series_id", observed=True)["distance"].median()


def _acquisition(manifest: Manifest) -> Iterator[_Kinds]:
    """Yield the values of the manifest's `acquisition`; earlier versions have none."""
    others = [*manifest.get("not_ct", {}).items()]  # of an inspection
    yield "Images of other modalities", "kind", "files", others
    for name, caption in (
        ("orientation", "Orientations"),
        ("body_part", "Body parts"),
        ("kernel", "Convolution kernels"),
        ("slice_thickness", "Slice thicknesses"),
        ("scanner", "Scanners"),
    ):
        values = manifest.get("acquisition", {}).get(name, {})
        unit = " mm" if name == "slice_thickness" else ""
        named = [
            (value if value in (ABSENT, OTHER, OTHERS) else f"{value}{unit}", number)
            for value, number in values.items()
        ]
        yield caption, name.replace("_", " "), "slices", named


def _kinds(frame: pd.DataFrame, encodings: Iterable[PixelEncoding | None]) -> Iterator[_Kinds]:
    matrices: Any = frame.value_counts(["rows", "columns"]).items()
    syntaxes = frame["transfer_syntax"].value_counts().items()
    distances = _distances(frame).round(1).value_counts().items()
    known = {uid: name for uid, (name, _) in TRANSFER_SYNTAXES.items()}
    named = [(f"{known.get(str(uid), uid)} ({uid})", number) for uid, number in syntaxes]
    sizes = [(f"{height} x {width}", number) for (height, width), number in matrices]
    rounded = [(f"{distance:g} mm", number) for distance, number in distances]
    described = Counter(_describe_encoding(encoding) for encoding in encodings if encoding)
    yield "Matrix sizes of the files", "rows x columns", "slices", sizes
    yield "Transfer syntaxes of the files", "transfer syntax", "slices", named
    yield "Distances of slices", "distance", "series", rounded
    yield "Pixel encodings", "encoding", "slices looked at", described.most_common()


def _count_tables(counted: Iterable[_Kinds]) -> Iterator[Table]:
    for caption, heading, unit, kinds in counted:
        total = sum(number for _, number in kinds)
        if rest := kinds[_MOST_ROWS:]:
            others = (f"{len(rest)} others", sum(number for _, number in rest))
            kinds = [*kinds[:_MOST_ROWS], others]
        rows = [[kind, count(number), percent(number / total)] for kind, number in kinds]
        if rows:
            yield Table(caption, _columns(heading, unit, "share"), rows)


def _describe_encoding(encoding: PixelEncoding) -> str:
    padding = ""
    if encoding.padding is not None:
        low, high = encoding.padding
        padding = f", padding {low}" + (f" to {high}" if high != low else "")
    return with_minus(
        f"{encoding.bits_stored} of {encoding.bits_allocated} bits, "
        f"{'signed' if encoding.signed else 'unsigned'}, "
        f"slope {encoding.slope:g}, intercept {encoding.intercept:g}{padding}"
    )
