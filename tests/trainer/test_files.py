import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headct.errors import UsageError
from trainer import files
from trainer.files import (
    check_new_folder,
    remove_unfinished,
    this_machine,
    unfinished_path,
    write_whole,
)

DAY = 24 * 3600


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave(folder: Path, name: str, age: float = 0) -> Path:
    """An unfinished file that was last written to `age` seconds ago."""
    path = folder / name
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_the_name_in_progress_says_machine_and_process(tmp_path: Path) -> None:
    seen: list[Path] = []
    write_whole(tmp_path / "a.b.json", lambda path: (seen.append(path), path.write_text("x")))
    assert seen == [tmp_path / f".a.b-{this_machine()}-{os.getpid()}.json"]
    assert files.UNFINISHED.fullmatch(seen[0].name)


def test_of_this_machine_what_dead_processes_left_is_removed(tmp_path: Path, dead: int) -> None:
    gone = leave(tmp_path, f".model-{this_machine()}-{dead}.keras")
    mine = leave(tmp_path, unfinished_path(tmp_path / "model.keras").name, 2 * DAY)
    remove_unfinished(tmp_path)
    assert not gone.exists()
    assert mine.exists()


# A process of another machine, or of a version that did not say of which.
@pytest.mark.parametrize("machine", ["-0123abcd", ""])
def test_of_other_machines_what_is_written_to_stays(
    tmp_path: Path, dead: int, machine: str
) -> None:
    in_progress = leave(tmp_path, f".model{machine}-{dead}.keras", DAY / 2)
    abandoned = leave(tmp_path, f".history{machine}-{dead}.json", 2 * DAY)
    remove_unfinished(tmp_path)
    assert in_progress.exists()
    assert not abandoned.exists()


def test_another_name_of_the_machine_makes_another_machine(
    tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    this_machine.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(files.socket, "gethostname", lambda: "another")
        theirs = leave(tmp_path, f".model-{this_machine()}-{dead}.keras")
    this_machine.cache_clear()
    remove_unfinished(tmp_path)
    assert theirs.exists()


def test_other_hidden_files_stay(tmp_path: Path) -> None:
    others = [leave(tmp_path, name, 2 * DAY) for name in (".lock", ".in_use", ".notes.txt")]
    remove_unfinished(tmp_path)
    assert all(each.exists() for each in others)


def test_nothing_is_removed_from_a_folder_that_is_refused(tmp_path: Path) -> None:
    hidden = tmp_path / ".venv-311"
    hidden.mkdir()
    os.utime(hidden, (0, 0))
    (tmp_path / "project.toml").touch()
    with pytest.raises(UsageError, match="exists and is not empty"):
        check_new_folder(tmp_path)
    assert hidden.is_dir()
