"""Single facts of a card: first figures, geometry, encodings, the run and its command."""

import csv
import io
import math
import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from pydicom.uid import UID
from rich.filesize import decimal

from beam_pipeline.card.count_tables import count, percent, with_minus
from beam_pipeline.card.totals import Totals
from beam_pipeline.card.views import Views
from beam_pipeline.dicom.hounsfield import PixelEncoding
from beam_pipeline.images.windows import FROM_FILE, PRESETS
from beam_pipeline.options import Options, RunOptions
from headct.page import Table

Facts = list[tuple[str, Any]]
Manifest = Mapping[str, Any]

_MOST_ROWS = 12  # limit of a table of sizes, distances or encodings
# Paths may name people and computers: the command has shell variables instead of paths.
_PATHS = {"input": "$INPUT", "labels": "$LABELS", "folds_from": "$FOLDS_FROM"}
_KEY_CHECK, _KEY_FILE, _OUTPUT = "identifier_key_check", "$KEY_FILE", "$OUTPUT"


def headline(manifest: Manifest, totals: Totals) -> list[tuple[str, str, str]]:
    """Return the figures at the top of the card: name, value, detail."""
    counts = manifest["counts"]
    shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
    skipped = counts.get("unlabeled_skipped", 0)  # older versions skipped no files
    without_id = counts.get("without_patient_id", {}).get("studies", 0)
    patients = f"{count(int(totals.splits['studies'].sum()))} studies"
    patients += f"; {count(without_id)} without PatientID, each for a patient" if without_id else ""
    repairs = ", ".join(f"{name} {count(n)}" for name, n in counts["repaired"].items())
    written, rejected, seen = (counts[name] for name in ("written", "rejected", "files_seen"))
    return [
        (
            "files seen",
            count(seen),
            "in the input" + (f"; {count(skipped)} without a label skipped" if skipped else ""),
        ),
        (
            "slices written",
            count(written),
            f"{percent(written / seen)} of the files; {count(counts['resized'])} resized",
        ),
        ("repaired", count(sum(counts["repaired"].values())), repairs or "no badly encoded files"),
        ("rejected", count(rejected), f"{percent(rejected / seen)} of the files"),
        ("patients", count(int(totals.splits["patients"].sum())), patients),
        ("shards", count(len(shards)), decimal(sum(shard["bytes"] for shard in shards))),
    ]


def geometry(manifest: Manifest, totals: Totals, slices: Collection[Views]) -> Facts:
    """Return the slices per study, slice distances and pixel spacing."""
    spacings = np.array([views.pixel_spacing[0] for views in slices if views.pixel_spacing])
    known = spacings[np.isfinite(spacings)]
    image = manifest["image"]
    return [
        ("slices per study", _spread(totals.slices_per_study)),
        ("distance of slices", f"{_spread(totals.slice_distances, ' mm')}; each series' median"),
        (
            "pixel spacing",
            f"{_spread(known, ' mm')}; between rows of the stored images, of "
            f"{len(known)} slices looked at",
        ),
        (
            "stored images",
            f"{image['height']} x {image['width']}, {image['channels']} channels of "
            f"{image['dtype']}; {count(manifest['counts']['resized'])} were resized",
        ),
    ]


def _spread(numbers: NDArray[Any], unit: str = "") -> str:
    """Return median, quartiles and range of numbers."""
    if not len(numbers):
        return "unknown"
    least, lower, median, upper, most = np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1])
    if least == most:
        return f"{median:.4g}{unit}, all the same"
    half = "" if lower == upper else f"half of them {lower:.4g} to {upper:.4g}, "
    return f"median {median:.4g}{unit} ({half}all {least:.4g} to {most:.4g})"


def kind_tables(totals: Totals, slices: Collection[Views]) -> list[Table]:
    """Return tables of matrix sizes, transfer syntaxes, slice distances and encodings."""
    syntaxes = [(f"{UID(uid).name} ({uid})", number) for uid, number in totals.transfer_syntaxes]
    rounded = Counter(totals.slice_distances.round(1).tolist())
    distances = sorted(rounded.items(), key=lambda pair: (-pair[1], pair[0]))
    encodings = Counter(
        _describe_encoding(views.encoding) for views in slices if views.encoding is not None
    )
    tables = [
        _kinds("Matrix sizes of the files", "rows x columns", "slices", totals.matrices),
        _kinds("Transfer syntaxes of the files", "transfer syntax", "slices", syntaxes),
        _kinds(
            "Distances of slices", "distance", "series", [(f"{d:g} mm", n) for d, n in distances]
        ),
        _kinds("Pixel encodings", "encoding", "slices looked at", encodings.most_common()),
    ]
    return [table for table in tables if table.rows]


