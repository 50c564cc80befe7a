"""What a user sees: exit codes and the one line that says why."""

import json
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from beam_pipeline.__main__ import main
from tests.headct.ports import serving

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
    joined = "Labels joined by file name: 32 of 33 labels, 32 of 33 files.\n"
    assert shown.out.count(joined) == 1
    assert "rejected      1  label_missing" in shown.out
    assert f"Next: python -m trainer train --shards {tmp_path}/out --run out/run" in shown.out
    assert main(argv) == 0
    shown = capsys.readouterr()
    assert "is complete: nothing to do" in shown.out
    assert shown.out.count(joined) == 1


def test_without_labels_all_slices_are_for_prediction(
    small_data_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(small_data_set, tmp_path / "out", labels=None)) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("No labels given: every slice goes to the split test.\n")
    assert "Next: python -m trainer predict" in shown
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert list(manifest["splits"]) == ["test"]
    assert manifest["splits"]["test"]["examples"] == 31
    assert manifest["labels"] == []


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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input": "{tmp}/empty"}, "holds no files"),
        ({"labels": "/absent.csv"}, "label file /absent.csv does not exist"),
        ({"labels": "{tmp}/other.csv"}, "has the columns 'a', 'b'"),
        ({"output": "{tmp}/full"}, "holds something else (thesis.tex)"),
        ({"folds": 8}, "--folds 8: 7 patients cannot fill 8 folds"),
        ({"voi": "gamma"}, "--voi gamma: want one of linear_exact, linear, sigmoid"),
        ({"image_size": "big"}, "--image_size big: want a whole number from 16 to 4096"),
        ({"image_size": 512.5}, "--image_size 512.5: want a whole number from 16 to 4096"),
        ({"holdout": 95}, "--holdout 95: want a number from 0 to 0.9"),
        ({"max_reject_fraction": "5%"}, "--max_reject_fraction 5%: want a number from 0 to"),
        ({"windows": "brain:40"}, "window 'brain:40' is neither name:center:width nor"),
        ({"windows": "a:40:0"}, "window 'a' needs a finite center and a width above 0"),
        ({"label_columns": "other"}, "no ID ends in '_other', and no column has that"),
        ({"label_columns": "any, Any"}, "two classes are called 'any' and 'Any'"),
        ({"labels": "{tmp}/twice.csv"}, "it has two columns 'any'; remove or rename one"),
        ({"labels": "{tmp}/sheet.csv"}, "sheet.csv: it is an Excel workbook; save it as"),
        ({"labels": "{tmp}/ragged.csv"}, "row 2 after the header has 2 values, the header"),
        ({"labels": "{tmp}/others.csv"}, "its ids have the form 'AAAA_0', the files like"),
        ({"labels": "{tmp}/ages.csv"}, "'age' is not of 0 and 1, but for instance 54"),
        ({"folds_from": "/absent.csv"}, "/absent.csv"),
    ],
)
def test_a_mistake_ends_at_once_with_one_line(
    changes: dict[str, object],
    words: str,
    small_data_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "others.csv").write_text("image,any\ncase_1,0\ncase_2,1\n")
    (tmp_path / "ages.csv").write_text("image,age,any\nID_1,54,0\nID_2,61,1\n")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "twice.csv").write_text("image;any;any\nID_1;0;1\n")
    (tmp_path / "sheet.csv").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500))
    (tmp_path / "ragged.csv").write_text("image,x,any\nID_1,0,1\nDoe^John,1\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    changes = {k: str(v).replace("{tmp}", str(tmp_path)) for k, v in changes.items()}
    assert main(arguments(small_data_set, **{"output": tmp_path / "out"} | changes)) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("beam_pipeline: error: ")
    assert shown.err.count("\n") == 1
    assert words in shown.err
    assert "Traceback" not in shown.err + shown.out


def test_a_label_file_is_fetched_once(small_data_set: Path, tmp_path: Path) -> None:
    fetched: list[str] = []

    class Server(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            fetched.append(self.path)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    handler = partial(Server, directory=str(small_data_set))
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as url:
        labels = f"{url}/labels.csv"
        assert main(arguments(small_data_set, tmp_path / "out", labels=labels)) == 0
    assert fetched == ["/labels.csv"]
    assert not (tmp_path / "out" / ".unfinished").exists()
