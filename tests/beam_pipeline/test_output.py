import errno
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from beam_pipeline.options import Options
from beam_pipeline.shards.output import (
    find_manifest,
    finish_output,
    prepare_output,
    read_refusal,
    write_refusal,
)
from headct.errors import OutputError, UsageError
from headct.layout import CARD, FILES, ShardFile
from headct.stores import Folder

PARTIAL = f".manifest.json.{'0123abcd' * 4}.partial"  # of a process that was killed


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options.of(input="in", output=str(tmp_path / "out"))


def complete(folder: Folder, options: Options) -> None:
    manifest = {"schema_version": 1, "options": options.recorded()}
    folder.write("manifest.json", json.dumps(manifest).encode())
    folder.write("ich-test.tfrecord-00000-of-00001", b"")
    folder.write("report.html", b"a card")


def test_a_new_folder_is_begun_and_may_be_gone_on_with(options: Options) -> None:
    folder = Folder(options.files.output)
    assert prepare_output(folder, options) is None
    folder.write("ich-test.tfrecord-00000-of-00001", b"")
    Path(options.files.output, PARTIAL).write_bytes(b"half")
    assert prepare_output(folder, options.changed(workers=5)) is None
    assert folder.names() == {".unfinished", "ich-test.tfrecord-00000-of-00001"}


def test_tables_of_an_unfinished_folder_are_kept_until_it_is_finished(options: Options) -> None:
    folder = Folder(options.files.output)
    prepare_output(folder, options)
    folder.write(".unfinished/inventory/00000.arrow", b"rows")
    prepare_output(folder, options)
    write_refusal(folder, 5, "disk full")
    prepare_output(folder, options)
    assert folder.read(".unfinished/inventory/00000.arrow") == b"rows"
    finish_output(folder)
    assert folder.names() == set()


def test_tables_of_an_unfinished_folder_are_not_for_a_new_beginning(options: Options) -> None:
    folder = Folder(options.files.output)
    prepare_output(folder, options)
    folder.write(".unfinished/inventory/00000.arrow", b"rows")
    prepare_output(folder, options.changed(overwrite=True))
    assert not folder.exists(".unfinished/inventory/00000.arrow")


def test_another_key_gives_other_ids(options: Options) -> None:
    folder = Folder(options.files.output)
    prepare_output(folder, options.changed(identifier_key_check="0123"))
    with pytest.raises(UsageError, match="begun with another identifier key; choose another"):
        prepare_output(folder, options.changed(identifier_key_check="4567"))


def test_other_options_do_not_mix_with_what_was_begun(options: Options) -> None:
    folder = Folder(options.files.output)
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
    options: Options, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(options.files.output)
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
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(options.files.output)
    prepare_output(folder, options)

    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(OutputError, match=r"^cannot remove .unfinished in .*: Permission denied$"):
        prepare_output(folder, options.changed(overwrite=True))


def test_a_complete_folder_is_found_again(options: Options) -> None:
    folder = Folder(options.files.output)
    complete(folder, options)
    manifest = prepare_output(folder, options)
    assert manifest is not None
    assert manifest["options"] == options.recorded()
    with pytest.raises(UsageError, match="begun with --seed 0, now it is 1"):
        prepare_output(folder, options.changed(seed=1))


def test_what_a_killed_run_did_not_remove_of_a_complete_folder_is_removed(
    options: Options,
) -> None:
    folder = Folder(options.files.output)
    complete(folder, options)
    folder.write(".unfinished/written/some-shard.arrow", b"rows")
    assert prepare_output(folder, options) is not None
    assert ".unfinished" not in folder.names()


def test_overwrite_begins_anew(options: Options) -> None:
    folder = Folder(options.files.output)
    complete(folder, options)
    assert prepare_output(folder, options.changed(overwrite=True)) is None
    assert folder.names() == {".unfinished"}


def test_a_new_beginning_that_is_killed_leaves_nothing_that_looks_complete(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(options.files.output)
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
def test_a_folder_of_something_else_is_left_alone(options: Options, overwrite: bool) -> None:
    folder = Folder(options.files.output)
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
    options: Options, name: str, overwrite: bool
) -> None:
    folder = Folder(options.files.output)
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
    options: Options, name: str, overwrite: bool, tmp_path: Path
) -> None:
    folder = Folder(options.files.output)
    Folder(str(tmp_path / "elsewhere")).write("thesis.tex", b"precious")
    Path(folder.url).mkdir()
    Path(folder.url, name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=rf"holds something else \({re.escape(name)}/?\)"):
        prepare_output(folder, options.changed(overwrite=overwrite))
    assert (tmp_path / "elsewhere" / "thesis.tex").read_bytes() == b"precious"
    assert Path(folder.url, name).is_symlink()


def test_all_that_a_run_may_leave_is_own(options: Options) -> None:
    folder = Folder(options.files.output)
    splits = ("fold0", "fold10", "fold99", "holdout", "test")
    for name in (*(ShardFile(split, 3, 123_456).name for split in splits), *FILES, CARD, PARTIAL):
        folder.write(name, b"{")  # a manifest that is damaged, too
    folder.write(".unfinished/inventory/00000.arrow", b"rows")
    assert prepare_output(folder, options.changed(overwrite=True)) is None
    assert folder.names() == {".unfinished"}


def test_the_manifest_of_another_program_is_not_overwritten(options: Options) -> None:
    folder = Folder(options.files.output)
    folder.write("manifest.json", b'{"name": "an extension of a browser"}')
    with pytest.raises(UsageError, match="is not a shard directory's manifest"):
        prepare_output(folder, options.changed(overwrite=True))
    assert folder.names() == {"manifest.json"}


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema_version": 1}'])
def test_another_manifest_is_refused(options: Options, text: str) -> None:
    folder = Folder(options.files.output)
    folder.write("manifest.json", text.encode())
    with pytest.raises(UsageError, match="is not a shard directory's manifest"):
        find_manifest(folder)


def test_why_a_run_ended_is_left_for_the_next_reader(options: Options) -> None:
    folder = Folder(options.files.output)
    assert read_refusal(folder) is None
    write_refusal(folder, 3, "too many")
    refusal = read_refusal(folder)
    assert refusal is not None
    assert (refusal.exit_code, str(refusal)) == (3, "too many")
    prepare_output(folder, options)
    assert read_refusal(folder) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"exit_code": "x", "message": ""}'])
def test_a_damaged_refusal_is_none(options: Options, text: str) -> None:
    folder = Folder(options.files.output)
    folder.write(".unfinished/refusal.json", text.encode())
    assert read_refusal(folder) is None


def test_there_is_room_for_the_word_of_why_a_run_ended(options: Options) -> None:
    folder = Folder(options.files.output)
    prepare_output(folder, options)
    Path(options.files.output, PARTIAL).write_bytes(b"half")
    before = size_of(options.files.output)
    write_refusal(folder, 5, "disk full")
    assert size_of(options.files.output) < before - 50_000
    assert folder.names() == {".unfinished"}


def size_of(output: str) -> int:
    return sum(path.stat().st_size for path in Path(output).rglob("*") if path.is_file())