def _kinds(caption: str, heading: str, unit: str, kinds: Sequence[tuple[str, int]]) -> Table:
    total = sum(number for _, number in kinds)
    shown = list(kinds[:_MOST_ROWS])
    if rest := kinds[_MOST_ROWS:]:
        shown.append((f"{len(rest)} others", sum(number for _, number in rest)))
    rows = [[name, count(number), percent(number / total)] for name, number in shown]
    return Table(caption, [(heading, "text"), (unit, "number"), ("share", "number")], rows)


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


def identical_pixels(manifest: Manifest) -> Facts:
    """Return the numbers of slices with identical pixels."""
    counts = manifest["counts"]["identical_pixels"]
    policy = manifest["options"]["leak_check"]
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
        runner, started = str(run["runner"]), str(run["started"])
        starts, seconds = int(run["starts"]), float(run["seconds"])
        duration = str(timedelta(seconds=round(seconds)))
    except (KeyError, TypeError, ValueError, OverflowError):
        return [("run", "not recorded")]
    facts: Facts = [("runner", runner), ("started", started)]
    if starts > 1:
        pauses = f"{duration} from the first of {starts} starts, pauses included"
        return [*facts, ("wall time", pauses)]
    rate = manifest["counts"]["files_seen"] / max(seconds, 0.1)
    return [*facts, ("wall time", duration), ("files per second", f"{rate:,.3g}")]


def origin(manifest: Manifest) -> Facts:
    """Return digest, date and versions of software."""
    digest = Markup("<code>{}</code>").format(manifest["digest"])
    return [("digest", digest), ("created", manifest["created"]), *manifest["software"].items()]


def options(manifest: Manifest) -> Facts:
    """Return the run's options; for a path, only whether it was given."""
    return [
        (name, ("given" if value else "none") if name in _PATHS else _text(value))
        for name, value in manifest["options"].items()
        if name != _KEY_CHECK
    ]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, dict):
        center, width = value["center"], value["width"]
        window = "each file's own" if center is None else f"{center:g}/{width:g}"
        return f"{value['name']} {window}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def command(manifest: Manifest) -> str:
    """Return the command that reproduces the directory, without options at their default."""
    words = ["python", "-m", "beam_pipeline"]
    for name, value in _flags(manifest["options"]):
        words += [f"--{name}", *([] if value is True else [_quote(str(value))])]
    counts = manifest["counts"]
    rejected = counts["rejected"] / counts["files_seen"]
    if rejected > RunOptions().max_reject_fraction:
        words += ["--max_reject_fraction", f"{math.ceil(rejected * 100) / 100:g}"]
    return " ".join(words)


def _quote(value: str) -> str:
    is_variable = value in (*_PATHS.values(), _KEY_FILE, _OUTPUT)
    return f'"{value}"' if is_variable else shlex.quote(value)


def _flags(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "input", _PATHS["input"]
    if options["labels"] is not None:
        yield "labels", _PATHS["labels"]
    yield "output", _OUTPUT
    defaults = Options.of(input="", output="").recorded()
    for name, value in options.items():
        if name in ("input", "labels") or value == defaults.get(name):
            continue
        if name == "windows":
            if value:
                yield name, ",".join(map(_window, value))
        elif name == _KEY_CHECK:
            yield "identifier_key_file", _KEY_FILE
        elif name in _PATHS:
            yield name, _PATHS[name]
        else:
            yield name, _comma_separated(value) if isinstance(value, list) else value


def _comma_separated(names: Sequence[str]) -> str:
    """Return names in the form of `--label_columns`; names with a comma are quoted."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(names)
    return text.getvalue()


def _window(window: Mapping[str, Any]) -> str:
    name, center, width = window["name"], window["center"], window["width"]
    if center is None:
        return FROM_FILE
    if PRESETS.get(name) == (center, width):
        return str(name)
    return f"{name}:{center!r}:{width!r}"
