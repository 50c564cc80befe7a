"""The command line of `python -m trainer`: parses arguments and runs the command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from headct import commands
from headct.declarations import choose_command, parse_flags
from trainer.display import next_command
from trainer.native_log import check_backend, load_libraries
from trainer.options import (
    CompareOptions,
    CrossvalOptions,
    EvaluateOptions,
    ExportOptions,
    Options,
    PredictOptions,
    ReportOptions,
    TrainOptions,
    parse_formats,
)

COMMANDS: dict[str, type[Options]] = {
    "train": TrainOptions,
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
    return parse_flags(COMMANDS[name], argv[1:], f"{program} {name}", texts[name])


def run_command(options: Options, builder: Callable[..., Any] | None = None) -> None:
    """Check the options, load TensorFlow, which takes seconds, and run the command.

    Args:
        options: options of the command.
        builder: function that makes the backbone, from `trainer.train_run`.

    Raises:
        HeadctError: see `headct.errors`.
    """
    from trainer.files import full_disk_reported

    with full_disk_reported():
        _run_command(options, builder)


def _run_command(options: Options, builder: Callable[..., Any] | None) -> None:
    # Commands are imported when they run: `--help` does not need them.
    if not isinstance(options, CompareOptions):
        check_backend(options.backend)
    if isinstance(options, CrossvalOptions):
        from trainer.runs.training_setup import prepare_crossval

        jobs = prepare_crossval(options)
        load_libraries(options.backend)
        from trainer.training.crossval import crossvalidate

        crossvalidate(jobs)
    elif isinstance(options, TrainOptions):
        _run_training(options, builder)
    elif isinstance(options, ExportOptions):
        from trainer.runs.evaluation_setup import prepare_export

        saved = prepare_export(options)
        load_libraries(options.backend)
        from trainer.evaluation.export import export

        export(saved, options.output, parse_formats(options.formats))
    elif isinstance(options, ReportOptions):
        from trainer.runs.evaluation_setup import prepare_report

        job = prepare_report(options)
        load_libraries(options.backend)
        from trainer.report.report import write_report

        write_report(job, options.mistakes)
    elif isinstance(options, CompareOptions):
        from trainer.report.compare import write_comparison

        write_comparison(options.runs, options.output)
    else:
        _run_prediction(options)


def _run_training(options: TrainOptions, builder: Callable[..., Any] | None) -> None:
    """Train, unless the run is complete."""
    from trainer.runs.training_setup import prepare_training

    job = prepare_training(options, builder)
    if job.run.is_complete:
        job.display.say(f"{options.run}: this run is complete; metrics.json has its figures")
        is_shown = not options.report or job.run.report.is_file()
        job.display.print_unwrapped(
            next_command("evaluate" if is_shown else "report", run=options.run)
        )
        return
    load_libraries(options.backend)
    from trainer.training.train import train

    train(job)


def _run_prediction(options: EvaluateOptions | PredictOptions) -> None:
    """Evaluate or predict."""
    from trainer.runs.evaluation_setup import prepare_evaluation

    job = prepare_evaluation(options)
    load_libraries(options.backend)
    if isinstance(options, EvaluateOptions):
        from trainer.evaluation.evaluate import evaluate

        evaluate(job, options.fit_temperature)
    else:
        from trainer.evaluation.predict import predict

        sample = Path(options.sample_submission) if options.sample_submission else None
        predict(job, options.output, sample)
