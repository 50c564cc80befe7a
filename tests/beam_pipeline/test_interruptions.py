"""Runs that are killed, or run out of space, and what the next run makes of them."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from beam_pipeline.__main__ import main
from beam_pipeline.command_line import parse_options
from beam_pipeline.planning.inventory import inspect_part
from beam_pipeline.workers import Watch
from headct.stores.local import LocalStore
from tests.beam_pipeline.steps import contents

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning:apache_beam.*")  # Beam's own

KILLS, ALL_KILLS = 4, 10
SLICES = 240


@pytest.fixture(scope="module")
def command(
    tmp_path_factory: pytest.TempPathFactory, write_slice: Callable[..., Path]
) -> list[str]:
    """A run over 240 small slices, a shard for every two."""
    folder = tmp_path_factory.mktemp("slices")
    for number in range(SLICES):
        write_slice(folder / f"ID_{number}.dcm", PatientID=f"p{number // 10}")
    return command_for(folder)


def command_for(folder: Path) -> list[str]:
    options = ("--input", str(folder), "--image_size", "32", "--examples_per_shard", "2")
    return [sys.executable, "-m", "beam_pipeline", *options, "--workers", "2"]


def start(command: list[str], output: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, "--output", str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(command: list[str], output: Path) -> None:
    """Runs in this process, which has Beam already."""
    assert main([*command[3:], "--output", str(output)]) == 0


def children(pid: int) -> list[int]:
    with suppress(FileNotFoundError, ProcessLookupError):
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    return []


def workers(pid: int) -> list[int]:
    """The processes that the fork server of a run has forked."""
    return [worker for child in children(pid) for worker in children(child)]


@pytest.fixture(scope="module")
def undisturbed(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    finish(command, output)
    assert len([name for name in contents(output) if name.startswith("ich-")]) == SLICES // 2
    return contents(output)


@pytest.mark.system
def test_a_run_killed_again_and_again_ends_as_if_it_never_was(
    command: list[str], undisturbed: dict[str, bytes], tmp_path: Path, full: bool
) -> None:
    moments = random.Random(0)
    output = tmp_path / "out"
    for _ in range(ALL_KILLS if full else KILLS):
        process = start(command, output)
        time.sleep(moments.uniform(1.5, 3.5))
        process.kill()
        process.communicate(timeout=60)
        names = {path.name for path in output.iterdir()} if output.exists() else set()
        for name in names & undisturbed.keys() - {"rejects.jsonl"}:
            assert (output / name).read_bytes() == undisturbed[name]
    finish(command, output)
    assert contents(output) == undisturbed


@pytest.fixture
def parts(tmp_path: Path, write_slice: Callable[..., Path]) -> list[str]:
    """A run over as many slices as make three parts of the inventory, and one that cannot be read.

    So a part is done while others are not.
    """
    for number in range(600):
        write_slice(tmp_path / "slices" / f"ID_{number:03d}.dcm", PatientID=f"p{number // 10}")
    (tmp_path / "slices" / "ID_text.dcm").write_text("not DICOM")
    return command_for(tmp_path / "slices")


def kill_when_there_are(command: list[str], output: Path, pattern: str, count: int) -> list[Path]:
    """Kill a run that has left some tables, and tell which."""
    process = start(command, output)
    while len(list(output.glob(f".unfinished/{pattern}"))) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=60)
    return sorted(output.glob(f".unfinished/{pattern}"))


def test_what_is_known_of_files_and_written_is_not_done_again(
    parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    known = kill_when_there_are(parts, output, "inventory/*.arrow", 1)
    contents = [path.read_bytes() for path in known]
    options, _ = parse_options([*parts[3:], "--output", str(output)])
    read, sources = LocalStore.read, []

    def note(store: LocalStore, path: str, *part: Any) -> bytes:
        sources.extend([Path(path).name] if path.endswith(".dcm") else [])
        return read(store, path, *part)

    monkeypatch.setattr(LocalStore, "read", note)
    for path in known:
        inspected = inspect_part(int(path.stem), Watch(), options=options)
        assert 0 < inspected.files == inspected.reused
    assert sources == ["ID_000.dcm"] * len(known)  # the key is made of it
    assert [path.read_bytes() for path in known] == contents

    tables = kill_when_there_are(parts, output, "written/*.arrow", 50)
    written = [output / path.stem for path in tables]
    before = [path.stat() for path in written]
    finish(parts, output)
    after = [path.stat() for path in written]
    assert len(written) >= 50
    assert [(s.st_ino, s.st_mtime_ns) for s in after] == [(s.st_ino, s.st_mtime_ns) for s in before]


@pytest.mark.system
def test_a_run_goes_on_when_its_workers_are_killed(
    command: list[str], undisturbed: dict[str, bytes], tmp_path: Path, full: bool
) -> None:
    moments = random.Random(1)
    process = start(command, tmp_path / "out")
    killed = 0
    while process.poll() is None and killed < (ALL_KILLS if full else KILLS):
        # They live for a second or two: looked for all the time, killed now and then.
        found = workers(process.pid)
        if found:
            with suppress(ProcessLookupError):
                os.kill(moments.choice(found), signal.SIGKILL)
                killed += 1
            time.sleep(moments.uniform(0.1, 0.6))
        time.sleep(0.01)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert killed > 0
    assert "A worker process died; going on with another." in errors
    assert contents(tmp_path / "out") == undisturbed


@pytest.fixture(scope="module")
def movable(tmp_path_factory: pytest.TempPathFactory, write_slice: Callable[..., Path]) -> Path:
    """The folder `slices`, which tests take away, and `undisturbed`, which a run made of it."""
    folder = tmp_path_factory.mktemp("movable")
    for number in range(40):
        write_slice(folder / "slices" / f"ID_{number}.dcm", PatientID=f"p{number // 4}")
    finish([*command_for(folder / "slices"), "--max_reject_fraction=1"], folder / "undisturbed")
    return folder


MOMENTS = {
    "listing": ("listing/*.arrow", 1),
    "headers": ("inventory/*.arrow", 1),
    "plan": ("plan.json", 1),
    "first shard": ("written/*.arrow", 1),
    "later shard": ("written/*.arrow", 8),
}
SOME_OUTAGES = [("listing", False), ("later shard", True)]


@pytest.mark.parametrize(
    ("moment", "lasts"),
    [
        pytest.param(*case, marks=[] if case in SOME_OUTAGES else pytest.mark.full)
        for case in itertools.product(MOMENTS, (False, True))
    ],
)
def test_an_outage_of_the_input_costs_no_slice(
    movable: Path, tmp_path: Path, moment: str, lasts: bool
) -> None:
    """It is over after half a second, or outlasts patience: then the same command resumes."""
    output, folder, away = tmp_path / "out", movable / "slices", movable / "away"
    run = [*command_for(folder), "--max_reject_fraction=1"]
    run += ["--storage_patience=1"] if lasts else []
    pattern, count = MOMENTS[moment]
    process = start(run, output)
    while len(list(output.glob(f".unfinished/{pattern}"))) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    folder.rename(away)
    if not lasts:
        time.sleep(0.5)
        away.rename(folder)
    _, errors = process.communicate(timeout=120)
    if lasts:
        away.rename(folder)
        assert process.returncode == 5
        assert errors.splitlines()[-1].endswith("; the same command resumes")
        finish(run, output)
    else:
        assert process.returncode == 0, errors
    assert contents(output) == contents(movable / "undisturbed")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("cannot mount a small file system here: not root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_a_run_goes_on_when_there_is_space(
    command: list[str], undisturbed: dict[str, bytes], small_disk: Path
) -> None:
    process = start(command, small_disk / "out")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 5
    assert errors.startswith("beam_pipeline: error: cannot write ")
    assert errors.endswith(": No space left on device\n")
    assert errors.count("\n") == 1
    assert not list((small_disk / "out").rglob(".*.partial"))
    remount = ["mount", "-o", "remount,size=64m", str(small_disk)]
    subprocess.run(remount, check=True)
    finish(command, small_disk / "out")
    found = contents(small_disk / "out")
    assert sorted(found.items() ^ undisturbed.items()) == []
