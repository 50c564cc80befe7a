"""What a user gets who gives what cannot be used: exit code 2 and one line, nothing written."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.__main__ import main

ROOT = Path(__file__).parents[2]
LATE = ("sklearn", "scipy", "matplotlib", "jinja2")


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
        (str(shards), "--window_jitter", "0.1"): "--window_jitter: the shards hold windowed",
        (f"{tmp_path}/\x1b[31m\n",): f"{tmp_path}/\\x1b[31m\\n: no such shard directory",
        (str(shards), "--batch_size", "41"): "--batch_size 41: there are 40 training examples",
    }
    for case, message in cases.items():
        assert main(["train", "--run", str(tmp_path / "run"), "--shards", *case]) == 2
        shown = capsys.readouterr()
        assert message in shown.err
        assert shown.err.count("\n") == 1
        assert not shown.out
    assert not (tmp_path / "run").exists()


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
    monkeypatch.setattr("trainer.native_log.find_spec", lambda _: None)
    argv = ["train", "--run", str(tmp_path / "run"), "--shards", str(shards), "--backend", "jax"]
    assert main(argv) == 2
    assert capsys.readouterr().err == (
        "trainer: --backend jax: not installed; `make train BACKEND=jax` brings it, and so does the"
        " extra `jax`: pip install 'headct-shards[jax]'\n"
    )


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


@pytest.mark.parametrize(
    "package",
    [
        *("pydantic", "rich", "psutil", "pandas", "tensorflow", "keras"),
        # These are missed only after TensorFlow was loaded.
        *(pytest.param(name, marks=pytest.mark.full) for name in LATE),
    ],
)
def test_a_package_that_is_not_installed_is_one_line_that_names_the_extra(
    package: str, shards: Path, tmp_path: Path
) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from trainer.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    argv = ["train", f"--shards={shards}", f"--run={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr == (
        f"trainer: {package} is not installed; `make train` brings it, and so does the extra"
        " `trainer`: pip install 'headct-shards[trainer]'\n"
    )
    assert done.returncode == 2
    assert not (tmp_path / "run").exists()


def test_our_own_module_that_is_missing_is_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trainer.options", None)
    monkeypatch.delitem(sys.modules, "trainer.command_line", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"trainer\.options"):
        main(["train"])
