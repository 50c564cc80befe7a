"""Directories that an earlier version finished, or began, taken up by this one."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from beam_pipeline.__main__ import main
from beam_pipeline.card.__main__ import main as make_card
from beam_pipeline.options import Options, fill_in
from beam_pipeline.shards import output as output_module
from beam_pipeline.shards.output import Begun, prepare_output
from beam_pipeline.shards.unfinished import Unfinished
from beam_pipeline.verify.__main__ import main as verify
from headct.stores import Folder
from tests.beam_pipeline.steps import contents
from trainer.data.shards import read_shard_directory

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning:apache_beam.*")

# What version 0.1.0 recorded, in a manifest and, alone, in `.unfinished/options.json`.
RECORDED = {
    "windows": [
        {"name": "brain", "center": 40.0, "width": 80.0},
        {"name": "subdural", "center": 80.0, "width": 200.0},
        {"name": "bone", "center": 600.0, "width": 2800.0},
    ],
    "hu": False,
    "voi": "linear_exact",
    "image_size": 32,
    "hu_repair": "auto",
    "image_id": "file_name",
    "id_column": None,
    "label_columns": [],
    "folds": 2,
    "holdout": 0.0,
    "folds_from": None,
    "group_by": "patient",
    "leak_check": "join",
    "examples_per_shard": 4,
    "seed": 0,
    "identifiers": "ordinal",
    "identifier_key_check": None,
}
SOFTWARE = {
    "beam_pipeline": "0.1.0",
    "python": "3.11.7",
    "apache-beam": "2.77.0",
    "pydicom": "3.0.2",
    "numpy": "2.4.6",
    "isal": "1.9.1",
}
COUNTS = {
    "files_seen": 33,
    "written": 30,
    "rejected": 3,
    "rejected_by_reason": {"constant_image": 1, "label_missing": 1, "not_dicom": 1},
    "repaired": {},
    "resized": 0,
    "labels_without_file": 1,
    "identical_pixels": {
        "groups": 0,
        "slices": 0,
        "groups_across_patients": 0,
        "groups_with_conflicting_labels": 0,
    },
}
LATER = ("voi", "hu", "leak_check", "group_by")  # than the first version that wrote a manifest


@pytest.fixture(scope="module")
def argv(small_data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command, without its output."""
    where = ["--input", small_data_set / "slices", "--labels", small_data_set / "labels.csv"]
    how = ["--image_size", 32, "--folds", 2, "--examples_per_shard", 4]
    return [*map(str, [*where, *how, "--max_reject_fraction", 0.1, "--workers", 1])]


@pytest.fixture(scope="module")
def recorded(argv: list[str]) -> dict[str, Any]:
    return {"input": argv[1], "labels": argv[3]} | RECORDED


