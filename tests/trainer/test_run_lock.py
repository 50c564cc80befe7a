import errno
import fcntl
from pathlib import Path

import pytest

from headct.errors import UsageError
from trainer.runs.run_lock import held


def test_a_second_holder_is_told_of_the_first(tmp_path: Path) -> None:
    second = held(tmp_path / "run")
    with held(tmp_path / "run"), pytest.raises(UsageError, match="in use by process"):
        second.__enter__()
    with held(tmp_path / "run"):
        pass


def test_a_file_system_without_locks_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with held(tmp_path / "run"), held(tmp_path / "run"):
        pass
