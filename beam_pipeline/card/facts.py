"""What a card says in single facts: geometry and encodings, identical pixels, the run."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from pydicom.uid import UID

from beam_pipeline.card.command import command_of
from beam_pipeline.card.content import Content
from beam_pipeline.card.numbers import count, duration, percent, size, spread, with_minus
from beam_pipeline.card.run import Run
from beam_pipeline.card.tables import Table
from beam_pipeline.card.totals import Spread
from beam_pipeline.dicom.hounsfield import PixelEncoding

Facts = list[tuple[str, Any]]
Tiles = list[tuple[str, str, str]]

_MOST_KINDS = 12  # of matrix sizes, distances, encodings
# Paths may tell of people and machines; of the key nothing is told at all.
_PATHS = ("input", "labels", "folds_from")
_NOT_TOLD = ("identifier_key_check",)


def headline(content: Content) -> Tiles:
    """The figures to see first."""
    manifest, totals = content.manifest, content.totals
    counts, splits = manifest["counts"], manifest["splits"].values()
    repaired = sum(counts["repaired"].values())
    shards = [shard for split in splits for shard in split["shards"]]
    patients = sum(split.patients for split in totals.splits)
    studies = sum(split.studies for split in totals.splits)
    others = counts.get("unlabeled_skipped", 0)  # older versions skipped none
    skipped = f"; {count(others)} without a label skipped" if others else ""
    repairs = ", ".join(f"{name} {count(n)}" for name, n in counts["repaired"].items())
    unnamed = counts.get("without_patient_id", {}).get("studies", 0)
    stands_for = f"; {count(unnamed)} without PatientID, each for a patient" if unnamed else ""
    return [
        ("files seen", count(counts["files_seen"]), f"in the input{skipped}"),
        (
            "slices written",
            count(counts["written"]),
            f"{percent(counts['written'] / counts['files_seen'])} of the files; "
            f"{count(counts['resized'])} resized",
        ),
        ("repaired", count(repaired), repairs or "no badly encoded files"),
        (
            "rejected",
            count(counts["rejected"]),
            f"{percent(counts['rejected'] / counts['files_seen'])} of the files",
        ),
        ("patients", count(patients), f"{count(studies)} studies{stands_for}"),
        ("shards", count(len(shards)), size(sum(shard["bytes"] for shard in shards))),
    ]


def geometry(content: Content) -> Facts:
    """Spacing, and slices a study."""
    totals = content.totals
    spacings = [seen.views.pixel_spacing for seen in content.seen.values()]
    known = np.array([each[0] for each in spacings if each and np.isfinite(each[0])])
    image = content.manifest["image"]
    return [
        ("slices a study", spread(totals.slices_a_study)),
        ("distance of slices", f"{spread(totals.slice_distance, 'mm')}; each series' median"),
        (
            "pixel spacing",
            f"{spread(Spread.of(known), 'mm')}; between rows of the stored images, of "
            f"{len(known)} slices looked at",
        ),
        (
            "stored images",
            f"{image['height']} x {image['width']}, {image['channels']} channels of "
            f"{image['dtype']}; {count(content.manifest['counts']['resized'])} were resized",
        ),
    ]


def kind_tables(content: Content) -> list[Table]:
    """Matrix sizes, transfer syntaxes, encodings, distances of slices."""
    totals = content.totals
    syntaxes = [(f"{UID(uid).name} ({uid})", number) for uid, number in totals.transfer_syntaxes]
    distances = [(f"{distance:g} mm", number) for distance, number in totals.common_distances]
    encodings = Counter(
        _describe_encoding(seen.views.encoding)
        for seen in content.seen.values()
        if seen.views.encoding is not None
    )
    tables = [
        _kinds("Matrix sizes of the files", "rows x columns", "slices", totals.matrices),
        _kinds("Transfer syntaxes of the files", "transfer syntax", "slices", syntaxes),
        _kinds("Distances of slices", "distance", "series", distances),
        _kinds("Pixel encodings", "encoding", "slices looked at", encodings.most_common()),
    ]
    return [table for table in tables if table.rows]


def _kinds(caption: str, heading: str, unit: str, kinds: Sequence[tuple[str, int]]) -> Table:
    total = sum(number for _, number in kinds)
    rows = [[name, count(n), percent(n / total)] for name, n in kinds[:_MOST_KINDS]]
    rest = kinds[_MOST_KINDS:]
    if rest:
        others = sum(number for _, number in rest)
        rows.append([f"{len(rest)} others", count(others), percent(others / total)])
    return Table(caption, [(heading, "text"), (unit, "number"), ("share", "number")], rows)


def _describe_encoding(encoding: PixelEncoding) -> str:
    sign = "signed" if encoding.signed else "unsigned"
    padding = ""
    if encoding.padding is not None:
        low, high = encoding.padding
        padding = f", padding {low}" + (f" to {high}" if high != low else "")
    text = (
        f"{encoding.bits_stored} of {encoding.bits_allocated} bits, {sign}, "
        f"slope {encoding.slope:g}, intercept {encoding.intercept:g}{padding}"
    )
    return with_minus(text)


def identical_pixels(content: Content) -> Facts:
    """Groups of slices with identical pixels."""
    counts = content.manifest["counts"]["identical_pixels"]
    policy = content.manifest["options"]["leak_check"]
    done = {
        "join": "patients who share pixels are kept in one fold",
        "report": "only counted: patients who share pixels may be in different folds",
        "off": "not looked for",
    }
    return [
        ("leak check", f"{policy}: {done.get(policy, '')}"),
        ("groups of identical pixels", count(counts["groups"])),
        ("slices in them", count(counts["slices"])),
        ("groups across patients", count(counts["groups_across_patients"])),
        ("groups with labels that differ", count(counts["groups_with_conflicting_labels"])),
    ]


def throughput(content: Content) -> Facts:
    """How long the run took, and on what."""
    run = Run.of(content.manifest)
    if run is None:
        return [("run", "not recorded")]
    seen = content.manifest["counts"]["files_seen"]
    facts: Facts = [("runner", run.runner), ("started", run.started)]
    if run.starts > 1:
        pauses = f"{duration(run.seconds)} from the first of {run.starts} starts, pauses included"
        return [*facts, ("wall time", pauses)]
    rate = f"{seen / max(run.seconds, 0.1):,.3g}" if run.seconds else "unknown"
    return [*facts, ("wall time", duration(run.seconds)), ("files a second", rate)]


def origin(content: Content) -> Facts:
    """Digest, date and the versions of software."""
    manifest = content.manifest
    facts: Facts = [
        ("digest", Markup("<code>{}</code>").format(manifest["digest"])),
        ("created", manifest["created"]),
    ]
    return [*facts, *manifest["software"].items()]


def options(content: Content) -> Facts:
    """The run's options; of paths only whether they were given."""
    found = content.manifest["options"]
    return [
        (name, ("given" if value else "none") if name in _PATHS else _text(value))
        for name, value in found.items()
        if name not in _NOT_TOLD
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


def command(content: Content) -> str:
    """The command that makes the directory again."""
    return command_of(content.manifest["options"], content.manifest["counts"])