@pytest.fixture(scope="module")
def fresh(argv: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of this version."""
    output = tmp_path_factory.mktemp("fresh") / "out"
    assert main([*argv, "--output", str(output)]) == 0
    return output


def age(folder: Path, recorded: dict[str, Any], without: tuple[str, ...] = ()) -> None:
    """Give a finished directory a manifest of an earlier version."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["software"], manifest["counts"] = SOFTWARE, COUNTS
    manifest["options"] = {name: recorded[name] for name in recorded if name not in without}
    del manifest["digest"]
    manifest["digest"] = digest_of(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def digest_of(manifest: dict[str, Any]) -> str:
    from beam_pipeline.shards.manifest import manifest_digest

    return manifest_digest(manifest)


@pytest.mark.parametrize("without", [(), LATER], ids=["0.1.0", "before --voi"])
def test_a_finished_directory_stays_good(
    fresh: Path,
    argv: list[str],
    recorded: dict[str, Any],
    without: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = Path(shutil.copytree(fresh, tmp_path / "out"))
    age(output, recorded, without)
    before = (output / "manifest.json").read_bytes(), contents(output)
    leak_check = ["--leak_check", "off"] if "leak_check" in without else []
    assert main([*argv, *leak_check, "--output", str(output)]) == 0
    assert "is complete: nothing to do" in capsys.readouterr().out
    shards = str(output)
    assert verify(["--shards", shards, "--source", argv[1], "--workers", "0"]) == 0
    assert make_card(["--shards", shards]) == 0
    assert read_shard_directory(output).labels[-1] == "any"
    assert ((output / "manifest.json").read_bytes(), contents(output)) == before


@pytest.fixture
def begun_before(recorded: dict[str, Any], tmp_path: Path) -> Folder:
    """A directory that version 0.1.0 began, with a shard that this one does not write."""
    folder = Folder(str(tmp_path / "out"))
    folder.write(".unfinished/options.json", json.dumps(recorded).encode())
    folder.write("ich-fold0.tfrecord-00007-of-00008", b"records")
    folder.write("rejects.jsonl", b"")
    table = pa.table({"source": ["ID_00.dcm"], "verdict": [1]})
    for name in ("listing/00000", "inventory/00000", "inventory/00007", "plan/00000"):
        Unfinished(folder).write(name, table, {"files": "many"})
    Unfinished(folder).write("written/ich-fold0.tfrecord-00007-of-00008", table)
    folder.write(".unfinished/plan.json", b"{}")
    return folder


def test_an_interrupted_directory_is_begun_again(
    begun_before: Folder, argv: list[str], fresh: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = begun_before.url
    assert main([*argv, "--output", output]) == 0
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"{output} was begun by another build (version unknown): all of it is done again"
    ]
    assert contents(Path(output)) == contents(fresh)


def test_other_options_are_said_before_another_version(
    begun_before: Folder, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, "--output", begun_before.url, "--seed", "3"]) == 2
    assert "begun with --seed 0, now it is 3; choose another" in capsys.readouterr().err
    assert begun_before.exists("ich-fold0.tfrecord-00007-of-00008")


def test_a_job_of_an_earlier_version_is_not_disturbed(
    begun_before: Folder, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    begun_before.write(".unfinished/job.json", b"{}")
    assert main([*argv, "--output", begun_before.url]) == 2
    error = capsys.readouterr().err
    assert (
        "was begun by another build (version unknown), and a job of it may still run; let" in error
    )
    assert error.count("\n") == 1
    assert begun_before.exists("ich-fold0.tfrecord-00007-of-00008")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"__version__": "9.9.9"}, "another build (version 0.1.0)"),
        ({"code_digest": lambda: "other"}, "another build (version 0.1.0)"),
    ],
)
def test_any_other_program_begins_again(
    changed: dict[str, Any],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("beam_pipeline.__version__", "0.1.0")
    options = Options.of(input="in", output=str(tmp_path))
    folder = options.files.folder
    prepare_output(folder, options)
    folder.write(".unfinished/inventory/00000.arrow", b"rows")
    prepare_output(folder, options)
    assert folder.exists(".unfinished/inventory/00000.arrow")
    assert caplog.messages == []
    for name, value in changed.items():
        place = (
            "beam_pipeline.__version__"
            if name == "__version__"
            else f"{output_module.__name__}.{name}"
        )
        monkeypatch.setattr(place, value)
    prepare_output(folder, options)
    assert not folder.exists(".unfinished/inventory/00000.arrow")
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path} was begun by {said}")


def test_code_that_decides_what_is_written_tells_builds_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(output_module.beam_pipeline.__file__).parent
    copied = Path(shutil.copytree(package, tmp_path / "copy"))
    digests = [output_module.code_digest()]
    for changed in (None, "progress.py", "dicom/slices.py", "keys.py", "planning/new.py"):
        if changed:
            with (copied / changed).open("a") as file:
                file.write("# changed\n")
        monkeypatch.setattr(output_module.beam_pipeline, "__file__", str(copied / "__init__.py"))
        output_module.code_digest.cache_clear()
        digests.append(output_module.code_digest())
    monkeypatch.undo()
    output_module.code_digest.cache_clear()
    assert [a == b for a, b in pairwise(digests)] == [
        *(True, True),
        *(False, False, False),
    ]


@pytest.mark.parametrize("damage", ["", "{", "[1]", '"text"', "{}", '{"options": 3}', "\x00" * 100])
def test_a_damaged_record_begins_again(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = Options.of(input="in", output=str(tmp_path))
    folder = options.files.folder
    prepare_output(folder, options)
    folder.write(".unfinished/options.json", damage.encode())
    folder.write("ich-test.tfrecord-00000-of-00001", b"records")
    assert prepare_output(folder, options) is None
    assert folder.names() == {".unfinished"}
    assert Begun.read(folder) == Begun.now(options)
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path} was begun by another build (version unknown): all of it")


# Options that came later, or whose default is another now


def test_what_was_not_recorded_had_the_default_of_that_version() -> None:
    filled = fill_in({"input": "in", "labels": None, "folds": 3})
    assert filled["voi"] == "linear_exact"
    assert filled["hu"] is False
    assert filled["leak_check"] == "off"
    assert filled["folds"] == 3


def test_an_earlier_default_may_give_the_bytes_of_todays() -> None:
    for name, recorded, now, same in (
        ("image_id", "file_name", "auto", True),  # today's default
        ("image_id", "file_name", "file_name", True),
        ("image_id", "file_name", "ordinal", False),
        ("image_id", "auto", "file_name", False),
        ("leak_check", "off", "join", False),
    ):
        options = Options.of(**{"input": "in", "output": "out", name: now})
        differing = options.differing(options.recorded() | {name: recorded})
        assert differing == ([] if same else [name]), (name, recorded, now)
