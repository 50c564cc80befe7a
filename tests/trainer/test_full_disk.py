"""Disks that are full, or take nothing: one line, the exit code, and nothing half-written."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py
import pyarrow
import pytest
import tensorflow as tf

from headct.errors import StorageError, UsageError
from tests.trainer import small_network
from tests.trainer.test_other_processes import read
from trainer.__main__ import main
from trainer.files import full_disk_reported
from trainer.networks.hardware import device_errors_reported

KILOBYTE = 1024


@pytest.fixture(scope="module", autouse=True)
def one_convolution_for_all() -> Iterator[None]:
    """Runs of a few kilobytes, with --full too: the disks are made for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_network.MAKER, small_network.one_convolution)
        yield


@contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """A file system of 2 MB; a process of its own unmounts it, even if this one is killed."""
    script = 'mount -t tmpfs -o size=2m tmpfs "$1" || exit; echo; read -r _; umount -l "$1"'
    with subprocess.Popen(
        ["sh", "-c", script, "sh", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as holder:
        assert holder.stdout
        if not holder.stdout.readline():
            pytest.skip("cannot mount a small file system here: not root")
        yield


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(folder):
        yield folder


def fill(disk: Path, left: int) -> None:
    """Leaves some bytes free."""
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - left))


def files_of(folder: Path) -> set[str]:
    """Not TensorBoard's, which are whole up to the last event that had room."""
    found = (each.relative_to(folder) for each in folder.rglob("*"))
    return {str(each) for each in found if each.name != ".lock" and "tensorboard" not in str(each)}


@pytest.fixture(scope="module")
def small(shards: Path, tiny: dict[str, Any], made_once: Callable[..., Path]) -> Path:
    """A finished run."""

    def make(run: Path) -> None:
        options = tiny | {"epochs": 1, "shards": shards, "run": run}
        flags = [f"--{name}={value}" for name, value in options.items()]
        assert main(["train", *flags, "--no-report"]) == 0

    return made_once("small", make)


def commands(run: Path, other: Path, shards: Path, output: Path) -> dict[str, list[str]]:
    """Each command that writes, into `run` or `output`."""
    export = ["export", f"--run={other}", f"--output={output / 'e'}"]
    tiny = ["--model=smallresnet", "--weights=none", "--image_size=32", "--batch_size=8"]
    return {
        "evaluate": ["evaluate", f"--run={run}", "--tta"],
        "report": ["report", f"--run={run}"],
        "predict": [
            *("predict", f"--run={other}", f"--shards={shards}", f"--output={output / 's.csv'}")
        ],
        "keras": [*export, "--formats=keras"],
        "saved_model": [*export, "--formats=saved_model"],
        "onnx": [*export, "--formats=onnx"],
        "compare": [
            *("compare", "--runs", str(other), str(other), f"--output={output / 'compare.html'}")
        ],
        "train": ["train", f"--shards={shards}", f"--run={output / 'new'}", *tiny],
        "crossval": ["crossval", f"--shards={shards}", f"--run={output / 'all'}", *tiny],
    }


NAMES = [*commands(Path(), Path(), Path(), Path())]
SOME = ("evaluate", "report", "saved_model", "compare")


@pytest.mark.usefixtures("without_curves")
@pytest.mark.parametrize(
    "name", [each if each in SOME else pytest.param(each, marks=pytest.mark.full) for each in NAMES]
)
def test_a_full_disk_ends_each_command_with_one_line(
    small: Path, shards: Path, disk: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(small, disk / "run"))
    before = files_of(disk)
    fill(disk, left=0)
    command = commands(run, small, shards, disk)[name]
    assert main(command) == 5
    error = capsys.readouterr().err
    assert error.startswith("trainer: cannot write ")
    assert error.endswith(": No space left on device; the same command resumes\n")
    assert error.count("\n") == 1
    begun = {"new", "new/checkpoints", "all", "all/fold0", "all/fold0/checkpoints"}
    assert files_of(disk) - before - {"filler"} <= begun
    (disk / "filler").unlink()
    if name not in ("train", "crossval"):  # below
        assert main(command) == 0


