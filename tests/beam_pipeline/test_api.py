"""`import beam_pipeline`: the functions of the command line, and a process left as it was."""

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest

import beam_pipeline
from beam_pipeline.__main__ import main
from headct.errors import UsageError
from headct.reasons import Rejected
from tests.processes import run_python

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning:apache_beam.*")


def test_preprocess_writes_what_the_command_writes(
    small_data_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, labels = small_data_set / "slices", small_data_set / "labels.csv"
    options = {"image_size": 32, "folds": 2, "workers": 1, "max_reject_fraction": 0.1}
    manifest = beam_pipeline.preprocess(data, tmp_path / "a", labels=labels, **options)
    assert manifest == json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert beam_pipeline.preprocess(data, tmp_path / "a", labels=labels, **options) == manifest
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")
    flags = [f"--{name}={value}" for name, value in options.items()]
    argv = [f"--input={data}", f"--output={tmp_path / 'b'}", f"--labels={labels}", *flags]
    assert main(argv) == 0
    written = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["digest"] == written["digest"]


def test_mistakes_are_errors_of_one_line(small_data_set: Path, tmp_path: Path) -> None:
    data, output = small_data_set / "slices", tmp_path / "out"
    for options, message in (
        ({"fold": 3}, r"there is no option 'fold' \(did you mean folds\?\)"),
        ({"folds": 1}, "--folds 1: want a whole number from 2 to 100"),
        ({"holdout": 0.2}, "--holdout 0.2: want --labels, too"),
        ({"hu": True, "windows": ["brain"]}, "--hu and --windows: choose one"),
        ({"windows": ["lung"]}, "window 'lung' is neither"),
    ):
        with pytest.raises(UsageError, match=message):
            beam_pipeline.preprocess(data, output, **options)
    with pytest.raises(UsageError, match="input /absent does not exist"):
        beam_pipeline.preprocess("/absent", output)


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_read_slice_is_in_hounsfield_units(small_data_set: Path) -> None:
    path = next(path for path in sorted((small_data_set / "slices").rglob("*.dcm")))
    found = beam_pipeline.read_slice(path)
    dataset = pydicom.dcmread(path)
    expected = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    np.testing.assert_array_equal(found.hounsfield, expected)
    assert found.hounsfield.dtype == np.float32
    assert (found.study_id, found.repair) == (dataset.StudyInstanceUID, "none")
    with pytest.raises(ValueError, match="never"):
        beam_pipeline.read_slice(path, hu_repair="never")


def test_read_slice_of_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no slice")
    with pytest.raises(Rejected):
        beam_pipeline.read_slice(tmp_path / "a.txt")
    with pytest.raises(OSError, match="No such file"):
        beam_pipeline.read_slice(tmp_path / "b.dcm")


UNCHANGED = """
import logging, os, signal, sys, threading, warnings

def state():
    return (
        # LD_LIBRARY_PATH: importing OpenCV sets it.
        {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"},
        os.getcwd(), sys.stdout, sys.stderr, sys.__stderr__, sys.excepthook,
        threading.excepthook, [signal.getsignal(n) for n in signal.valid_signals()],
        logging.root.level, [*logging.root.handlers], [*logging.root.filters],
        logging.root.manager.disable, logging.getLogger("apache_beam").level,
    )

before = state()
import beam_pipeline
assert state() == before, "import"
beam_pipeline.read_slice(sys.argv[1])
assert state() == before, "read_slice"
beam_pipeline.preprocess(
    sys.argv[2], sys.argv[3], image_size=32, workers=1, max_reject_fraction=0.2
)
assert state() == before, "preprocess"
try:
    beam_pipeline.preprocess(sys.argv[2], sys.argv[3] + "2", max_reject_fraction=0)
except Exception as error:
    assert "were rejected" in str(error)
assert state() == before, "a run that fails"
"""


def test_nothing_of_the_process_is_changed(small_data_set: Path, tmp_path: Path) -> None:
    path = next(path for path in sorted((small_data_set / "slices").rglob("*.dcm")))
    arguments = [path, small_data_set / "slices", tmp_path / "out"]
    done = run_python("-W", "ignore", "-c", UNCHANGED, *arguments)
    assert (done.stderr, done.stdout) == ("", "")
