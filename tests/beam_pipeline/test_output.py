"""The life of an output folder."""

import errno
import fcntl
import json
import os
import re
import shutil
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
    describe_run,
    find_manifest,
    finish_output,
    lock_output,
    prepare_output,
    read_refusal,
    record_start,
    write_refusal,
)
from headct.errors import OutputError, UsageError
from headct.layout import CARD, FILES, OPTIONS, README, ShardFile
from headct.stores import Folder

PARTIAL = f".manifest.json.{'0123abcd' * 4}.partial"  # of a process that was killed


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options.of(input="in", output=str(tmp_path / "out"))


@pytest.fixture
def folder(options: Options) -> Folder:
    return options.files.folder


def complete(folder: Folder, options: Options) -> None:
    manifest = {"schema_version": 1, "options": options.recorded()}
    folder.write("manifest.json", json.dumps(manifest).encode())
    folder.write("ich-test.tfrecord-00000-of-00001", b"")
    folder.write("report.html", b"a card")


def test_a_new_folder_is_begun_and_may_be_gone_on_with(options: Options, folder: Folder) -> None:
    assert prepare_output(folder, options) is None
    folder.write("ich-test.tfrecord-00000-of-00001", b"")
    Path(options.files.output, PARTIAL).write_bytes(b"half")
    assert prepare_output(folder, options.changed(workers=5)) is None
    assert folder.names() == {".unfinished", "ich-test.tfrecord-00000-of-00001"}


def test_tables_of_an_unfinished_folder_are_kept_until_it_is_finished(
    options: Options, folder: Folder
) -> None:
    prepare_output(folder, options)
    folder.write(".unfinished/inventory/00000.arrow", b"rows")
    prepare_output(folder, options)
    write_refusal(folder, 5, "disk full")
    prepare_output(folder, options)
    assert folder.read(".unfinished/inventory/00000.arrow") == b"rows"
    finish_output(folder)
    assert folder.names() == set()


def test_tables_of_an_unfinished_folder_are_not_for_a_new_beginning(
    options: Options, folder: Folder
) -> None:
    prepare_output(folder, options)
    folder.write(".unfinished/inventory/00000.arrow", b"rows")
    prepare_output(folder, options.changed(overwrite=True))
    assert not folder.exists(".unfinished/inventory/00000.arrow")


def test_another_key_gives_other_ids(options: Options, folder: Folder) -> None:
    prepare_output(folder, options.changed(identifier_key_check="0123"))
    with pytest.raises(UsageError, match="begun with another identifier key; choose another"):
        prepare_output(folder, options.changed(identifier_key_check="4567"))


def test_other_options_do_not_mix_with_what_was_begun(options: Options, folder: Folder) -> None:
    prepare_output(folder, options)
    other = options.changed(folds=3)
    with pytest.raises(UsageError, match="begun with --folds 5, now it is 3; choose another"):
        prepare_output(folder, other)
    assert prepare_output(folder, other.changed(overwrite=True)) is None


INVENTORY = ".unfinished/inventory/00000.arrow"


def begin_and_refuse(options: Options) -> Folder:
    """A folder that a run has begun, and refused to finish after it read the headers."""
    folder = Folder(options.files.output)
    prepare_output(folder, options)
    for name in (INVENTORY, ".unfinished/plan.json", ".unfinished/job.json", "report.html"):
        folder.write(name, b"{}")
    write_refusal(folder, 3, "too many rejects")
    return folder


