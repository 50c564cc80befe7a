"""Progress and summary of a run.

Steps log lines with counts as an attribute; a cluster's log shows the lines, a display adds up the
counts. If the steps run elsewhere, a `FolderPoller` reads the counts from the output folder.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Any, Self

from pyarrow import ArrowException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from beam_pipeline.errors import AlreadyComplete
from beam_pipeline.shards.unfinished import Unfinished
from beam_pipeline.split_tables import print_by_split
from headct.commands import spell
from headct.errors import HeadctError
from headct.layout import CARD, UNLABELED_SPLIT
from headct.reasons import TRANSIENT
from headct.stores import Folder

LOGGER = logging.getLogger("beam_pipeline.progress")
_SECONDS_BETWEEN_LINES = 10.0  # without a live display on a terminal


def report(message: str, **counts: int) -> None:
    """Log a completed step; the display adds up the counts."""
    LOGGER.info(message, extra={"counts": counts})


def say(sentence: str) -> None:
    """Log a decision that depended on the data; the display prints it."""
    LOGGER.info(sentence, extra={"sentence": sentence})


def report_refusal(error: HeadctError) -> None:
    """Log why the run ends; the display keeps the error in case the output cannot be written."""
    LOGGER.error(str(error), extra={"refusal": error})


class Display(logging.Handler):
    """Shows the progress of a run: live on a terminal, otherwise as occasional lines.

    Args:
        console: to print to.
        listen: whether to handle the log of steps in this process; otherwise call `show`.

    Attributes:
        refusal: the error that ends the run, once it is logged.
    """

    def __init__(self, console: Console, *, listen: bool = True) -> None:
        super().__init__(logging.INFO)
        self._console = console
        self._listen = listen
        self._counts: Counter[str] = Counter()
        self.refusal: HeadctError | None = None
        self._writing_since = self._line_at = time.monotonic()
        self._done_before = 0
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._inspect = self._bars.add_task("Inspect files", total=None, note="")
        self._write = self._bars.add_task("Write slices", total=None, note="")

    def __enter__(self) -> Self:
        self._before = LOGGER.level, LOGGER.propagate, logging.root.manager.disable
        if self._listen:
            LOGGER.addHandler(self)
            LOGGER.setLevel(logging.INFO)
            LOGGER.propagate = False
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()
        LOGGER.removeHandler(self)
        level, LOGGER.propagate, disabled = self._before
        LOGGER.setLevel(level)
        logging.disable(disabled)

    def emit(self, record: logging.LogRecord) -> None:
        """Add the counts of a step and show them."""
        self.refusal = getattr(record, "refusal", self.refusal)
        if self.refusal is not None:
            logging.disable()  # Beam would log a traceback of the step that raises it
        if hasattr(record, "sentence"):
            self.say(record.sentence)
        counts: dict[str, int] = getattr(record, "counts", {})
        if "slices_planned" in counts:
            self._writing_since = time.monotonic()
        self._counts.update(counts)
        self._show()

    def say(self, sentence: str) -> None:
        """Print a sentence above the bars."""
        self._console.print(sentence, highlight=False, soft_wrap=True, markup=False)

    def show(self, counts: Counter[str]) -> None:
        """Replace the counts and show them."""
        if counts["slices_planned"] and not self._counts["slices_planned"]:
            self._writing_since = time.monotonic()
            self._done_before = _slices_done(counts)  # by earlier runs
        self._counts = Counter(counts)
        self._show()

    def _show(self) -> None:
        seen = self._counts
        done = _slices_done(seen)
        rate = (done - self._done_before) / max(time.monotonic() - self._writing_since, 1e-3)
        rejected = seen["rejected_by_header"] + seen["rejected_while_writing"]
        shards = f"{seen['shards_written']}/{seen['shards_planned']} shards"
        self._bars.update(
            self._inspect,
            completed=seen["files_inspected"],
            total=seen["files_listed"] or None,
            note=f"{rejected} rejected",
        )
        self._bars.update(
            self._write,
            completed=done,
            total=seen["slices_planned"] or None,
            note=f"{shards}, {rate:.0f} slices/s" if done else shards,
        )
        if not self._console.is_terminal:
            self._line(f"inspected {seen['files_inspected']}/{seen['files_listed']} files", shards)

    def _line(self, files: str, shards: str) -> None:
        now = time.monotonic()
        if self._counts["files_listed"] and now - self._line_at >= _SECONDS_BETWEEN_LINES:
            self._line_at = now
            written = self._counts["slices_written"]
            self._console.print(f"{files}; wrote {shards}, {written} slices", highlight=False)


def _slices_done(counts: Counter[str]) -> int:
    return counts["slices_written"] + counts["rejected_while_writing"]


def _damaged() -> AbstractContextManager[None]:
    """Skip a table that a power failure damaged: the run writes it again."""
    return suppress(ValueError, LookupError, TypeError, ArrowException)


class FolderPoller:
    """Reads the counts of a run elsewhere from the output folder, for a display.

    Args:
        unfinished: unfinished area of the output.
        display: shows the counts.
    """

    def __init__(self, unfinished: Unfinished, display: Display) -> None:
        self._unfinished = unfinished
        self._display = display
        self._seen: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._before = unfinished.signs()

    @property
    def folder(self) -> Folder:
        """The output folder."""
        return self._unfinished.folder

    def look(self) -> None:
        """Read new tables and show the counts.

        Raises:
            StoreError: the output's store fails.
        """
        with suppress(FileNotFoundError, AlreadyComplete):  # the run has just finished
            self._look()
        self._display.show(self._counts)

    def sees_workers(self) -> bool:
        """Return whether a worker has written anything since the start; raise as `look` does."""
        return self._unfinished.signs() != self._before

    def _look(self) -> None:
        for name in self._new("listing"):
            with _damaged():
                self._count(name, files_listed=self._unfinished.read_metadata(name)["files"])
        for name in self._new("inventory"):
            with _damaged():
                inspected = self._unfinished.read_metadata(name)
                files, rejected = inspected["files"], inspected["rejected"]
                self._count(name, files_inspected=files, rejected_by_header=rejected)
        if not self._counts["shards_planned"]:
            with _damaged():
                self._look_at_plan()
        for name in self._new("written"):
            with _damaged():
                shard = self._unfinished.read_metadata(name)
                self._count(
                    name,
                    shards_written=1,
                    slices_written=shard["examples"],
                    rejected_while_writing=len(shard["rejects"]),
                )

    def _look_at_plan(self) -> None:
        plan = self._unfinished.read_plan()
        self._count("plan", shards_planned=len(plan.shards), slices_planned=plan.slices)
        for note in plan.notes:
            self._display.say(note)

    def _new(self, kind: str) -> list[str]:
        return sorted(self._unfinished.names(kind) - self._seen)

    def _count(self, name: str, **counts: int) -> None:
        self._seen.add(name)
        self._counts.update(counts)


def show_summary(
    console: Console,
    manifest: dict[str, Any],
    output: str,
    seconds: float | None,
    *,
    has_card: bool = True,
) -> None:
    """Print the contents of a shard directory and the next command.

    Args:
        console: to print to.
        manifest: manifest of the directory.
        output: path or URL of the directory.
        seconds: duration of the run, None if the directory was complete before.
        has_card: whether there is a data card.
    """
    counts = manifest["counts"]
    _print_splits(console, manifest)
    took = f" in {seconds:.0f} s" if seconds is not None else ""
    card = f"Without a data card: {spell('card', shards=output)} makes it"
    command = "predict" if UNLABELED_SPLIT in manifest["splits"] else "train"
    for line in (
        *_describe_counts(counts),
        *(manifest.get("notes", ()) if seconds is None else ()),  # a run has printed them
        f"{counts['written']} of {counts['files_seen']} files written{took} to {output}",
        f"What is in them: {output}/{CARD}" if has_card else card,
        f"Next: {spell(command, shards=output)}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _describe_counts(counts: dict[str, Any]) -> Iterator[str]:
    """Yield the counts of a manifest as lines; older directories lack some of them."""
    rejected = counts["rejected_by_reason"]
    yield from (f"rejected {count:>6}  {reason}" for reason, count in rejected.items())
    if may_pass := sum(count for reason, count in rejected.items() if reason in TRANSIENT):
        yield f"{may_pass} of these may pass if read again, which --overwrite does"
    yield from (f"repaired {count:>6}  {repair}" for repair, count in counts["repaired"].items())
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


def _print_splits(console: Console, manifest: dict[str, Any]) -> None:
    splits = manifest["splits"]
    labels = manifest["labels"] if UNLABELED_SPLIT not in splits else ()
    rows = [
        ("patients", [str(split["patients"]) for split in splits.values()]),
        ("shards", [str(len(split["shards"])) for split in splits.values()]),
        ("slices", [str(split["examples"]) for split in splits.values()]),
        *(
            (label, [str(split["label_counts"][label]) for split in splits.values()])
            for label in labels
        ),
    ]
    print_by_split(console, [*splits], rows)
