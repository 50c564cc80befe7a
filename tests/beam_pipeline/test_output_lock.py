"""Two runs that write to one output at once."""

import errno
import fcntl
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from beam_pipeline.__main__ import main
from beam_pipeline.options import Options
from beam_pipeline.shards import output as output_module
from beam_pipeline.shards.output import (
    Begun,
    check_begun,
    lock_output,
    prepare_output,
    write_refusal,
)
from headct.errors import UsageError
from headct.layout import OPTIONS
from headct.stores import Folder


@pytest.fixture
def options(small_data_set: Path, tmp_path: Path) -> Options:
    return Options.of(input=str(small_data_set / "slices"), output=str(tmp_path / "out"))


def test_a_run_sees_whether_another_one_is_going_on(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/new/out"
    with lock_output(url) as first:
        assert first[0]
        first[1]()
        with lock_output(url) as second, lock_output(url) as third:
            assert not second[0]
            assert not third[0]
    with lock_output(url) as again:
        assert again[0]
    assert Folder(url).names() == set()


def test_a_run_waits_while_another_one_prepares_the_folder(tmp_path: Path) -> None:
    alone = []

    def start() -> None:
        with lock_output(str(tmp_path)) as second:
            alone.append(second[0])

    with lock_output(str(tmp_path)) as first:
        thread = threading.Thread(target=start)
        thread.start()
        thread.join(0.3)
        assert alone == []
        first[1]()
        thread.join(30)
        assert alone == [False]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_there_are_no_locks_runs_go_on_without(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_output(str(tmp_path)) as first, lock_output(str(tmp_path)) as second:
        assert first[0]
        assert second[0]
        first[1]()


def test_what_cannot_be_locked_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for url in ("s3://bucket/out", str(tmp_path / "file"), str(tmp_path / "file" / "out")):
        with lock_output(url) as lock:
            assert lock[0]


def test_another_run_with_the_same_options_is_let_in(options: Options) -> None:
    folder = options.files.folder
    prepare_output(folder, options)
    folder.write("report.html", b"a card that the other run has just written")
    assert prepare_output(folder, options, alone=False) is None
    assert folder.exists("report.html")
    check_begun(folder, options)


def test_no_other_run_is_let_in(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = options.files.folder
    prepare_output(folder, options)
    write_refusal(folder, 3, "refused before, as the other run may be again")
    with pytest.raises(UsageError, match=r"another run writes to .* with other options"):
        prepare_output(folder, options.changed(folds=3), alone=False)
    with pytest.raises(UsageError, match=r"another run writes to output .* now; wait for its end"):
        prepare_output(folder, options.changed(overwrite=True), alone=False)
    monkeypatch.setattr(output_module, "code_digest", lambda: "another version's")
    with pytest.raises(UsageError, match="with other options or another version; choose another"):
        prepare_output(folder, options, alone=False)
    assert folder.exists(".unfinished/refusal.json")


@pytest.mark.parametrize("folds", [5, 3])
def test_a_first_start_at_the_same_moment_is_noticed(
    options: Options, folds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a bucket, where nobody is seen: the other run begins after this one looked."""
    folder, remove_partial = options.files.folder, Folder.remove_partial

    def begin_elsewhere(folder: Folder) -> None:
        folder.add(OPTIONS, Begun.now(options.changed(folds=folds)).encode())
        remove_partial(folder)

    monkeypatch.setattr(Folder, "remove_partial", begin_elsewhere)
    if folds == 5:
        assert prepare_output(folder, options) is None
        return
    with pytest.raises(UsageError, match="another run writes to output"):
        prepare_output(folder, options)
    assert Begun.read(folder) == Begun.now(options.changed(folds=3))


@pytest.mark.parametrize("arguments", [["--folds", "3"], ["--overwrite"]])
def test_a_run_that_is_going_on_is_said_in_one_line(
    options: Options, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = options.files.output
    with lock_output(output) as lock:
        prepare_output(options.files.folder, options)
        lock[1]()
        argv = ["--input", options.files.input, "--output", output, *arguments]
        assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"beam_pipeline: error: another run writes to output {output} now")
    assert error.count("\n") == 1
    assert Begun.read(options.files.folder) == Begun.now(options)