@pytest.mark.parametrize(
    ("changed", "keeps_headers"),
    [
        ({"labels": "right.csv", "label_columns": "any"}, True),
        ({"folds": 3, "seed": 1, "examples_per_shard": 8}, True),
        ({"hu": True, "image_size": 64}, True),
        ({"image_id": "sop_instance_uid"}, False),
        ({"leak_check": "off", "folds": 3}, False),
        ({"input": "elsewhere"}, False),
    ],
)
def test_the_corrected_command_is_accepted_after_a_refusal(
    options: Options, changed: dict[str, Any], keeps_headers: bool
) -> None:
    folder = begin_and_refuse(options)
    options = options.changed(**changed)
    assert prepare_output(folder, options) is None
    assert folder.exists(INVENTORY) is keeps_headers
    assert not any(map(folder.exists, (".unfinished/plan.json", ".unfinished/job.json")))
    assert not folder.exists("report.html")
    assert read_refusal(folder) is None
    with pytest.raises(UsageError, match="begun with"):  # as it is begun now
        prepare_output(folder, options.changed(seed=7))


@pytest.mark.parametrize(
    "name", ["ich-test.tfrecord-00000-of-00001", ".unfinished/written/ich-test.arrow"]
)
def test_other_options_are_refused_once_there_is_a_shard(options: Options, name: str) -> None:
    folder = begin_and_refuse(options)
    folder.write(name, b"")
    with pytest.raises(UsageError, match="begun with --folds 5, now it is 3; choose another"):
        prepare_output(folder, options.changed(folds=3))
    assert folder.exists(INVENTORY)
    assert read_refusal(folder) is not None
    assert prepare_output(folder, options) is None


