"""The pipeline on 269 real RSNA slices, against pydicom and float64 arithmetic."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest

from beam_pipeline.__main__ import main

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning:apache_beam.*")

WINDOWS = {"brain": (40, 80), "subdural": (80, 200), "bone": (600, 2800)}


@pytest.fixture(scope="module")
def shards(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("real") / "shards"
    argv = ["--input", str(real_data / "rsna" / "slices"), "--output", str(output)]
    argv += ["--labels", str(real_data / "rsna" / "labels.csv"), "--max_reject_fraction", "0.2"]
    assert main(argv) == 0
    return output


def manifest_of(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())


def test_all_labeled_slices_are_written(shards: Path) -> None:
    manifest = manifest_of(shards)
    counts = manifest["counts"]
    assert (counts["files_seen"], counts["written"], counts["rejected"]) == (269, 239, 30)
    assert counts["rejected_by_reason"] == {"label_missing": 30}
    assert counts["repaired"] == {}
    totals = {
        label: sum(split["label_counts"][label] for split in manifest["splits"].values())
        for label in manifest["labels"]
    }
    assert totals == {
        "epidural": 0,
        "intraparenchymal": 46,
        "intraventricular": 7,
        "subarachnoid": 31,
        "subdural": 21,
        "any": 68,
    }


def test_labels_are_those_of_the_file(shards: Path, real_data: Path) -> None:
    rows = pd.read_csv(real_data / "rsna" / "labels.csv")
    expected = dict(zip(rows["ID"], rows["Label"], strict=True))
    index = pd.read_parquet(shards / "index.parquet")
    for name in ("epidural", "subdural", "any"):
        for image_id, label in zip(index["image_id"], index[f"label_{name}"], strict=True):
            assert label == expected[f"{image_id}_{name}"]


def test_no_patient_is_in_two_folds(shards: Path, real_data: Path) -> None:
    index = pd.read_parquet(shards / "index.parquet")
    patients = [
        str(
            pydicom.dcmread(
                real_data / "rsna" / "slices" / s, specific_tags=["PatientID"]
            ).PatientID
        )
        for s in index["source"]
    ]
    assert (index.groupby(patients)["split"].nunique() == 1).all()
    assert (index.groupby(patients)["patient_id"].nunique() == 1).all()


def test_every_pixel_is_within_one_gray_level_of_float64_arithmetic(
    shards: Path, real_data: Path
) -> None:
    index = pd.read_parquet(shards / "index.parquet")
    for row in index.itertuples():
        with (shards / row.shard).open("rb") as file:
            file.seek(row.offset)
            record = file.read(row.bytes)
        png = record[record.index(b"\x89PNG") :]
        decoded = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1]
        slice_ = pydicom.dcmread(real_data / "rsna" / "slices" / row.source)
        slope, intercept = float(slice_.RescaleSlope), float(slice_.RescaleIntercept)
        hounsfield = slice_.pixel_array.astype(np.float64) * slope + intercept
        for channel, (center, width) in enumerate(WINDOWS.values()):
            lowest, highest = center - width / 2, center + width / 2
            exact = (np.clip(hounsfield, lowest, highest) - lowest) / width * 255
            assert np.abs(decoded[..., channel] - exact).max() <= 1, row.image_id


def test_without_labels_all_slices_are_in_the_test_split(real_data: Path, tmp_path: Path) -> None:
    argv = ["--input", str(real_data / "rsna" / "slices"), "--output", str(tmp_path / "out")]
    assert main(argv) == 0
    assert manifest_of(tmp_path / "out")["splits"]["test"]["examples"] == 269
