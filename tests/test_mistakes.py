"""What users get wrong: each command ends with one line that names it, and its exit code."""

import os
import shlex
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

import beam_pipeline.__main__
import beam_pipeline.card.__main__
import beam_pipeline.verify.__main__
import examples.sample.__main__
import trainer.__main__
from beam_pipeline.keys import KEY_VARIABLE
from tests.beam_pipeline.dicom_files import make_dicom
from tests.processes import run_python

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning:apache_beam.*")

PROGRAMS: dict[str, Callable[[Sequence[str]], int]] = {
    "beam_pipeline": beam_pipeline.__main__.main,
    "beam_pipeline.verify": beam_pipeline.verify.__main__.main,
    "beam_pipeline.card": beam_pipeline.card.__main__.main,
    "trainer": trainer.__main__.main,
    "examples.sample": examples.sample.__main__.main,
}
BEGINNINGS = {
    "beam_pipeline": "beam_pipeline: error: ",
    "beam_pipeline.verify": "verify: error: ",
    "beam_pipeline.card": "card: error: ",
    "trainer": "trainer: ",
    "examples.sample": "error: ",
}
SHORT = {
    "PREPROCESS": "beam_pipeline --input in --output out",
    "TRAIN": "trainer train --shards s --run r",
}
# A command, as for a shell, and what its line says.
MISTAKES = {
    # options of the pipeline
    "beam_pipeline": "--input is missing: folder, pattern, file or local ZIP archive of DICOM",
    "beam_pipeline --inptu in --output out": "unknown option --inptu (did you mean --input?)",
    "beam_pipeline --input in --ouput=out": "unknown option --ouput (did you mean --output?)",
    "beam_pipeline --inptu in --output out --runner flink": "(did you mean --input?)",
    "beam_pipeline in out": "unknown argument in: options start with --",
    "beam_pipeline --input '' --output out": '--input "": want a path or URL',
    "beam_pipeline --input in --output ''": '--output "": want a path or URL',
    "PREPROCESS --workers": "--workers: expected one argument",
    "PREPROCESS --workers '1; x'": "--workers 1; x: want a whole number",
    "PREPROCESS --folds ''": '--folds "": want a whole number from 2',
    "PREPROCESS --overwrite=yes": "ignored explicit argument 'yes'",
    "PREPROCESS --windows brain,": "window '' is neither name:center",
    "PREPROCESS --hu --windows brain": "--hu and --windows: choose one",
    "PREPROCESS --voi linear --hu": "--hu and --voi: choose one",
    "PREPROCESS --holdout .1": "--holdout .1: want --labels, too",
    "PREPROCESS --label_columns any": "any: want --labels, too",
    "PREPROCESS --runner spark": "SparkRunner needs --spark_master_url",
    "PREPROCESS --identifiers hash --identifier_key_file key": "needs a key of 16 bytes or more",
    # its files
    "beam_pipeline --input in --output in/out": "output in/out lies in the input in",
    "beam_pipeline --input in --output .": "--input in lies in the output .",
    "beam_pipeline --input in --output file.txt": "output file.txt is a file, not a folder",
    "beam_pipeline --input 'in\nto' --output out": "input in\\nto does not exist",
    "beam_pipeline --input bad.zip --output out": "bad.zip cannot be read as a ZIP archive",
    "beam_pipeline --input ftp://x/y --output out": "ftp://x/y: unknown kind of store ftp://",
    "beam_pipeline --input 'in/*.dicom' --output out": "input in/*.dicom holds no files",
    "PREPROCESS --labels in/0.dcm": "it is no text; save it as CSV",
    "PREPROCESS --labels in": "label file in: Is a directory",
    "PREPROCESS --labels file.txt": "file.txt: it has the columns 'hello'",
    "PREPROCESS --labels labels.csv --id_column ids": "it has the columns 'id', 'any'",
    "PREPROCESS --labels labels.csv --label_columns any,any": "two classes are called 'any'",
    "PREPROCESS --labels labels.csv --folds_from in": "in/index.parquet",
    "PREPROCESS --labels labels.csv --max_patients 4": "4 cannot fill 5 folds; want 5 or more",
    # shard directories
    "beam_pipeline.verify": "--shards is missing: shard directory",
    "beam_pipeline.verify --shard in": "unknown option --shard (did you mean --shards?)",
    "beam_pipeline.verify --shards ''": '--shards "": want a path or URL',
    "beam_pipeline.verify --shards in": "in: it is no finished shard directory",
    "beam_pipeline.verify --shards file.txt": "file.txt is a file, not a folder",
    "beam_pipeline.verify --shards in --workers -1": "--workers -1: want a whole number of at",
    "beam_pipeline.card --inptu in": "unknown option --inptu (did you mean --input?)",
    "beam_pipeline.card --shards ''": '--shards "": want a path or URL',
    "beam_pipeline.card --shards in": "in is no finished shard directory",
    # the sample
    "examples.sample": "the following arguments are required: --output",
    "examples.sample --output new --patient 3": "unrecognized arguments: --patient 3",
    "examples.sample --output new --patients many": "--patients: invalid int value: 'many'",
    "examples.sample --output file.txt": "file.txt is not a folder; choose another --output",
    # the trainer
    "trainer train --shards '' --run r": '--shards "": want a path or URL',
    "trainer train --shards s --run ''": '--run "": want a path',
    "trainer evaluate --run r --shards ''": '--shards "": want a path or URL',
    "trainer evaluate --run in": "in: no run.json, so no run directory",
    "trainer export --run in --output ''": '--output "": want a path',
    "trainer compare": "--runs is missing: run directories of finished trainings",
    "trainer compare --runs in": "--runs: must be 2 to 6 run directories, here: 1",
    "trainer": "the command is missing: want one of train, train_scans, crossval, evaluate,",
    "trainer --epochs 3 train": "the command is missing: want one of train,",
    "trainer sing": "unknown command sing: want one of train, train_scans, crossval, evaluate,",
    "trainer trian --run r": "unknown command trian (did you mean train?)",
    "trainer train": "--shards is missing: shard directory",
    "trainer train --shards s": "--run is missing: run directory: made, or resumed",
    "TRAIN --epoch 3": "unknown option --epoch (did you mean --epochs?)",
    "TRAIN --epoch=3": "unknown option --epoch (did you mean --epochs?)",
    "TRAIN --batch-size 3": "--batch-size (did you mean --batch_size?)",
    "TRAIN --xyzzy": "unknown option --xyzzy\n",
    "trainer train s --run r": "s: no such shard directory; `make preprocess` writes one",
    "trainer train --shards s --run": "--run: expected one argument",
    "TRAIN --epochs many": "--epochs many: want a whole number of at least 1",
    "TRAIN --epochs=": '--epochs "": want a whole number of at least 1',
    "TRAIN --epochs 0": "--epochs 0: want a whole number of at least 1",
    "TRAIN --epochs 2.5": "--epochs 2.5: want a whole number of at least 1",
    "TRAIN --ema 1": "--ema 1: want a number from 0 to below 1",
    "TRAIN --clip_norm inf": "--clip_norm inf: want a number of at least 0",
    "TRAIN --learning_rate 0": "--learning_rate 0: want a number above 0",
    "TRAIN --learning_rate -1": "--learning_rate -1: want a number above 0",
    "TRAIN --seed 4294967296": "want a whole number from 0 to 4294967291",
    "TRAIN --cache RAM": "--cache RAM: want one of none, ram, disk, device",
    "TRAIN --backend torch": "--backend torch: want one of tensorflow, jax",
    "TRAIN --deterministic=yes": "ignored explicit argument 'yes'",
    "TRAIN --freeze_epochs 10": "--freeze_epochs 10: want fewer than --epochs",
    "TRAIN --windows lung": "--windows 'lung': want name:center:width or",
    "TRAIN --label_weights any": "--label_weights 'any': want name=weight",
    "TRAIN --config lost.toml": "--config lost.toml: no such file",
    "trainer crossval --shards s --run r --fold 1": "unknown option --fold",
    "trainer evaluate": "--run is missing: run directory of a finished or stopped training",
    "trainer evaluate --run r --fit_temperature --temperature": "--temperature: choose one",
    "trainer evaluate --run r --fit_smooth_z --temperature": "want --fit_temperature, too",
    "trainer evaluate --run r --fit_temp": "unknown option --fit_temp (did you mean --fit_temperat",
    "trainer predict --shards s": "--run is missing: run directory of a finished or stopped",
    "trainer predict --run r --shards s --output o --batch_size 0": "--batch_size 0: want a whole",
    "trainer export --run r --output o --formats pt": "--formats pt: want some of keras, saved_mod",
    "trainer export --run r --output o --backend jax": "--backend jax: want tensorflow",
    "trainer report --run r --mistakes -1": "--mistakes -1: want a whole number of at least 0",
    "trainer report --run r --storage_patience 0": "--storage_patience 0: want a number above 0",
}
# Those that are found later, or have another exit code.
LATER = {
    "PREPROCESS --labels labels.csv --folds 4 --holdout .1": (
        2,
        "--folds 4 with --holdout: 4 patients cannot fill 4 folds and a hold-out",
    ),
    "beam_pipeline --input file.txt --output out": (3, "1 of 1 files were rejected (not_dicom 1)"),
    "PREPROCESS --runner portable --job_endpoint localhost:1": (
        1,
        "--job_endpoint localhost:1 cannot be reached: Connection refused",
    ),
    "beam_pipeline --input in --output /proc/out": (5, "/proc/out"),
    "beam_pipeline --input in --output file.txt/out": (5, "file.txt/out: Not a directory"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: four slices of four patients, their labels, and files of other kinds."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    rows = ["id,any"]
    for number in range(4):
        names = {"PatientID": f"p{number}", "SOPInstanceUID": f"1.2.{number}"}
        pixels = np.arange(1024, dtype=np.int16).reshape(32, 32) + number
        (tmp_path / "in" / f"{number}.dcm").write_bytes(make_dicom(pixels, **names))
        rows.append(f"{number},{number % 2}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "file.txt").write_text("hello")
    (tmp_path / "key").write_text("short")
    (tmp_path / "bad.zip").write_bytes(b"PK\3\4" + bytes(50))
    return tmp_path


def words_of(command: str) -> list[str]:
    """The program and its arguments."""
    first, *rest = shlex.split(command)
    return [*shlex.split(SHORT.get(first, first)), *rest]


def everything(folder: Path) -> set[Path]:
    return {*folder.rglob("*")}


def check_line(program: str, error: str, words: str) -> None:
    assert error.startswith(BEGINNINGS[program])
    assert error.count("\n") == 1
    assert words in error


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_ends_at_once_with_one_line(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *argv = words_of(command)
    before = everything(folder)
    assert PROGRAMS[program](argv) == 2
    shown = capsys.readouterr()
    check_line(program, shown.err, MISTAKES[command])
    assert not shown.out
    assert everything(folder) == before


@pytest.mark.parametrize("command", LATER)
def test_a_mistake_that_is_found_later_is_one_line_too(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *argv = words_of(command)
    code, words = LATER[command]
    # Processes that decode are started by one that may have another current folder.
    ours = {"out", *(path.name for path in folder.iterdir())}
    assert (
        PROGRAMS[program]([str(folder / each) if each in ours else each for each in argv]) == code
    )
    check_line(program, capsys.readouterr().err, words)


@pytest.mark.parametrize(
    "command",
    [
        "PREPROCESS --labels file.txt",
        "trainer evaluate --run in",
    ],
)
def test_a_process_says_no_more_than_that(command: str, folder: Path) -> None:
    check_process(command, folder)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_no_start_in_200_aborts(folder: Path) -> None:
    """More at once than there are cores: threads of libraries outlive the interpreter by chance."""
    commands = [command for command in MISTAKES if "--labels" in command]
    with ThreadPoolExecutor(4 * (os.cpu_count() or 1)) as pool:
        done = [
            pool.submit(check_process, command, folder)
            for command, _ in zip(cycle(commands), range(200), strict=False)
        ]
        for each in done:
            each.result()


def check_process(command: str, folder: Path) -> None:
    program, *argv = words_of(command)
    done = run_python("-m", program, *argv, cwd=folder, code=2)
    assert done.stdout == ""
    check_line(program, done.stderr, MISTAKES[command])
