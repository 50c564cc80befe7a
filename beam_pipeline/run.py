"""The steps of a preprocessing run: check the input, prepare the output, run, summarize."""

import logging
import time
from contextlib import suppress
from itertools import chain
from typing import Any

from rich.console import Console

from beam_pipeline.dicom.dataset import BEGINNING, name_kind
from beam_pipeline.errors import ENDED_BY
from beam_pipeline.options import Options
from beam_pipeline.planning.file_list import FileList
from beam_pipeline.planning.folds_from import Earlier
from beam_pipeline.planning.label_match import check_labels_fit
from beam_pipeline.planning.labels import Labels, read_labels
from beam_pipeline.planning.output_checks import check_output_is_not_read, check_places
from beam_pipeline.progress import Display, show_summary
from beam_pipeline.runners.choose import ChosenRunner
from beam_pipeline.shards.output import (
    check_begun,
    find_manifest,
    lock_output,
    prepare_output,
    record_start,
)
from beam_pipeline.shards.unfinished import Unfinished
from beam_pipeline.workers import start_server
from headct.commands import is_step
from headct.errors import HeadctError, UsageError
from headct.layout import FILES_TABLE, LABELS_TABLE, MANIFEST
from headct.stores import Folder, InputFiles


def run(options: Options, chosen: ChosenRunner, console: Console) -> dict[str, Any] | None:
    """Write a shard directory, unless it is complete.

    Args:
        options: options of the run.
        chosen: the runner.
        console: to print progress and a summary to.

    Returns:
        The manifest; None if the runner only wrote a template.

    Raises:
        HeadctError: see `headct.errors` and `beam_pipeline.errors`.
    """
    folder = options.files.folder
    labels, listed = check_input(options)
    if not chosen.runner.is_local:
        from beam_pipeline.runners.job_server import find_job_server

        chosen = find_job_server(chosen)
    with lock_output(folder.url) as (alone, share):
        manifest = prepare_output(folder, options, alone=alone)
        if manifest is not None:
            console.print(
                f"{options.files.output} is complete: nothing to do.", soft_wrap=True, markup=False
            )
            show_summary(console, manifest, folder, None)
            return manifest
        share()
        check_begun(folder, options)
        if listed is not None:
            listed.keep(Unfinished(folder))
            del listed
        if labels is None and not is_step():
            console.print("No labels given: every slice goes to the split test.")
        if labels is not None:
            labels.keep(Unfinished(folder))
            del labels
        return _run(options, chosen, folder, console)


def _run(
    options: Options, chosen: ChosenRunner, folder: Folder, console: Console
) -> dict[str, Any] | None:
    record_start(folder, chosen.runner.name)
    began = time.monotonic()
    with Display(console, Unfinished(folder)) as display:
        if chosen.runner.is_local:
            _run_here(options, display)
        else:
            from beam_pipeline.runners.run_job import run_job

            if not run_job(options, chosen, display, console):
                for name in (LABELS_TABLE, FILES_TABLE):  # a template's job reads the files later
                    Unfinished(folder).remove(name)
                return None
    finished = find_manifest(folder)
    if finished is None:
        raise HeadctError(f"the run ended without {MANIFEST} in {options.files.output}")
    show_summary(console, finished, folder, time.monotonic() - began, display.notes)
    return finished


def _run_here(options: Options, display: Display) -> None:
    start_server(options.files.input)
    output, beam_log = display.folder.url, logging.getLogger("apache_beam")
    level = beam_log.level
    beam_log.setLevel(logging.CRITICAL)  # not the traceback of a step that ends the run
    ENDED_BY.pop(output, None)
    try:
        with display.looking():
            # Imported late: Beam takes seconds to load, and wrong options are reported first.
            from beam_pipeline import pipeline

            pipeline.run_here(options)
    except Exception:  # Beam wraps the error of a step
        if output not in ENDED_BY:
            raise
        with suppress(HeadctError):
            display.look()  # prints what planning decided
        raise ENDED_BY.pop(output) from None
    finally:
        beam_log.setLevel(level)


def check_input(options: Options) -> tuple[Labels | None, FileList | None]:
    """Return labels and list of files, after checks that would otherwise fail after headers."""
    files = options.files
    check_places(options)
    input_files = InputFiles.parse(files.input, files.storage_patience)
    check_output_is_not_read(input_files, files.output)
    listed = None
    if options.selection.files:
        listed = FileList.read(options.selection.files, input_files, files.storage_patience)
    found = input_files.list()
    first = next(found, None)
    if first is None:
        raise UsageError(f"input {files.input} holds no files")
    _check_kind(input_files, files.input)
    labels = None
    if files.labels is not None:
        _check_sample(options)
        labels = read_labels(files.labels, options.labels, files.storage_patience)
        check_labels_fit(labels.ids, options, input_files, chain([first], found))
    if options.splits.folds_from:
        Earlier.read(options)
    return labels, listed


def _check_sample(options: Options) -> None:
    """Raise a UsageError if a sample of patients cannot fill the folds."""
    number, splits = options.selection.max_patients, options.splits
    least = splits.folds + bool(splits.holdout)
    if 0 < number < least:
        holdout = " and a hold-out" if splits.holdout else ""
        raise UsageError(
            f"--max_patients {number} cannot fill {splits.folds} folds{holdout}; want {least} or "
            "more, or fewer --folds"
        )


def _check_kind(files: InputFiles, text: str) -> None:
    """Raise a UsageError if the input is a single file of an unsupported format."""
    if not files.name:
        return
    kind = ""
    with suppress(OSError), files.reading() as reading:  # an unreadable file is rejected later
        kind = name_kind(reading.now(files.name, 0, BEGINNING))
    if kind:
        raise UsageError(
            f"input {text} is not DICOM ({kind}); want DICOM files in a folder, or in a ZIP "
            "archive whose name ends in .zip"
        )
