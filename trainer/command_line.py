"""The command line of `python -m trainer`: arguments to options."""

from __future__ import annotations

from collections.abc import Sequence

from headct.declarations import choose_command, parse_flags
from trainer.options import (
    CompareOptions,
    CrossvalOptions,
    EvaluateOptions,
    ExportOptions,
    Options,
    PredictOptions,
    ReportOptions,
    TrainOptions,
)

COMMANDS: tuple[tuple[str, type[Options], str], ...] = (
    ("train", TrainOptions, "train on a shard directory, or resume a run"),
    ("crossval", CrossvalOptions, "train once for each fold, and measure all together"),
    ("evaluate", EvaluateOptions, "measure a run on a labeled split"),
    ("predict", PredictOptions, "write a submission or a table for an unlabeled split"),
    ("export", ExportOptions, "write a run's model for use elsewhere"),
    ("report", ReportOptions, "write a page with a run's curves, figures and mistakes"),
    ("compare", CompareOptions, "write a page that sets finished runs side by side"),
)


def parse_arguments(argv: Sequence[str], program: str = "python -m trainer") -> Options:
    """Return the options of the command that `argv` names.

    Raises:
        UsageError: an unknown command, flag, key or value; a flag that is missing.
        SystemExit: `--help`.
    """
    command = choose_command(argv, program, {name: text for name, _, text in COMMANDS})
    ((kind, text),) = [(kind, text) for name, kind, text in COMMANDS if name == command]
    return parse_flags(kind, argv[1:], f"{program} {command}", text)
