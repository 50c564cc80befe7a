"""`python -m beam_pipeline`: DICOM files and labels to a shard directory."""

import logging
import sys
import time
from collections.abc import Sequence

from rich.console import Console

from beam_pipeline.assignment import read_assignment
from beam_pipeline.errors import PipelineError, UsageError
from beam_pipeline.labels import LabelFile
from beam_pipeline.manifest import MANIFEST
from beam_pipeline.options import LOCAL, Options, parse_options
from beam_pipeline.output import find_manifest, prepare_output, read_refusal
from beam_pipeline.progress import Display, show_summary
from beam_pipeline.storage import Folder, InputFiles
from beam_pipeline.workers import start_server


def main(argv: Sequence[str]) -> int:
    """Run and return the exit code: 0 done, 2 bad options, 3 too many rejects, 5 cannot write."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        options, runner, beam_argv = parse_options(argv)
        return _preprocess(options, runner, beam_argv)
    except PipelineError as error:
        print(f"beam_pipeline: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("beam_pipeline: interrupted; the same command resumes", file=sys.stderr)
        return 130


def _preprocess(options: Options, runner: str, beam_argv: list[str]) -> int:
    folder = Folder(options.output, options.storage_patience)
    _check_input(options)
    console = Console()
    manifest = prepare_output(folder, options)
    if manifest is not None:
        console.print(f"{options.output} is complete: nothing to do.", soft_wrap=True)
        show_summary(console, manifest, options.output, None)
        return 0
    began = time.monotonic()
    with Display(console) as display:
        try:
            _run(options, runner, beam_argv)
        except Exception:  # Beam's, which wraps whatever ended a step
            if display.refusal is None:
                raise
    if display.refusal is not None:
        raise display.refusal
    refusal = read_refusal(folder)
    if refusal is not None:
        exit_code, message = refusal
        print(f"beam_pipeline: error: {message}", file=sys.stderr)
        return exit_code
    finished = find_manifest(folder)
    if finished is None:
        raise PipelineError(f"the run ended without {MANIFEST} in {options.output}")
    show_summary(console, finished, options.output, time.monotonic() - began)
    return 0


def _check_input(options: Options) -> None:
    """Raise at once for what would end the run after the headers were read."""
    patience = options.storage_patience
    if next(InputFiles.parse(options.input, patience).list(), None) is None:
        raise UsageError(f"input {options.input} holds no files")
    if options.labels:
        LabelFile(options.labels, options.id_column, options.label_columns, patience).check()
    if options.folds_from:
        read_assignment(options.folds_from, patience)


def _run(options: Options, runner: str, beam_argv: list[str]) -> None:
    # Beam looks for Google's BigQuery client when imported, and warns; nothing here uses it.
    logging.getLogger().addFilter(lambda record: not str(record.msg).startswith("apitools"))
    if runner == LOCAL:
        start_server()
    # Imported late: a wrong option is answered without the seconds that Beam takes to load.
    from beam_pipeline import pipeline

    pipeline.run(options, runner, beam_argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
