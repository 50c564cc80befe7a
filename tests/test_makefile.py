"""What `make` answers before it starts anything, and what it starts."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")

# `make test` itself tells its children so.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
# Stands for the Python of a virtual environment: notes its arguments, one list a line.
NOTING_PYTHON = """\
import json, os, runpy, sys

sys.executable, notes, *arguments = sys.argv[1:]
if "make.py" in arguments:  # which splits words and starts this Python again
    sys.argv = arguments[arguments.index("make.py") :]
    runpy.run_path("make.py", run_name="__main__")
with open(notes, "a") as file:
    file.write(json.dumps(arguments) + "\\n")
"""


CLUSTER = {
    *("RUNNER", "PROJECT", "REGION", "TEMP", "IMAGE"),
    *("JOB_ENDPOINT", "FLINK_MASTER", "SPARK_MASTER", "PRISM"),
}


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@dataclass(frozen=True)
class Environment:
    """A virtual environment that is complete, of which nothing is real."""

    folder: Path

    def started(self, *arguments: str, **environment: str) -> list[list[str]]:
        """What `make` starts Python with, without the `-m` of each."""
        notes = self.folder / "notes"
        notes.unlink(missing_ok=True)
        done = make(*arguments, f"VENV={self.folder}", **environment)
        assert (done.returncode, done.stderr) == (0, "")
        lines = [json.loads(line) for line in notes.read_text().splitlines()]
        assert {line[0] for line in lines} == {"-m"}
        return [line[1:] for line in lines]


@pytest.fixture
def venv(tmp_path: Path) -> Environment:
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "noting.py").write_text(NOTING_PYTHON)
    python = folder / "bin" / "python"
    python.write_text(
        f'#!/bin/sh\nexec {sys.executable} -I -S {folder}/noting.py "$0" {folder}/notes "$@"\n'
    )
    python.chmod(0o755)
    for name in ("pipeline", "gcp", "trainer", "jax", "onnx", "dev"):
        (folder / f".{name}").touch()
    return Environment(folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["train", "EPOCH=1"],
            "EPOCH= is no variable of 'make train' (did you mean EPOCHS=?); it takes SHARDS RUN",
        ),
        (["train", "shards=out"], "'make train' (did you mean SHARDS=?); it takes"),
        (["preprocess", "LABEL=a.csv"], "(did you mean LABELS=?); it takes INPUT LABELS"),
        (["help", "XYZ=1"], "XYZ= is no variable of 'make help'; it takes VENV PYTHON."),
        (["INPUT=/data"], "INPUT= without a command: 'make' alone lists the commands"),
        (["train", "BACKEND=torch"], "BACKEND=torch: want tensorflow or jax"),
        (["predict", "RUN=a", "RUNS=b c"], "RUN= and RUNS=: give one of them"),
        # of other commands
        (["preprocess", "FOLD=3"], "FOLD= is no variable of 'make preprocess'"),
        (["preprocess", "IMAGE_SIZE=256"], '(did you mean ARGS="--image_size 256"?)'),
        (["train", "OUTPUT=out"], "OUTPUT= is no variable of 'make train'; it takes SHARDS"),
        (["crossval", "FOLD=1"], "FOLD= is no variable of 'make crossval'; it takes SHARDS"),
        (["export", "OUTPUT=x"], "OUTPUT= is no variable of 'make export'"),
        (["train", "evaluate", "OUTPUT=x"], "OUTPUT= is no variable of 'make train evaluate'"),
        # options
        (["preprocess", "FOLDS=5"], '(did you mean ARGS="--folds 5"?)'),
        (["preprocess", "FOLDS=$(5)"], '(did you mean ARGS="--folds ..."?)'),
        (["preprocess", "HU=1"], "(did you mean ARGS=--hu?)"),
        (["train", "LEARNING_RAT=1e-3"], '(did you mean ARGS="--learning_rate 1e-3"?)'),
        (["evaluate", "TTA=1"], "(did you mean ARGS=--tta?); it takes RUN RUNS SHARDS ENSEMBLE"),
        # empty
        (["preprocess", "INPUT="], "INPUT= is empty: give it a value, or leave it out"),
        (["preprocess", "OUTPUT="], "OUTPUT= is empty"),
        (["preprocess", "INPUT=x", "LABELS="], "LABELS= is empty"),
        (["train", "SHARDS= "], "SHARDS= is empty"),
        (["lint", "VENV="], "VENV= is empty"),
        (["lint", "VENV=a b"], "VENV=a b: want a path of letters, digits and . _ - + @ /"),
        (["lint", "VENV=$(x)"], "VENV=$(x): want a path of letters"),
    ],
)
def test_a_variable_that_cannot_be_ends_at_once_with_one_line(
    arguments: list[str], words: str
) -> None:
    done = make("--dry-run", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_another_folder_is_answered_with_the_way_to_this_one(tmp_path: Path) -> None:
    done = make("-C", str(tmp_path), "-f", str(ROOT / "Makefile"), "train", "RUN=x")
    assert done.returncode == 2
    assert f"want the folder of this Makefile: make -C {ROOT}/ train" in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_variable_in_the_help_can_be_given_to_its_command() -> None:
    rows = make("help").stdout.partition("Variables:\n")[2].splitlines()[:-2]
    *commands, (name, of_all) = [row.strip().split("  ", 1) for row in rows]
    assert name == "all commands"
    assert {"preprocess", "evaluate", "export"} <= {name for name, _ in commands}
    for name, variables in commands:
        names = set(variables.split() + of_all.split()) - {"BACKEND"}
        names -= {"RUN"} if "RUNS" in names else set()  # one of them
        done = make("--question", name, *(f"{each}=x" for each in sorted(names)))
        assert done.stderr == "", name


def test_the_readme_has_the_variables_of_each_command() -> None:
    rows = make("help").stdout.partition("Variables:\n")[2].splitlines()[:-3]
    taken = {name: {*variables.split()} for name, variables in (row.split(None, 1) for row in rows)}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = {
        name: {*re.findall(r"\b[A-Z]{3,}(?:_[A-Z]+)*\b", " ".join(re.findall("`(.*?)`", row)))}
        for name, row in re.findall(r"^\| `make ([a-z]+)` \| (.*) \|$", readme, re.M)
    }
    names = "verify card convert train evaluate predict report compare export"
    for name in names.split():
        assert taken[name] == shown[name] - {"FOLDER"}, name
    assert shown["preprocess"] == taken["preprocess"] - CLUSTER | {"RUNNER"}
    docs = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    assert all(f"{name}=" in docs or f"`{name}`" in docs for name in CLUSTER)


def test_commands_that_are_given_together_take_the_variables_of_all(venv: Environment) -> None:
    started = venv.started("preprocess", "train", "INPUT=in", "OUTPUT=shards", "EPOCHS=1")
    assert [each[:2] for each in started] == [
        ["beam_pipeline", "--input=in"],
        ["trainer", "train"],
    ]
    assert {"--shards=shards", "--epochs=1"} <= {*started[1]}


HOSTILE = [
    '/x"; touch made; "',
    "$(touch made)",
    "$(shell touch made)",
    "`touch made`",
    "1; touch made",
    "x\ntouch made\n",
    "' & touch made & '",
    'cost $5 "a"',
    "$$HOME ${HOME} $HOME",
    "it's",
    "-x",
    "~/100 % of #1, a=b:c|d>e*?[x] \\ ü",
]


PASSED_ON = {
    "preprocess": "INPUT LABELS OUTPUT WORKERS RUNNER PROJECT REGION TEMP IMAGE JOB_ENDPOINT "
    "FLINK_MASTER SPARK_MASTER PRISM",
    "inspect": "INPUT LABELS PAGE",
    "train": "SHARDS RUN FOLD MODEL WEIGHTS EPOCHS BATCH IMAGE_SIZE",
    "evaluate": "RUN SHARDS",
    "predict": "RUN SHARDS INPUT SUBMISSION",
    "compare": "COMPARE",
    "export": "RUN EXPORT SHARDS",
    "card": "SHARDS",
    "browse": "SHARDS RUN",
    "convert": "SHARDS FORMAT CONVERTED",
}


@pytest.mark.parametrize("command", PASSED_ON)
def test_values_reach_the_program_as_they_were_given(command: str, venv: Environment) -> None:
    names = PASSED_ON[command].split()
    values = [*islice(cycle(HOSTILE), len(names))]
    given = (f"{name}={value}" for name, value in zip(names, values, strict=True))
    (started,) = venv.started(command, *given)
    found = [each.partition("=")[2] for each in started if each.startswith("--")]
    assert sorted(found) == sorted(values)
    assert not (ROOT / "made").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--folds 3 --hu", ["--folds", "3", "--hu"]),
        ("--source '/data/my scans' \"--x=it's\"", ["--source", "/data/my scans", "--x=it's"]),
        ("--source cost\\ \\$5", ["--source", "cost $5"]),
        (
            "$(touch made) `touch made`; touch made\ntouch made",
            ["$(touch", "made)", "`touch", "made`;", "touch", "made", "touch", "made"],
        ),
        ("*.md ~ $HOME > made", ["*.md", "~", "$HOME", ">", "made"]),
        ("", []),
    ],
)
def test_args_are_words_and_never_a_command(text: str, words: list[str], venv: Environment) -> None:
    for command in ("verify", "train"):
        (started,) = venv.started(command, f"ARGS={text}")
        assert started[len(started) - len(words) :] == words
    assert not (ROOT / "made").exists()


def test_an_open_quote_is_named(venv: Environment) -> None:
    done = make("verify", "ARGS=--source it's", f"VENV={venv.folder}")
    line, _ = done.stderr.splitlines()
    assert line == """make: ARGS="--source it's": No closing quotation"""
    assert done.returncode == 2


def test_runs_may_be_quoted_and_be_patterns(venv: Environment, tmp_path: Path) -> None:
    for name in ("b", "a", "c c"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    runs = f"{tmp_path}/runs/? '{tmp_path}/runs/c c' none*"
    (started,) = venv.started("compare", f"RUNS={runs}", "ARGS=--output=page")
    found = [f"{tmp_path}/runs/{name}" for name in ("a", "b", "c c")]
    assert started[2:] == ["--output=out/compare.html", "--output=page", "--runs", *found, "none*"]
    (started,) = venv.started("evaluate", f"RUNS={runs}", "ENSEMBLE=cost $5", "ARGS=--tta")
    assert started[2:] == ["--output=cost $5", "--tta", "--run", *found, "none*"]
    (started,) = venv.started("predict", "RUNS=a b", "SHARDS=s")
    assert started[2:] == ["--shards=s", "--output=out/submission.csv", "--run", "a", "b"]


def test_variables_of_the_environment_change_nothing(venv: Environment) -> None:
    names = "INPUT OUTPUT TEMP RUN FOLD MODEL RUNNER PROJECT SHARDS ARGS RUNS VENV BACKEND SAMPLE"
    environment = dict.fromkeys(names.split(), "$(shell touch made)")
    for command in ("preprocess", "compare"):
        assert venv.started(command, **environment) == venv.started(command)
    assert not (ROOT / "made").exists()


def test_defaults(venv: Environment) -> None:
    sample, preprocess = venv.started("preprocess")
    assert sample == ["examples.sample", "--output=out/sample"]
    assert preprocess == [
        "beam_pipeline",
        "--input=out/sample/slices",
        "--labels=out/sample/labels.csv",
        "--output=out/shards",
        "--runner=local",
    ]
    assert venv.started("preprocess", "ARGS=--input x") == [
        ["beam_pipeline", "--output=out/shards", "--runner=local", "--input", "x"]
    ]
    assert venv.started("preprocess", "INPUT=x", "RUNNER=DataFlow") == [
        ["beam_pipeline", "--input=x", "--output=out/shards", "--runner=DataFlow"]
    ]
    assert venv.started("evaluate") == [["trainer", "evaluate", "--run=out/run"]]
    assert venv.started("evaluate", "SHARDS=/external", "BACKEND=jax") == [
        ["trainer", "evaluate", "--run=out/run", "--shards=/external", "--backend=jax"]
    ]
    assert venv.started("predict", "RUN=r")[0][2:] == [
        *("--run=r", "--shards=out/shards", "--output=r/submission.csv")
    ]
    assert venv.started("predict", "RUN=r", "INPUT=x")[0][2:] == [
        *("--run=r", "--input=x", "--output=r/predictions")
    ]


def test_the_demo_passes_on_what_each_command_takes(venv: Environment) -> None:
    started = venv.started("demo", "BACKEND=jax", "SAMPLE=cost $5")
    assert [" ".join(each[:2]) for each in started] == [
        "examples.sample --output=cost $5",
        "beam_pipeline --input=cost $5/slices",
        "trainer train",
        "trainer evaluate",
        "examples.sample --output=cost $5",
        "beam_pipeline --input=cost $5/test_slices",
        "trainer predict",
    ]
    assert [each[-1] for each in started if each[0] == "trainer"] == ["--backend=jax"] * 3


def test_a_kit_is_measured_by_the_machines_own_python(venv: Environment) -> None:
    python = f"PYTHON={venv.folder}/bin/python"
    (line,) = venv.started("bench-gpu", "KIT=out/a kit", "ARGS=--minutes 3", python)
    assert line == ["tests.benchmarks.gpu_kit", "measure", "out/a kit", "--minutes", "3"]
