"""What a user gets who gives what cannot be used: exit code 2 and one line, nothing written."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.__main__ import main

ROOT = Path(__file__).parents[2]


def test_bad_training_input(
    shards: Path,
    edit_manifest: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = edit_manifest(schema_version=2)
    cases = {
        (str(tmp_path / "none"),): "no such shard directory",
        (str(tmp_path),): "no manifest.json",
        (str(other),): "schema_version 2",
        (str(shards), "--fold", "7"): "--fold 7: there is no such fold",
        (str(shards), "--model", "resnet5"): "--model resnet5: want one of resnet50, ",
        (str(shards), "--image_size", "16"): "--image_size 16: resnet50 takes 32 or more",
        (str(shards), "--weights", "lost.h5"): "--weights lost.h5: no such file",
        (str(shards), "--label_weights", "x=1"): "no such label",
        (str(shards), "--windows", "brain"): "--windows: the shards hold windowed images",
        (str(shards), "--batch_size", "41"): "--batch_size 41: there are 40 training examples",
    }
    for case, message in cases.items():
        assert main(["train", "--run", str(tmp_path / "run"), "--shards", *case]) == 2
        shown = capsys.readouterr()
        assert message in shown.err
        assert shown.err.count("\n") == 1
        assert not shown.out
    assert not (tmp_path / "run").exists()


MISTAKES = {
    "": "the command is missing: want one of train, crossval, evaluate, predict,",
    "--epochs 3 train": "the command is missing: want one of train,",
    "sing": "unknown command sing: want one of train, crossval, evaluate, predict,",
    "trian --run r": "unknown command trian (did you mean train?)",
    "train": "--shards is missing: shard directory",
    "train --shards s": "--run is missing: run directory: made, or resumed",
    "train --shards s --run r --epoch 3": "unknown option --epoch (did you mean --epochs?)",
    "train --shards s --run r --epoch=3": "unknown option --epoch (did you mean --epochs?)",
    "train --shards s --run r --batch-size 3": "--batch-size (did you mean --batch_size?)",
    "train --shards s --run r --xyzzy": "unknown option --xyzzy\n",
    "train s --run r": "unknown argument s: options start with --",
    "train --shards s --run": "--run: expected one argument",
    "train --shards s --run r --epochs many": "--epochs many: want a whole number of at least 1",
    "train --shards s --run r --epochs=": '--epochs "": want a whole number of at least 1',
    "train --shards s --run r --epochs 0": "--epochs 0: want a whole number of at least 1",
    "train --shards s --run r --epochs 2.5": "--epochs 2.5: want a whole number of at least 1",
    "train --shards s --run r --ema 1": "--ema 1: want a number from 0 to below 1",
    "train --shards s --run r --clip_norm inf": "--clip_norm inf: want a number of at least 0",
    "train --shards s --run r --learning_rate 0": "--learning_rate 0: want a number above 0",
    "train --shards s --run r --learning_rate -1": "--learning_rate -1: want a number above 0",
    "train --shards s --run r --seed 4294967296": "want a whole number from 0 to 4294967291",
    "train --shards s --run r --cache RAM": "--cache RAM: want one of none, ram, disk, device",
    "train --shards s --run r --backend torch": "--backend torch: want one of tensorflow, jax",
    "train --shards s --run r --deterministic=yes": "ignored explicit argument 'yes'",
    "train --shards s --run r --freeze_epochs 10": "--freeze_epochs 10: want fewer than --epochs",
    "train --shards s --run r --windows lung": "--windows 'lung': want name:center:width or",
    "train --shards s --run r --label_weights any": "--label_weights 'any': want name=weight",
    "train --shards s --run r --config lost.toml": "--config lost.toml: no such file",
    "crossval --shards s --run r --fold 1": "unknown option --fold",
    "evaluate": "--run is missing: run directory of a finished or stopped training",
    "evaluate --run r --fit_temperature --temperature": "--temperature: choose one",
    "evaluate --run r --fit_temp": "unknown option --fit_temp (did you mean --fit_temperature?)",
    "predict --run r --shards s": "--output is missing: submission to write",
    "predict --run r --shards s --output o --batch_size 0": "--batch_size 0: want a whole number",
    "export --run r --output o --formats pt": "--formats pt: want some of keras, saved_model, onnx",
    "export --run r --output o --backend jax": "--backend jax: want tensorflow",
    "report --run r --mistakes -1": "--mistakes -1: want a whole number of at least 0",
    "report --run r --storage_patience 0": "--storage_patience 0: want a number above 0",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("trainer: ")
    assert MISTAKES[line] in shown.err
    assert shown.err.count("\n") == 1
    assert not shown.out
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "argv", [["train", "--help"], ["train", "--shards", "s", "--run", "r", "--epochs", "0"]]
)
def test_what_needs_no_network_does_not_load_one(argv: list[str]) -> None:
    code = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_module('trainer', run_name='__main__')\n"
        "finally:\n"
        "    assert 'trainer.options' in sys.modules\n"
        "    loaded = {'tensorflow', 'keras', 'jax'} & set(sys.modules)\n"
        "    print(f'loaded: {sorted(loaded)}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.endswith("loaded: []\n")
    assert done.returncode == (0 if "--help" in argv else 2)


def test_a_backend_that_is_not_installed(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("trainer.__main__.find_spec", lambda _: None)
    argv = ["train", "--run", str(tmp_path / "run"), "--shards", str(shards), "--backend", "jax"]
    assert main(argv) == 2
    error = "trainer: --backend jax: not installed; `make train BACKEND=jax` brings it\n"
    assert capsys.readouterr().err == error


def test_an_interrupt_is_one_line(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.data.shard_source.read_shard_directory", interrupt)
    assert main(["train", "--run", str(tmp_path / "run"), "--shards", str(shards)]) == 130
    assert capsys.readouterr().err == "trainer: interrupted; the same command resumes\n"
