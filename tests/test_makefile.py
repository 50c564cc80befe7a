"""What `make` answers before it starts anything."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
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
    done = make(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_every_variable_in_the_help_can_be_given() -> None:
    shown = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    variables = shown.partition("Variables:")[2]
    words = {word.strip(",") for word in variables.split()}
    names = {word for word in words if word.isupper()} - {"BACKEND"}
    assert {"INPUT", "SHARDS", "EPOCHS", "PRISM"} <= names
    done = make("help", *(f"{name}=1" for name in sorted(names)))
    assert done.returncode == 0, done.stderr
