import json
from pathlib import Path

import pytest

from beam_pipeline.errors import UsageError
from beam_pipeline.options import Options
from beam_pipeline.storage import Folder
from beam_pipeline.writing.output import (
    find_manifest,
    finish_output,
    prepare_output,
    read_refusal,
    write_refusal,
)


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
    Path(options.files.output, ".ich-x.0123.partial").write_bytes(b"half")
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


def test_there_is_room_for_the_word_of_why_a_run_ended(options: Options) -> None:
    folder = Folder(options.files.output)
    prepare_output(folder, options)
    Path(options.files.output, ".ich-x.0123.partial").write_bytes(b"half")
    before = size_of(options.files.output)
    write_refusal(folder, 5, "disk full")
    assert size_of(options.files.output) < before - 50_000
    assert folder.names() == {".unfinished"}


def size_of(output: str) -> int:
    return sum(path.stat().st_size for path in Path(output).rglob("*") if path.is_file())
