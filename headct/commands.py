"""Commands of both programs: descriptions, exit codes, and spelling in messages."""

import atexit
import gc
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import PurePath
from typing import Any, NamedTuple

from headct.errors import HeadctError, Interrupted, UsageError
from headct.printable import show_line

STARTED_BY = "HEADCT_STARTED_BY"  # an environment variable: make or headct; unset: python -m
STEP = "step"  # its value if another command starts this one, and shows the result itself


class Command(NamedTuple):
    """A command of `headct`.

    Attributes:
        module: argument of `python -m`.
        text: description of the command.
    """

    module: str
    text: str

    def load(self) -> Any:
        """Import the module that has `main` and `options_of`."""
        module = import_module(self.module)
        return import_module(f"{self.module}.__main__") if hasattr(module, "__path__") else module


COMMANDS = {
    "inspect": Command("beam_pipeline.inspection", "tell what preprocess would write and reject"),
    "preprocess": Command("beam_pipeline", "convert head-CT DICOM files to TFRecord shards"),
    "verify": Command("beam_pipeline.verify", "read a shard directory back and check all of it"),
    "card": Command("beam_pipeline.card", "make report.html, and missing descriptions for hubs"),
    "show": Command("beam_pipeline.show", "print one image's row, and write or open the image"),
    "browse": Command("headct.browse", "look through slices, and a model's mistakes, in a browser"),
    "convert": Command("headct.convert", "write shards as Parquet or WebDataset files, for hubs"),
    "train": Command("trainer", "train on a shard directory, or resume a run"),
    "train_scans": Command("trainer", "train a model of whole scans on a run's network"),
    "crossval": Command("trainer", "train once for each fold, and measure all together"),
    "evaluate": Command("trainer", "measure a run on a labeled split"),
    "predict": Command("trainer", "predict DICOM files or shards: predict RUN DATA"),
    "export": Command("trainer", "write a run's model for use elsewhere"),
    "report": Command("trainer", "write a page with a run's curves, figures and mistakes"),
    "compare": Command("trainer", "write a page that sets finished runs side by side"),
}

_INTERRUPTED = 130  # shell convention: 128 plus the number of SIGINT
_OWN = ("headct", "beam_pipeline", "trainer")

# Required options with a default in the Makefile.
_DEFAULTS_OF_MAKE = {
    "train": {"run": "out/run"},
    "predict": {"run": "out/run", "output": "out/run/submission.csv"},
    "export": {"output": "{run}/export"},
}
_LIBRARIES = {"trainer": ("tensorflow", "keras")}  # missing packages to name first
_HAVE_BACKEND = ("train", "train_scans", "crossval", "evaluate", "predict", "report")


def spell(name: str, **options: str | PurePath | Sequence[PurePath] | None) -> str:
    """Return a command line in the form that started this process.

    Args:
        name: of the command.
        options: of the command: a path, or several; None is omitted.
    """
    if name not in _HAVE_BACKEND:
        options.pop("backend", None)
    given = {option: value for option, value in options.items() if value}
    words = {option: _shell_words(value) for option, value in given.items()}
    form = os.environ.get(STARTED_BY)
    if form == "make":
        for option, value in given.items():
            if isinstance(value, list):  # make needs one word per option
                words[option] = shlex.quote(words[option])
        return " ".join(["make", name, *(f"{key.upper()}={word}" for key, word in words.items())])
    for option, default in _DEFAULTS_OF_MAKE.get(name, {}).items():
        words.setdefault(option, shlex.quote(default.format(**options)))
    module = COMMANDS[name].module
    if form == "headct":
        start = f"headct {name}"
    else:
        start = f"python -m {module}" + f" {name}" * (module == "trainer")
    return " ".join([start, *(f"--{option} {word}" for option, word in words.items())])


def is_step() -> bool:
    """Return whether another command started this one and shows the result itself."""
    return os.environ.get(STARTED_BY) == STEP


def _shell_words(value: str | PurePath | Sequence[PurePath]) -> str:
    return shlex.join(map(str, value if isinstance(value, list) else [value]))


def installation(command: str, extra: str) -> str:
    """Return how to install what an extra brings, in the form that started this process.

    Args:
        command: of make, which installs it, too.
        extra: of this package.
    """
    pip = f"pip install 'headct-shards[{extra}]'"
    if os.environ.get(STARTED_BY) == "headct":
        return pip
    return f"`make {command}` brings it, and so does the extra `{extra}`: {pip}"


@contextmanager
def on_sigterm(handler: Callable[[int, Any], Any] = signal.default_int_handler) -> Iterator[None]:
    """Handle SIGTERM while the block runs, by default as Ctrl-C, so that temporary files go.

    Only the main thread may set handlers; in another thread the block runs without one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_program(
    name: str, run: Callable[[], int | None], *, error: str = "error: ", resumes: bool = True
) -> int:
    """Run a program and return its exit code; print its errors as one line on stderr.

    Args:
        name: of the program, in messages.
        run: the program; returns its exit code, None for 0.
        error: prefix of error messages.
        resumes: whether the same command resumes after Ctrl-C.
    """
    # Otherwise the process would search all modules for garbage while it exits, for 0.3 s with Beam
    # and 1 s with TensorFlow.
    atexit.register(gc.freeze)
    stderr = sys.stderr  # a runner may replace sys.stderr
    try:
        return run() or 0
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package in ("", *_OWN):
            raise
        wanted = (*_LIBRARIES.get(name, ()), package)
        package = next((each for each in wanted if find_spec(each) is None), package)
        by_pip = "pip install headct-shards"
        remedy = installation("train", "trainer") if name == "trainer" else by_pip
        line = f"{package} is not installed; {remedy}"
        code = UsageError.exit_code
    except Interrupted as interrupted:
        line, code = str(interrupted), interrupted.exit_code
    except HeadctError as failed:
        line, code = f"{error}{failed}", failed.exit_code
    except KeyboardInterrupt:
        line, code = "interrupted" + "; the same command resumes" * resumes, _INTERRUPTED
    print(f"{name}: {show_line(line)}", file=stderr)
    return code
