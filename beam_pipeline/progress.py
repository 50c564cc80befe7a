"""Progress of a run, as its output folder shows it, and the summary at its end."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any, Self

from pyarrow import ArrowException
from rich.console import Console
from rich.filesize import decimal
from rich.measure import Measurement
from rich.progress import Progress
from rich.table import Column, Table
from rich.text import Text

from beam_pipeline.errors import AlreadyComplete
from beam_pipeline.shards.unfinished import Unfinished
from headct.commands import is_step, spell
from headct.errors import HeadctError
from headct.layout import CARD, UNLABELED_SPLIT
from headct.reasons import TRANSIENT
from headct.stores import Folder, is_local
from headct.terminal import can_redraw

_SECONDS_BETWEEN_LINES = 10.0  # without a live display on a terminal
_LOOK_SECONDS = 1.0  # interval between reads of a local folder
_REMOTE_LOOK_SECONDS = 10.0


class Display:
    """Shows the progress of a run: live on a terminal, otherwise as occasional lines.

    Args:
        console: to print to.
        unfinished: unfinished area of the output.
        writes: whether shards are written after the files are inspected.

    Attributes:
        folder: the output folder.
        interval: seconds between two looks.
        counts: sums over the tables in the folder.
        notes: decisions of planning that were printed.
    """

    def __init__(self, console: Console, unfinished: Unfinished, *, writes: bool = True) -> None:
        self.folder: Folder = unfinished.folder
        self.interval = _LOOK_SECONDS if is_local(self.folder.url) else _REMOTE_LOOK_SECONDS
        self.counts: Counter[str] = Counter()
        self.notes: tuple[str, ...] = ()
        self._console = console
        self._unfinished = unfinished
        self._writes = writes
        self._seen: set[str] = set()
        self._before = unfinished.signs()
        self._writing_since = self._line_at = time.monotonic()
        self._done_before: int | None = None  # slices of earlier runs, once the plan is known
        self._bars = Progress(console=console, transient=True, disable=not can_redraw(console))
        self._inspect = self._bars.add_task("Inspect files", total=None)
        self._write = self._bars.add_task("Write slices", total=None, visible=writes)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look at the folder in a thread while the block runs."""
        ended = Event()

        def look() -> None:
            while not ended.wait(self.interval):
                with suppress(HeadctError, OSError):  # the run itself reports a failing store
                    self.look()

        thread = Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(self.interval)

    def look(self) -> None:
        """Read new tables and show the counts.

        Raises:
            StoreError: the output's store fails.
        """
        with suppress(FileNotFoundError, AlreadyComplete):  # the run has just finished
            for kind in ("listing", "inventory", "plan", "written"):
                self._look_at(kind)
        self._show()

    def sees_workers(self) -> bool:
        """Return whether a worker has written anything since the start; raise as `look` does."""
        return self._unfinished.signs() != self._before

    def _look_at(self, kind: str) -> None:
        new = {"plan"} if kind == "plan" else self._unfinished.names(kind)
        for name in sorted(new - self._seen):
            # A power failure may damage a table: the run writes it again.
            with suppress(ValueError, LookupError, TypeError, ArrowException):
                self.counts.update(self._plan() if kind == "plan" else self._count(kind, name))
                self._seen.add(name)

    def _plan(self) -> dict[str, int]:
        plan = self._unfinished.read_plan()
        self.notes = plan.notes
        for note in plan.notes:
            self._console.print(note, highlight=False, soft_wrap=True, markup=False)
        return {"shards_planned": len(plan.shards), "slices_planned": plan.slices}

    def _count(self, kind: str, name: str) -> dict[str, int]:
        table = self._unfinished.read_metadata(name)
        if kind == "listing":
            return {"files_listed": table["files"]}
        if kind == "inventory":
            counts = {"files_inspected": table["files"], "excluded": table["excluded"]}
            return counts | {"rejected_by_header": table["rejected"]}
        written = {"shards_written": 1, "slices_written": table["examples"]}
        return written | {"rejected_while_writing": len(table["rejects"])}

    def _show(self) -> None:
        seen, now = self.counts, time.monotonic()
        done = seen["slices_written"] + seen["rejected_while_writing"]
        if seen["slices_planned"] and self._done_before is None:
            self._writing_since, self._done_before = now, done
        rate = (done - (self._done_before or 0)) / max(now - self._writing_since, 1e-3)
        rejected = seen["rejected_by_header"] + seen["rejected_while_writing"]
        files = f"{seen['files_inspected']}/{seen['files_listed']} files"
        shards = f"{seen['shards_written']}/{seen['shards_planned']} shards"
        self._bars.update(
            self._inspect,
            completed=seen["files_inspected"],
            total=seen["files_listed"] or None,
            description=f"Inspect {files}, {rejected} rejected, {seen['excluded']} excluded",
        )
        self._bars.update(
            self._write,
            completed=done,
            total=seen["slices_planned"] or None,
            description=f"Write {shards}, {rate:.0f} slices/s",
        )
        is_due = now - self._line_at >= _SECONDS_BETWEEN_LINES
        if seen["files_listed"] and is_due and self._bars.disable:
            self._line_at = now
            line = f"inspected {files}"
            if self._writes:
                line += f"; wrote {shards}, {seen['slices_written']} slices"
            self._console.print(line, highlight=False)


