"""One image of a shard directory, with its row of the index."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

import beam_pipeline
from beam_pipeline.show.__main__ import main, read_image
from headct.stores import Folder


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
    row = pd.read_parquet(shards / "index.parquet").iloc[3]
    assert main([str(shards), row["image_id"], "--output", str(tmp_path / "a.png")]) == 0
    shown = capsys.readouterr().out
    assert row["image_id"] in shown
    assert f"written: {tmp_path}/a.png" in shown
    image = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    names = ["brain", "subdural", "bone"] if "hu" in options else options["windows"].split(",")
    assert (image.shape, image.dtype) == ((32, 32 * len(names)), np.uint8)
    windowed = tmp_path / "windowed"
    beam_pipeline.preprocess(
        small_data_set / "slices",
        windowed,
        image_size=32,
        max_reject_fraction=0.2,
        windows=names,
    )
    _, expected = read_image(Folder(str(windowed)), row["image_id"])
    np.testing.assert_allclose(image.astype(int), expected.astype(int), atol=4)


def test_what_cannot_be_shown_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "x"]) == 2
    assert capsys.readouterr().err == f"show: error: {tmp_path} is no finished shard directory\n"
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == "show: error: --id is missing: image_id of the image\n"
