"""What `make` answers before it starts anything."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")


# `make test` itself tells its children so.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "EPOCH=1"], "EPOCH= is no variable of this Makefile (did you mean EPOCHS=?)"),
        (
            ["train", "shards=out"],
            "shards= is no variable of this Makefile (did you mean SHA",
        ),
        (
            ["preprocess", "LABEL=a.csv"],
            "LABEL= is no variable of this Makefile (did you mean",
        ),
        (["help", "XYZ=1"], "XYZ= is no variable of this Makefile; 'make help' lists them"),
        (["train", "BACKEND=torch"], "BACKEND=torch: want tensorflow or jax"),
    ],
)
def test_a_mistyped_variable_ends_at_once_with_one_line(arguments: list[str], words: str) -> None:
    done = make("--dry-run", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_every_variable_in_the_help_can_be_given() -> None:
    shown = make("help").stdout
    variables = shown.partition("Variables:")[2]
    words = {word.strip(",") for word in variables.split()}
    names = {word for word in words if word.isupper()} - {"BACKEND"}
    assert {"INPUT", "SHARDS", "EPOCHS", "PRISM"} <= names
    done = make("--dry-run", "help", *(f"{name}=1" for name in sorted(names)))
    assert done.returncode == 0, done.stderr