def show_summary(
    console: Console,
    manifest: dict[str, Any],
    folder: Folder,
    seconds: float | None,
    notes: Sequence[str] = (),
) -> None:
    """Print the contents of a shard directory and the next command, unless this run is a step.

    Args:
        console: to print to.
        manifest: manifest of the directory.
        folder: the directory.
        seconds: duration of the run, None if the directory was complete before.
        notes: those of the manifest's notes that were printed before.
    """
    if is_step():
        return
    counts, output, splits = manifest["counts"], folder.url, manifest["splits"]
    _print_splits(console, manifest)
    took = f" in {seconds:.0f} s" if seconds is not None else ""
    card = f"Without a data card: {spell('card', shards=output)} makes it"
    command = "predict" if UNLABELED_SPLIT in splits else "train"
    for line in (
        *_describe_counts(counts),
        *(note for note in manifest.get("notes", ()) if note not in notes),
        f"{counts['written']} of {counts['files_seen']} files written{took} to {output}",
        f"What is in them: {output}/{CARD}" if folder.exists(CARD) else card,
        f"Next: {spell(command, shards=output)}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def show_plan(console: Console, summary: dict[str, Any]) -> None:
    """Print what a run would write, reject and exclude.

    Args:
        console: to print to.
        summary: summary of an inspection.
    """
    counts, found, estimate = summary["counts"], summary["input"], summary["estimate"]
    if summary["splits"]:
        _print_splits(console, summary)
    kinds = ", ".join(f"{number} {kind}" for kind, number in summary["not_ct"].items())
    lines = [
        f"{found['files']} files; their usable slices are of {found['patients']} patients, "
        f"{found['studies']} studies and {found['series']} series",
        *([f"images of other modalities: {kinds}"] if kinds else ()),
        *_describe_counts(counts),
        *summary["notes"],
        f"{counts['written']} of {counts['files_seen']} files would be written: "
        f"{describe_estimate(estimate)}",
    ]
    if summary["refusal"]:
        lines.append(f"preprocess would fail: {summary['refusal']}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def describe_estimate(estimate: dict[str, Any]) -> str:
    """Return the expected size and time of a run."""
    size = decimal(estimate["bytes"])
    return f"about {size}, in {describe_time(estimate['seconds'])} on {estimate['workers']} cores"


def describe_time(seconds: float) -> str:
    """Return a duration in its usual unit: 12 s, 3.5 min, 40 min, 2.1 h."""
    unit, length = next(
        (unit, length)
        for unit, length, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, math.inf))
        if seconds < most * length
    )
    number = seconds / length
    return f"{number:.0f} {unit}" if number >= 10 or unit == "s" else f"{number:.1f} {unit}"


def _print_splits(console: Console, manifest: dict[str, Any]) -> None:
    splits: dict[str, Any] = manifest["splits"]
    rows = {
        "patients": [split["patients"] for split in splits.values()],
        "shards": [len(split["shards"]) for split in splits.values()],
        "slices": [split["examples"] for split in splits.values()],
    }
    labels = manifest["labels"] if UNLABELED_SPLIT not in splits else ()
    table = [(name, [*map(str, numbers)]) for name, numbers in rows.items()]
    for label in labels:
        table.append((label, [str(split["label_counts"][label]) for split in splits.values()]))
    print_by_split(console, [*splits], table)


def _describe_counts(counts: dict[str, Any]) -> Iterator[str]:
    """Yield the counts of a manifest as lines; older directories lack some of them."""
    rejected, excluded = counts["rejected_by_reason"], counts.get("excluded_by_reason", {})
    yield from (f"excluded {count:>6}  {reason}" for reason, count in excluded.items())
    yield from (f"rejected {count:>6}  {reason}" for reason, count in rejected.items())
    if may_pass := sum(count for reason, count in rejected.items() if reason in TRANSIENT):
        yield f"{may_pass} of these may pass if read again, which --overwrite does"
    repaired = counts.get("repaired", {})  # unknown before the pixels are decoded
    yield from (f"repaired {count:>6}  {repair}" for repair, count in repaired.items())
    if counts["resized"]:
        yield f"resized {counts['resized']:>7}"
    unnamed = counts.get("without_patient_id", {})
    if unnamed.get("slices"):
        yield (
            f"{unnamed['slices']} slices of {unnamed['studies']} studies have no PatientID: each "
            "study stands for a patient"
        )
    identical = counts["identical_pixels"]
    if identical["groups"]:
        yield (
            f"identical pixels in {identical['groups']} groups of {identical['slices']} slices: "
            f"{identical['groups_across_patients']} of more than one patient, "
            f"{identical['groups_with_conflicting_labels']} with labels that differ"
        )
    if files := counts.get("identifying_paths"):
        yield (
            f"{files} files have their patient's ID, name or accession number in their path, which "
            "the index, the rejects and the data card show: --image_id ordinal hides all paths"
        )


def print_by_split(
    console: Console, splits: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]
) -> None:
    """Print a table with a column per split, or several tables on a narrow terminal.

    Args:
        console: console to print to.
        splits: names of the splits.
        rows: name, and a cell per split.
    """

    def table(first: int, last: int) -> Table:
        columns = (Column(name, justify="right", overflow="fold") for name in splits[first:last])
        made = Table(Column("", overflow="fold"), *columns)
        for name, cells in rows:
            made.add_row(Text(name), *cells[first:last])
        return made

    unlimited = console.options.update(max_width=1000)  # not by the terminal's width
    first = 0
    while first < len(splits):
        last = first + 1
        while last < len(splits) and (
            Measurement.get(console, unlimited, table(first, last + 1)).maximum <= console.width
        ):
            last += 1
        console.print(table(first, last))
        first = last
