from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom import config
from pydicom.uid import ImplicitVRLittleEndian

from beam_pipeline.inventory import Batch, inspect_batch
from beam_pipeline.options import Options
from beam_pipeline.storage import InputFiles
from beam_pipeline.twins import TwinCounts, count_twins, find_twins, join_groups

WriteSlice = Callable[..., Path]


@pytest.fixture
def files(tmp_path: Path, write_slice: WriteSlice) -> InputFiles:
    """a and b are twins, c has their middle rows only, d is flat in the middle, e is d's twin."""
    pixels = np.random.default_rng(0).integers(0, 999, (256, 256)).astype(np.int16)
    write_slice(tmp_path / "a.dcm", pixels)
    write_slice(tmp_path / "b.dcm", pixels, PatientID="another", RescaleIntercept="-1000.00")
    corner = pixels.copy()
    corner[0, 0] += 1
    write_slice(tmp_path / "c.dcm", corner)
    flat = pixels.copy()
    flat[64:192] = 5
    write_slice(tmp_path / "d.dcm", flat)
    write_slice(tmp_path / "e.dcm", flat)
    other = flat.copy()
    other[255, 255] += 1
    write_slice(tmp_path / "f.dcm", other)
    return InputFiles(str(tmp_path))


def inspect(files: InputFiles) -> pd.DataFrame:
    batch = Batch(tuple(files.list()))
    return inspect_batch(batch, lambda _: None, files=files, options=Options("in", None, "out"))


def test_files_with_equal_pixels_are_found_and_no_others(files: InputFiles) -> None:
    inventory = inspect(files)
    a, b, c, d, e, f = inventory["fingerprint"]
    assert a == b == c  # the middle rows are equal
    assert d == e != f  # nothing to see in the middle: all rows count
    twins = dict(zip(inventory["source"], find_twins(inventory, files), strict=True))
    assert twins["a.dcm"] == twins["b.dcm"] != ""
    assert twins["d.dcm"] == twins["e.dcm"] != twins["a.dcm"]
    assert twins["c.dcm"] == twins["f.dcm"] == ""


def test_the_encoding_of_the_header_does_not_matter(files: InputFiles, tmp_path: Path) -> None:
    with config.disable_value_validation():
        dataset = pydicom.dcmread(tmp_path / "a.dcm", force=True)
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        dataset.save_as(tmp_path / "g.dcm", implicit_vr=True, little_endian=True)
    inventory = inspect(files).set_index("source", drop=False)
    twins = find_twins(inventory, files)
    assert twins["g.dcm"] == twins["a.dcm"] != ""


def test_a_candidate_that_vanished_is_no_twin(files: InputFiles, tmp_path: Path) -> None:
    inventory = inspect(files)
    (tmp_path / "b.dcm").unlink()
    twins = find_twins(inventory, files)
    assert set(twins[:3]) == {""}


def test_groups_that_share_twins_become_one() -> None:
    patients = pd.Series(["p", "p", "q", "r", "r", "s", "t"])
    twins = pd.Series(["1", "", "1", "2", "3", "3", ""])
    assert join_groups(patients, twins).tolist() == [0, 0, 0, 1, 1, 1, 2]
    chain = pd.Series(["1", "2", "2", "2", "3", "3", ""])  # p with q and r, r with s
    assert join_groups(patients, chain).tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_twins_are_counted_with_their_conflicts() -> None:
    twins = pd.Series(["x", "x", "y", "y", "y", "", ""])
    patients = pd.Series(["p", "q", "r", "r", "r", "p", "q"])
    labels = pd.DataFrame({"label_a": [0, 1, 1, 1, 1, 0, 1], "label_b": [0] * 7})
    assert count_twins(twins, patients, labels) == TwinCounts(
        groups=2, slices=5, groups_across_patients=1, groups_with_conflicting_labels=1
    )
    nothing = pd.Series([""] * 7)
    assert count_twins(nothing, patients, labels) == TwinCounts()


def test_a_slice_whose_twin_was_rejected_is_no_group() -> None:
    twins, patients = pd.Series(["x", "", "x", "y"]), pd.Series(["1", "1", "2", "3"])
    labels = pd.DataFrame({"any": [0, 0, 0, 1]})
    assert count_twins(twins, patients, labels) == TwinCounts(
        groups=1, slices=2, groups_across_patients=1
    )