@pytest.mark.parametrize("name", ["manifest.json", ".unfinished/options.json"])
def test_a_folder_that_cannot_be_read_is_said(
    options: Options, folder: Folder, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_output(folder, options)
    folder.write(name, b"{}")
    read = Folder.read

    def refuse(folder: Folder, path: str, length: int | None = None) -> bytes:
        if path == name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(folder, path, length)

    monkeypatch.setattr(Folder, "read", refuse)
    with pytest.raises(OutputError, match=r"^output .*out cannot be read: Permission denied$"):
        prepare_output(folder, options)


def test_a_folder_that_cannot_be_cleared_is_said(
    options: Options, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_output(folder, options)

    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(OutputError, match=r"^cannot remove .unfinished in .*: Permission denied$"):
        prepare_output(folder, options.changed(overwrite=True))


def test_a_complete_folder_is_found_again(options: Options, folder: Folder) -> None:
    complete(folder, options)
    manifest = prepare_output(folder, options)
    assert manifest is not None
    assert manifest["options"] == options.recorded()
    with pytest.raises(UsageError, match="begun with --seed 0, now it is 1"):
        prepare_output(folder, options.changed(seed=1))


def test_what_a_killed_run_did_not_remove_of_a_complete_folder_is_removed(
    options: Options, folder: Folder
) -> None:
    complete(folder, options)
    folder.write(".unfinished/written/some-shard.arrow", b"rows")
    assert prepare_output(folder, options) is not None
    assert ".unfinished" not in folder.names()


def test_overwrite_begins_anew(options: Options, folder: Folder) -> None:
    complete(folder, options)
    assert prepare_output(folder, options.changed(overwrite=True)) is None
    assert folder.names() == {".unfinished"}


def test_a_new_beginning_that_is_killed_leaves_nothing_that_looks_complete(
    options: Options, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(folder, options)
    remove, removed = Folder.remove, []

    def remove_one(folder: Folder, name: str) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(name)
        remove(folder, name)

    monkeypatch.setattr(Folder, "remove", remove_one)
    with pytest.raises(KeyboardInterrupt):
        prepare_output(folder, options.changed(overwrite=True))
    assert find_manifest(folder) is None


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_left_alone(
    options: Options, folder: Folder, overwrite: bool
) -> None:
    folder.write("thesis.tex", b"precious")
    with pytest.raises(UsageError, match=r"holds something else \(thesis.tex\)"):
        prepare_output(folder, options.changed(overwrite=overwrite))
    assert folder.read("thesis.tex") == b"precious"


# Each with a file to find again; a folder stands for all that holds one.
FOREIGN = [
    "ich-annotations/readers.csv",
    "ich-raw/ID_0.dcm",
    "ich-notes.txt",
    "ich-fold0.tfrecord-00000-of-00001/notes.txt",
    "ich-fold0.tfrecord-00000-of-00001.bak",
    "ich-fold0.tfrecord-00001-of-00001",
    "ich-fold0.tfrecord-0-of-1",
    "ich-fold007.tfrecord-00000-of-00001",
    "ich-validation.tfrecord-00000-of-00001",
    "ich-test.tfrecord-00000-of-00001-old",
    "manifest.json/precious",
    ".unfinished.bak/options.json",
    ".notes.partial",
    f".notes.txt.{'0123abcd' * 4}.partial",
    "Manifest.json",
]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", FOREIGN)
def test_nothing_is_own_but_files_that_the_contract_names(
    options: Options, folder: Folder, name: str, overwrite: bool
) -> None:
    complete(folder, options)
    if Path(folder.url, name).parts[-2] == "manifest.json":
        folder.remove("manifest.json")
    folder.write(name, b"precious")
    first = re.escape(Path(name).parts[0])
    with pytest.raises(UsageError, match=rf"holds something else \({first}/?\); choose another"):
        prepare_output(folder, options.changed(overwrite=overwrite))
    assert folder.read(name) == b"precious"
    assert folder.exists("ich-test.tfrecord-00000-of-00001")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name", [".unfinished", "ich-test.tfrecord-00000-of-00002", "index.parquet"]
)
def test_a_link_to_a_folder_is_not_own(
    options: Options, folder: Folder, name: str, overwrite: bool, tmp_path: Path
) -> None:
    Folder(str(tmp_path / "elsewhere")).write("thesis.tex", b"precious")
    Path(folder.url).mkdir()
    Path(folder.url, name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=rf"holds something else \({re.escape(name)}/?\)"):
        prepare_output(folder, options.changed(overwrite=overwrite))
    assert (tmp_path / "elsewhere" / "thesis.tex").read_bytes() == b"precious"
    assert Path(folder.url, name).is_symlink()


def test_all_that_a_run_may_leave_is_own(options: Options, folder: Folder) -> None:
    splits = ("fold0", "fold10", "fold99", "holdout", "test")
    for name in (*(ShardFile(split, 3, 123_456).name for split in splits), *FILES, CARD, PARTIAL):
        folder.write(name, b"{")  # a manifest that is damaged, too
    folder.write(".unfinished/inventory/00000.arrow", b"rows")
    assert prepare_output(folder, options.changed(overwrite=True)) is None
    assert folder.names() == {".unfinished"}


def test_a_readme_alone_is_not_own(options: Options, folder: Folder) -> None:
    folder.write(README, b"notes on a project")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"holds something else \(README.md\)"):
            prepare_output(folder, options.changed(overwrite=overwrite))
    assert folder.read(README) == b"notes on a project"


def test_the_manifest_of_another_program_is_not_overwritten(
    options: Options, folder: Folder
) -> None:
    folder.write("manifest.json", b'{"name": "an extension of a browser"}')
    with pytest.raises(UsageError, match="is not a shard directory's manifest"):
        prepare_output(folder, options.changed(overwrite=True))
    assert folder.names() == {"manifest.json"}


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema_version": 1}'])
def test_another_manifest_is_refused(folder: Folder, text: str) -> None:
    folder.write("manifest.json", text.encode())
    with pytest.raises(UsageError, match="is not a shard directory's manifest"):
        find_manifest(folder)


def test_why_a_run_ended_is_left_for_the_next_reader(options: Options, folder: Folder) -> None:
    assert read_refusal(folder) is None
    write_refusal(folder, 3, "too many")
    refusal = read_refusal(folder)
    assert refusal is not None
    assert (refusal.exit_code, str(refusal)) == (3, "too many")
    prepare_output(folder, options)
    assert read_refusal(folder) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"exit_code": "x", "message": ""}'])
