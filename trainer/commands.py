"""Options → the command they are of: what `python -m trainer` and `trainer.train_run` do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.files import full_disk_reported
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
from trainer.progress import make_command
from trainer.runs.job import (
    prepare_crossval,
    prepare_evaluation,
    prepare_export,
    prepare_report,
    prepare_training,
)


def run_command(options: Options, builder: Callable[..., Any] | None = None) -> None:
    """Checks what was given; then loads TensorFlow, which takes seconds, and starts.

    Args:
        options: of a command.
        builder: what makes the backbone of a training, from Python alone.

    Raises:
        HeadctError: see `headct.errors`.
    """
    with full_disk_reported():
        _run_command(options, builder)


def _run_command(options: Options, builder: Callable[..., Any] | None) -> None:
    """Runs one command."""
    if not isinstance(options, CompareOptions):
        check_backend(options.backend)
    if isinstance(options, CrossvalOptions):
        jobs = prepare_crossval(options)
        load_libraries(options.backend)
        from trainer.training.crossval import crossvalidate

        crossvalidate(jobs)
    elif isinstance(options, TrainOptions):
        _run_training(options, builder)
    elif isinstance(options, ExportOptions):
        saved = prepare_export(options)
        load_libraries(options.backend)
        from trainer.evaluation.export import export

        export(saved, options.output, parse_formats(options.formats))
    elif isinstance(options, ReportOptions):
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
    """Trains, unless the run is complete."""
    job = prepare_training(options, builder)
    if job.run.is_complete:
        job.display.say(f"{options.run}: this run is complete; metrics.json has its figures")
        is_shown = not options.report or job.run.report.is_file()
        job.display.point_out(
            f"Next: {make_command('evaluate' if is_shown else 'report', RUN=options.run)}"
        )
        return
    load_libraries(options.backend)
    from trainer.training.train import train

    train(job)


def _run_prediction(options: EvaluateOptions | PredictOptions) -> None:
    """Evaluates or predicts."""
    job = prepare_evaluation(options)
    load_libraries(options.backend)
    if isinstance(options, EvaluateOptions):
        from trainer.evaluation.evaluate import evaluate

        evaluate(job, options.fit_temperature)
    else:
        from trainer.evaluation.predict import predict

        sample = Path(options.sample_submission) if options.sample_submission else None
        predict(job, options.output, sample)
