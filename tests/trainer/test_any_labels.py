"""From DICOM files to a submission with labels that are not RSNA's, and ids that are not words."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest

import trainer
from beam_pipeline.__main__ import main as preprocess
from tests.beam_pipeline.dicom_files import make_dicom
from trainer.__main__ import main

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning:apache_beam.*")  # Beam's own

ODD = ("midline_shift", "shift", "mass effect", "cost $5 $", 'v1, "b"/<i>')
# What readers of JSON and CSV make numbers, truth or nothing of.
IDS = ("000003", "1e5", "NA", "null", "True", "inf", "a_midline")
REJECTED = ("000007", "1e9", "None", "2")


def write_slices(folder: Path, labels: tuple[str, ...]) -> None:
    """`in/` and its `labels.csv`; `new/`, whose files are not all DICOM."""
    random = np.random.default_rng(0)

    def write(path: Path, number: int, marks: Any) -> None:
        pixels = random.normal(1064, 15, (32, 32))
        for place, mark in enumerate(marks):
            pixels[6 * place : 6 * place + 5, 8:24] += 60 * mark
        ids = {"PatientID": f"P{number // 2}", "StudyInstanceUID": f"2.{number // 2}"}
        data = make_dicom(pixels.astype(np.int16), SOPInstanceUID=f"1.{number}", **ids)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_id", *labels])
        for number, name in enumerate([*IDS, *(f"s_{i}" for i in range(9))]):
            marks = random.integers(0, 2, len(labels))
            write(folder / "in" / f"{name}.dcm", number, marks)
            rows.writerow([name, *marks])
    for number, name in enumerate(IDS):
        write(folder / "new" / f"{name}.dcm", 50 + number, random.integers(0, 2, len(labels)))
    for name in REJECTED:
        (folder / "new" / f"{name}.dcm").write_text("no DICOM")


def read_submission(path: Path) -> pd.Series:
    return pd.read_csv(path, dtype={"ID": str}, na_filter=False).set_index("ID")["Label"]


@pytest.mark.system
@pytest.mark.parametrize("labels", [ODD, ("mass_effect $",)], ids=["several", "one"])
def test_labels_of_any_names_go_all_the_way(
    labels: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slices(tmp_path, labels)
    shards, unlabeled, run = (tmp_path / name for name in ("shards", "unlabeled", "run"))
    common = ["--image_size=32", "--folds=2", "--max_reject_fraction=1"]
    given = [f"--input={tmp_path / 'in'}", f"--labels={tmp_path / 'labels.csv'}"]
    assert preprocess([*common, *given, f"--output={shards}"]) == 0
    given = [f"--input={tmp_path / 'new'}", f"--output={unlabeled}"]
    assert preprocess([*common[::2], *given]) == 0
    assert json.loads((shards / "manifest.json").read_text())["labels"] == [*labels]

    options = ["--model=smallresnet", "--weights=none", "--image_size=32", "--batch_size=4"]
    options += ["--epochs=1", "--no-report"]
    assert main(["train", f"--shards={shards}", f"--run={run}", *options]) == 0
    here = f"--run={run}"
    assert main(["evaluate", here]) == 0
    found = json.loads((run / "evaluation-fold0.json").read_text())
    assert [*found["labels"]] == [*labels]
    assert main(["report", here]) == 0
    compared = f"--output={tmp_path / 'compare.html'}"
    other = shutil.copytree(run, tmp_path / "other")
    assert main(["compare", "--runs", str(run), str(other), compared]) == 0
    assert main(["export", here, "--formats=keras", f"--output={tmp_path / 'export'}"]) == 0

    asked = [here, f"--shards={unlabeled}"]
    assert main(["predict", *asked, f"--output={tmp_path / 'table.parquet'}"]) == 0
    table = pd.read_parquet(tmp_path / "table.parquet").set_index("image_id")
    assert sorted(table.index) == sorted(IDS)
    columns = [f"probability_{label}" for label in labels]
    assert [*table.columns[-2 * len(labels) :]] == [*columns, *(f"label_{x}" for x in labels)]
    expected = {
        f"{image_id}_{label}": table.loc[image_id, f"probability_{label}"]
        for image_id in table.index
        for label in labels
    }
    assert main(["predict", *asked, f"--output={tmp_path / 'all.csv'}"]) == 0
    submission = read_submission(tmp_path / "all.csv")
    assert [*submission.index] == [*expected]
    np.testing.assert_allclose(submission, [*expected.values()], rtol=1e-8)

    sample = [*reversed(expected), *(f"000007_{label}" for label in labels)]
    pd.DataFrame({"ID": sample}).to_csv(tmp_path / "sample.csv", index=False)
    asked += [f"--sample_submission={tmp_path / 'sample.csv'}"]
    assert main(["predict", *asked, f"--output={tmp_path / 'asked.csv'}"]) == 0
    submission = read_submission(tmp_path / "asked.csv")
    prevalence = json.loads((run / "run.json").read_text())["shards"]["prevalence"]
    assert [*submission.index] == sample
    np.testing.assert_allclose(submission, [*reversed(expected.values()), *prevalence], rtol=1e-8)

    predicted = tmp_path / "predicted"
    argv = ["predict", str(run), str(tmp_path / "new"), "--output", str(predicted)]
    assert main(argv) == 0
    slices = pd.read_csv(predicted / "slices.csv", dtype={"source": str})
    again = slices.set_index(slices["source"].str.removesuffix(".dcm")).loc[table.index, columns]
    # equal to the last digit that is written
    assert again.map("{:.9g}".format).equals(table[columns].map("{:.9g}".format))
    rejects = map(json.loads, (predicted / "rejects.jsonl").read_text().splitlines())
    assert sorted(row["source"] for row in rejects) == sorted(f"{name}.dcm" for name in REJECTED)
    written = "".join(path.read_text() for path in predicted.iterdir())
    written = re.sub("base64,[\\w+/=]+", "", written)  # pictures, whose letters are by chance
    assert "2.25" in written  # a Study Instance UID; and no PatientID
    assert not [number for number in range(25, 29) if f"P{number}" in written]
    batches = [*trainer.examples(trainer.open_shards(unlabeled), "test")]
    exported = keras.models.load_model(tmp_path / "export" / "model.keras")
    images = np.concatenate([each["image"] for each in batches])
    np.testing.assert_allclose(exported(images), table[columns], atol=1e-6)
