"""argv → options → the command they are of."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from trainer.command_line import parse_arguments
from trainer.errors import BadInput, TrainerError
from trainer.job import (
    prepare_answer,
    prepare_crossval,
    prepare_export,
    prepare_report,
    prepare_training,
)
from trainer.native_log import load_libraries
from trainer.options import (
    CrossvalOptions,
    EvaluateOptions,
    ExportOptions,
    Options,
    PredictOptions,
    ReportOptions,
    TrainOptions,
)

# As a shell counts it: 128 and the number of SIGINT.
INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Runs one command; its exit code."""
    try:
        options = parse_arguments(argv)
        choose_backend(options.backend)
        run(options)
    except TrainerError as error:
        print(f"trainer: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("trainer: interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    return 0


def choose_backend(name: str) -> None:
    """Tells Keras, which asks when it is imported, what to compute with.

    Raises:
        BadInput: it is not installed.
    """
    if find_spec(name) is None:
        raise BadInput(f"--backend {name}: not installed; `make train BACKEND={name}` brings it")
    os.environ["KERAS_BACKEND"] = name


def run(options: Options) -> None:
    """Checks what was given; then loads TensorFlow, which takes seconds, and starts."""
    if isinstance(options, CrossvalOptions):
        jobs = prepare_crossval(options)
        load_libraries()
        from trainer.crossval import crossvalidate

        crossvalidate(jobs)
    elif isinstance(options, TrainOptions):
        run_training(options)
    elif isinstance(options, ExportOptions):
        saved = prepare_export(options)
        load_libraries()
        from trainer.export import export

        export(saved, options.output, tuple(options.formats.split(",")))
    elif isinstance(options, ReportOptions):
        answer = prepare_report(options)
        load_libraries()
        from trainer.report import write_report

        write_report(answer, options.mistakes)
    else:
        run_answer(options)


def run_training(options: TrainOptions) -> None:
    """Trains, unless the run is complete."""
    job = prepare_training(options)
    if job.run.is_complete:
        job.display.say(f"{options.run}: this run is complete; metrics.json has its figures")
        return
    load_libraries()
    from trainer.train import train

    train(job)


def run_answer(options: EvaluateOptions | PredictOptions) -> None:
    """Evaluates or predicts."""
    answer = prepare_answer(options)
    load_libraries()
    if isinstance(options, EvaluateOptions):
        from trainer.evaluate import evaluate

        evaluate(answer, options.fit_temperature)
    else:
        from trainer.predict import predict

        predict(answer, options.output)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
