import errno
import fcntl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headct.locks import Lock

HOLD = "import sys; from headct.locks import Lock; lock = Lock(sys.argv[1]); print(1, flush=True);"


def test_an_exclusive_lock_excludes_all_others(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "file"):
        with Lock(path) as lock:
            assert lock.is_held
            for shared in (False, True):
                with pytest.raises(BlockingIOError):
                    Lock(path, shared=shared)
        with Lock(path):
            pass


def test_shared_locks_exclude_exclusive_ones(tmp_path: Path) -> None:
    first = Lock(tmp_path)
    first.share()
    second = Lock(tmp_path, shared=True)
    with pytest.raises(BlockingIOError):
        Lock(tmp_path)
    first.release()
    second.release()
    first.release()  # a second time does nothing
    Lock(tmp_path).release()


def test_a_lock_ends_with_its_object(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    del lock
    Lock(tmp_path).release()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"{HOLD} sys.stdin.read()", str(tmp_path / "file")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(BlockingIOError):
            Lock(tmp_path / "file")
        process.kill()
        with Lock(tmp_path / "file", wait=True) as lock:
            assert lock.is_held


def test_a_file_that_was_replaced_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with Lock(path) as lock:
        assert lock.is_of(path)
        path.unlink()
        assert not lock.is_of(path)
        path.touch()
        assert not lock.is_of(path)


def test_a_file_system_without_locks_grants_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with Lock(tmp_path) as first, Lock(tmp_path) as second:
        assert not first.is_held
        assert not second.is_held
        first.share()


def test_what_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Lock(tmp_path / "absent" / "file")