@pytest.fixture(scope="module")
def undisturbed(
    shards: Path, tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], Path]:
    """A command without its run, and the run that it makes where there is space."""
    options = tiny | {"shards": shards, "checkpoint_steps": 1}
    flags = (f"--{name}={value}" for name, value in options.items())
    command = ["train", "--deterministic", "--no-report", *flags]
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main([*command, f"--run={run}"]) == 0
    return command, run


# Where the first model has no room; where others of the run's files have none.
@pytest.mark.parametrize(
    "left", [64, *(pytest.param(n, marks=pytest.mark.full) for n in (8, 16, 32, 96, 128, 160))]
)
def test_training_goes_on_when_there_is_space(
    undisturbed: tuple[list[str], Path], disk: Path, left: int, capsys: pytest.CaptureFixture[str]
) -> None:
    command, whole = [*undisturbed[0], f"--run={disk / 'run'}"], undisturbed[1]
    fill(disk, left * KILOBYTE)
    assert main(command) == 5
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert error.count("\n") == 1
    (disk / "filler").unlink()
    assert main(command) == 0
    for name in ("history.json", "metrics.json"):
        assert read(disk / "run" / name) == read(whole / name)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Makes a folder read-only, for root too."""
    with ExitStack() as mounts:

        def make(folder: Path) -> None:
            if os.geteuid():
                folder.chmod(0o555)
                return
            copy = shutil.copytree(folder, tmp_path / "copy")
            mounts.enter_context(mounted(folder))
            shutil.copytree(copy, folder, dirs_exist_ok=True)
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)

        yield make


@pytest.mark.parametrize("name", NAMES)
def test_a_read_only_folder_is_refused_at_the_start(
    small: Path,
    shards: Path,
    tmp_path: Path,
    name: str,
    read_only: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    run = Path(shutil.copytree(small, folder / "run"))
    read_only(folder)
    before = files_of(folder)

    def too_late() -> None:
        raise AssertionError("nothing is loaded, much less computed")

    monkeypatch.setattr("trainer.command_line.load_libraries", too_late)
    assert main(commands(run, small, shards, folder)[name]) == 2
    error = capsys.readouterr().err
    option = "--run" if name in ("evaluate", "report", "train", "crossval") else "--output"
    assert error.startswith(f"trainer: {option} {folder}")
    assert ": cannot be written (" in error
    assert error.count("\n") == 1
    assert files_of(folder) == before


def test_a_complete_run_may_be_read_only(
    small: Path,
    shards: Path,
    tiny: dict[str, Any],
    tmp_path: Path,
    read_only: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Path(shutil.copytree(small, tmp_path / "run"))
    read_only(run)
    flags = [f"--{name}={value}" for name, value in (tiny | {"epochs": 1}).items()]
    assert main(["train", f"--shards={shards}", f"--run={run}", *flags]) == 0
    assert "this run is complete" in capsys.readouterr().out


def arrow_error(path: Path) -> None:
    with pyarrow.OSFile(str(path), "wb") as file:
        file.write(bytes(1 << 20))


def hdf5_error(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["a"] = bytes(1 << 20)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "Python": lambda path: path.write_bytes(bytes(1 << 20)),
    "TensorFlow": lambda path: tf.io.write_file(str(path), bytes(1 << 20)),
    "HDF5": hdf5_error,
    "Arrow": arrow_error,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_known_whoever_writes(disk: Path, writer: str) -> None:
    fill(disk, left=0)
    with (
        pytest.raises(StorageError, match="cannot write x: No space left on device"),
        full_disk_reported(Path("x")),
        device_errors_reported(),
    ):
        WRITERS[writer](disk / "file")


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_quotas_and_limits_are_full_disks(kind: int) -> None:
    words = os.strerror(kind)
    causes = (
        OSError(kind, words, "file"),
        OSError(f"Can't write data (file write failed: errno = {kind}, error message = '{words}')"),
        tf.errors.ResourceExhaustedError(None, None, f"run/events; {words}"),
    )
    for cause in causes:
        with pytest.raises(StorageError, match=words), full_disk_reported():
            raise cause


def test_other_failures_stay_what_they_are() -> None:
    for cause in (ValueError("no space"), OSError(errno.ENOENT, "none"), UsageError("x")):
        with pytest.raises(type(cause)) as raised, full_disk_reported():
            raise cause
        assert raised.value is cause
    with pytest.raises(UsageError, match="too little memory"), device_errors_reported():
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
