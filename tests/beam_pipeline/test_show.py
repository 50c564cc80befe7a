"""One image of a shard directory, with its row of the index."""

from pathlib import Path

import cv2
import numpy as np
import pytest

import beam_pipeline
import headct
from beam_pipeline.show import main
from headct.windows import Window, apply_windows


@pytest.mark.filterwarnings("default::DeprecationWarning:apache_beam.*")
@pytest.mark.parametrize("options", [{"windows": "brain,bone"}, {"windows": "brain"}, {"hu": True}])
def test_an_image_is_written_with_its_row(
    options: dict[str, object],
    small_data_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shards = tmp_path / "out"
    beam_pipeline.preprocess(
        small_data_set / "slices", shards, image_size=32, max_reject_fraction=0.2, **options
    )
    example = headct.open(shards)[3]
    assert main([str(shards), example["image_id"], "--output", str(tmp_path / "a.png")]) == 0
    shown = capsys.readouterr().out
    assert example["image_id"] in shown
    assert f"written: {tmp_path}/a.png" in shown
    expected = example["image"]
    if "hu" in options:
        windows = [Window("", 40.0, 80.0), Window("", 80.0, 200.0), Window("", 600.0, 2800.0)]
        expected = apply_windows(expected[..., 0].astype(float) - 1024, windows)
    image = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(image, np.hstack([*np.moveaxis(expected, -1, 0)]))


def test_what_cannot_be_shown_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "x"]) == 2
    assert capsys.readouterr().err == (
        f"show: error: {tmp_path}: no manifest.json, so no finished shard directory\n"
    )
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == "show: error: --id is missing: image_id of the image\n"
