"""The commands of `python -m trainer`: their options, checks and functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from headct import commands
from headct.declarations import choose_command, parse_flags, with_flags
from headct.errors import Interrupted
from headct.layout import MANIFEST
from headct.stores import Folder
from trainer.display import next_command
from trainer.native_log import check_backend, load_libraries
from trainer.option_values import parse_formats
from trainer.options import (
    CompareOptions,
    CrossvalOptions,
    EvaluateOptions,
    ExportOptions,
    Options,
    PredictOptions,
    ReportOptions,
    TrainOptions,
    TrainScansOptions,
)

COMMANDS: dict[str, type[Options]] = {
    "train": TrainOptions,
    "train_scans": TrainScansOptions,
    "crossval": CrossvalOptions,
    "evaluate": EvaluateOptions,
    "predict": PredictOptions,
    "export": ExportOptions,
    "report": ReportOptions,
    "compare": CompareOptions,
}


def parse_arguments(argv: Sequence[str], program: str = "python -m trainer") -> Options:
    """Parse arguments; return the options of the named command.

    Raises:
        UsageError: an unknown command, flag, key or value; a missing flag.
        SystemExit: `--help`.
    """
    texts = {name: commands.COMMANDS[name].text for name in COMMANDS}
    name = choose_command(argv, program, texts)
    words = _with_flags(name, argv[1:])
    return parse_flags(COMMANDS[name], words, f"{program} {name}", texts[name])


def _with_flags(name: str, words: Sequence[str]) -> list[str]:
    """Return `RUN...` at the beginning as `--run RUN...`.

    `predict RUN... DATA` has `--shards=DATA`, or `--input=DATA`, too; `train SHARDS` and
    `crossval SHARDS` have `--shards=SHARDS`.

    Raises:
        StorageError: the store of a URL fails.
    """
    given = [*takewhile(lambda word: not word.startswith("-"), words)]
    if issubclass(COMMANDS[name], TrainOptions):
        return with_flags(words, "--shards")
    runs, data = given, []
    if name == "predict":
        runs, data = given[: max(1, len(given) - 1)], given[1:][-1:]
    flags = ["--runs" if name == "compare" else "--run", *runs] if runs else []
    for location in data:
        is_shards = Folder(location).exists(MANIFEST)
        flags.append(f"--{'shards' if is_shards else 'input'}={location}")
    return [*flags, *words[len(given) :]]


def run_command(options: Options, builder: Callable[..., Any] | None = None) -> None:
    """Check the options, load TensorFlow, which takes seconds, and run the command.

    Args:
        options: options of the command.
        builder: function that makes the backbone, from `trainer.train_run`.

    Raises:
        HeadctError: see `headct.errors`.
    """
    # Commands are imported when they run: `--help` does not need them.
    from trainer.files import full_disk_reported

    with full_disk_reported():
        if isinstance(options, CompareOptions):
            from trainer.report.compare import write_comparison

            write_comparison(options.runs, options.output)
            return
        check_backend(options.backend)
        if isinstance(options, TrainOptions):
            _train(options, builder)
        elif isinstance(options, TrainScansOptions):
            _train_scans(options)
        else:
            _apply(options)


def _train(options: TrainOptions, builder: Callable[..., Any] | None) -> None:
    """Train a run, unless it is complete, or a run per fold."""
    from trainer.runs.training_setup import prepare_crossval, prepare_training

    if isinstance(options, CrossvalOptions):
        setups = prepare_crossval(options)
        load_libraries(options.backend)
        from trainer.training.crossval import crossvalidate

        crossvalidate(setups)
        return
    setup = prepare_training(options, builder)
    if not setup.run.is_complete:
        load_libraries(options.backend)
        from trainer.training.train import train

        train(setup)
        return
    setup.display.say(f"{options.run}: this run is complete; metrics.json has its figures")
    is_shown = not options.report or setup.run.report.is_file()
    following = "evaluate" if is_shown else "report"
    setup.display.print_unwrapped(next_command(following, run=options.run))


def _train_scans(options: TrainScansOptions) -> None:
    """Train a scan model, unless its run is complete, or one per fold of a cross-validation."""
    from trainer.runs.scan_setup import prepare_scans

    setup, *others = setups = prepare_scans(options)
    if others:
        load_libraries(options.backend)
        from trainer.training.crossval import crossvalidate_scans

        crossvalidate_scans(setups)
        return
    if setup.run.is_complete:
        setup.display.say(f"{setup.run.path}: this run is complete; metrics.json has its figures")
        setup.display.print_unwrapped(next_command("evaluate", run=setup.run.path))
        return
    load_libraries(options.backend)
    from trainer.training.train_scans import train_scans

    train_scans(setup)


def _apply(options: EvaluateOptions | PredictOptions | ExportOptions | ReportOptions) -> None:
    """Use a trained model."""
    from trainer.runs.evaluation_setup import prepare_evaluation, prepare_export, prepare_report

    if isinstance(options, ExportOptions):
        saved = prepare_export(options)
        load_libraries(options.backend)
        from trainer.evaluation.export import export

        export(saved, options.output, parse_formats(options.formats))
    elif isinstance(options, ReportOptions):
        setup = prepare_report(options)
        load_libraries(options.backend)
        from trainer.report.report import write_ensemble_report, write_report

        if len(setup.run.networks) > 1:
            write_ensemble_report(setup)
        else:
            write_report(setup, options.mistakes)
    elif isinstance(options, EvaluateOptions):
        setup = prepare_evaluation(options)
        load_libraries(options.backend)
        from trainer.evaluation.evaluate import evaluate

        setup = evaluate(
            setup, options.fit_temperature, options.fit_smooth_z, fit_weights=options.fit_weights
        )
        if len(setup.run.networks) > 1:
            from trainer.report.report import write_ensemble_report

            write_ensemble_report(setup)
    else:
        _predict(options)


def _predict(options: PredictOptions) -> None:
    """Predict shards, or DICOM files by way of temporary shards."""
    from trainer.runs.evaluation_setup import check_run, converted_input, prepare_evaluation

    check_run(options)
    try:
        with converted_input(options) as (of_shards, rejects):
            setup = prepare_evaluation(of_shards)
            load_libraries(options.backend)
            if options.writes_folder:
                from trainer.report.predictions import write_predictions

                write_predictions(setup, options, rejects)
            else:
                from trainer.evaluation.predict import predict

                sample = Path(options.sample_submission) if options.sample_submission else None
                predict(setup, options.output, sample)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; nothing is written") from None
