"""What a user sees: exit codes and the one line that says why."""

import dataclasses
import json
from pathlib import Path

import pytest

from beam_pipeline.__main__ import main

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning:apache_beam.*")


def arguments(data_set: Path, output: object, **changes: object) -> list[str]:
    values = {
        "input": data_set / "slices",
        "labels": data_set / "labels.csv",
        "output": output,
        "image_size": 32,
        "folds": 2,
        "workers": 1,
        "max_reject_fraction": 0.1,
    } | changes
    return [text for k, v in values.items() if v is not None for text in (f"--{k}", str(v))]


def test_a_run_ends_with_a_summary_and_a_second_has_nothing_to_do(
    small_data_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments(small_data_set, tmp_path / "out")
    assert main(argv) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "30 of 33 files written in" in shown.out
    assert "rejected      1  label_missing" in shown.out
    assert f"Next: make train SHARDS={tmp_path}/out" in shown.out
    assert main(argv) == 0
    assert "is complete: nothing to do" in capsys.readouterr().out


def test_without_labels_all_slices_are_for_prediction(
    small_data_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(small_data_set, tmp_path / "out", labels=None)) == 0
    assert "Next: make predict" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert list(manifest["splits"]) == ["test"]
    assert manifest["splits"]["test"]["examples"] == 31
    assert len(manifest["labels"]) == 6


def test_too_many_rejects_end_the_run_but_leave_word(
    small_data_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(arguments(small_data_set, output, max_reject_fraction=0.05)) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "2 of 33 files were rejected (label_missing 1, not_dicom 1)" in error
    assert len((output / "rejects.jsonl").read_text().splitlines()) == 2
    assert not (output / "manifest.json").exists()
    # The same command goes on once more may be rejected.
    assert main(arguments(small_data_set, output)) == 0


def test_rejects_found_while_writing_count_too(
    small_data_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments(small_data_set, tmp_path / "out", max_reject_fraction=0.07)
    assert main(argv) == 3
    assert "3 of 33 files were rejected (constant_image 1, label" in capsys.readouterr().err


@dataclasses.dataclass(frozen=True)
class BadInput:
    """A mistake, and the words that name it."""

    changes: dict[str, object]
    words: str


@pytest.mark.parametrize(
    "mistake",
    [
        BadInput({"input": "/absent"}, "input /absent does not exist"),
        BadInput({"input": "{tmp}/empty"}, "holds no files"),
        BadInput({"labels": "/absent.csv"}, "label file /absent.csv does not exist"),
        BadInput({"labels": "{tmp}/other.csv"}, "has the columns 'a', 'b'"),
        BadInput({"output": "{tmp}/full"}, "holds something else (thesis.tex)"),
        BadInput({"output": "{tmp}/other.csv"}, "is a file, not a folder"),
        BadInput({"windows": "lung"}, "--windows lung: window 'lung' is neither"),
        BadInput({"folds": 8}, "--folds 8: 7 patients cannot fill 8 folds"),
    ],
    ids=lambda mistake: mistake.words,
)
def test_a_mistake_ends_at_once_with_one_line(
    mistake: BadInput, small_data_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    changes = {k: str(v).replace("{tmp}", str(tmp_path)) for k, v in mistake.changes.items()}
    assert main(arguments(small_data_set, **{"output": tmp_path / "out"} | changes)) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("beam_pipeline: error: ")
    assert shown.err.count("\n") == 1
    assert mistake.words in shown.err
    assert "Traceback" not in shown.err + shown.out