def test_a_damaged_refusal_is_none(folder: Folder, text: str) -> None:
    folder.write(".unfinished/refusal.json", text.encode())
    assert read_refusal(folder) is None


def test_there_is_room_for_the_word_of_why_a_run_ended(options: Options, folder: Folder) -> None:
    prepare_output(folder, options)
    Path(options.files.output, PARTIAL).write_bytes(b"half")
    before = size_of(options.files.output)
    write_refusal(folder, 5, "disk full")
    assert size_of(options.files.output) < before - 50_000
    assert folder.names() == {".unfinished"}


def size_of(output: str) -> int:
    return sum(path.stat().st_size for path in Path(output).rglob("*") if path.is_file())


# Two runs that write to one output at once


@pytest.fixture
def real_options(small_data_set: Path, tmp_path: Path) -> Options:
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


def test_another_run_with_the_same_options_is_let_in(real_options: Options) -> None:
    folder = real_options.files.folder
    prepare_output(folder, real_options)
    folder.write("report.html", b"a card that the other run has just written")
    assert prepare_output(folder, real_options, alone=False) is None
    assert folder.exists("report.html")
    check_begun(folder, real_options)


def test_no_other_run_is_let_in(real_options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = real_options.files.folder
    prepare_output(folder, real_options)
    write_refusal(folder, 3, "refused before, as the other run may be again")
    with pytest.raises(UsageError, match=r"another run writes to .* with other options"):
        prepare_output(folder, real_options.changed(folds=3), alone=False)
    with pytest.raises(UsageError, match=r"another run writes to output .* now; wait for its end"):
        prepare_output(folder, real_options.changed(overwrite=True), alone=False)
    monkeypatch.setattr(output_module, "code_digest", lambda: "another version's")
    with pytest.raises(UsageError, match="with other options or another version; choose another"):
        prepare_output(folder, real_options, alone=False)
    assert folder.exists(".unfinished/refusal.json")


@pytest.mark.parametrize("folds", [5, 3])
def test_a_first_start_at_the_same_moment_is_noticed(
    real_options: Options, folds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a bucket, where nobody is seen: the other run begins after this one looked."""
    folder, remove_partial = real_options.files.folder, Folder.remove_partial

    def begin_elsewhere(folder: Folder) -> None:
        folder.add(OPTIONS, Begun.now(real_options.changed(folds=folds)).encode())
        remove_partial(folder)

    monkeypatch.setattr(Folder, "remove_partial", begin_elsewhere)
    if folds == 5:
        assert prepare_output(folder, real_options) is None
        return
    with pytest.raises(UsageError, match="another run writes to output"):
        prepare_output(folder, real_options)
    assert Begun.read(folder) == Begun.now(real_options.changed(folds=3))


@pytest.mark.parametrize("arguments", [["--folds", "3"], ["--overwrite"]])
def test_a_run_that_is_going_on_is_said_in_one_line(
    real_options: Options, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = real_options.files.output
    with lock_output(output) as lock:
        prepare_output(real_options.files.folder, real_options)
        lock[1]()
        argv = ["--input", real_options.files.input, "--output", output, *arguments]
        assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"beam_pipeline: error: another run writes to output {output} now")
    assert error.count("\n") == 1
    assert Begun.read(real_options.files.folder) == Begun.now(real_options)


# Starts of a run, for the manifest


def test_starts_are_counted(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert describe_run(folder) is None
    record_start(folder, "local")
    record_start(folder, "FlinkRunner")
    run = describe_run(folder)
    assert run is not None
    assert (run["runner"], run["starts"]) == ("FlinkRunner", 2)
    assert 0 <= run["seconds"] < 60
    (tmp_path / ".unfinished" / "starts.json").write_bytes(b"[{")  # after a power failure
    assert describe_run(folder) is None
