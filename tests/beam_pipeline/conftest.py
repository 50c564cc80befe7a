"""A small data set of CT slices, made of files that pydicom wrote."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.beam_pipeline.dicom_files import make_dicom

WriteSlice = Callable[..., Path]


def _write_slice(path: Path, pixels: np.ndarray | None = None, **attributes: Any) -> Path:
    """A CT slice of signed 16-bit stored values with intercept -1024; None removes an attribute."""
    if pixels is None:
        seed = zlib.crc32(path.stem.encode())
        pixels = np.random.default_rng(seed).integers(0, 1200, (32, 32)).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make_dicom(pixels, **{"SOPInstanceUID": path.stem} | attributes))
    return path


@pytest.fixture(scope="session")
def write_slice() -> WriteSlice:
    """Writes one CT slice: write_slice(path, pixels, PatientID=..., Rows=...)."""
    return _write_slice


@pytest.fixture(scope="session")
def small_data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients of five 32 x 32 slices with labels, and three files that cannot be used.

    `slices/` has 33 files; `labels.csv` labels the 30 good ones and one that has no file.
    """
    folder = tmp_path_factory.mktemp("data_set")
    rows = ["ID,Label"]
    for patient in range(6):
        for position in range(5):
            image_id = f"ID_{patient}{position}"
            _write_slice(
                folder / "slices" / f"{image_id}.dcm",
                PatientID=f"Secret^Name{patient}",
                StudyInstanceUID=f"secret.study.{patient}",
                SeriesInstanceUID=f"secret.series.{patient}",
                ImagePositionPatient=[0.0, 0.0, 5.0 * position],
            )
            rows += _label_rows(image_id, bleeds=position == patient % 5)
    rows += _label_rows("ID_no_file", bleeds=False)
    (folder / "slices" / "ID_text.dcm").write_text("not DICOM")
    _write_slice(folder / "slices" / "ID_flat.dcm", np.zeros((32, 32), np.int16))
    _write_slice(folder / "slices" / "ID_unlabeled.dcm")
    rows += _label_rows("ID_text", bleeds=False) + _label_rows("ID_flat", bleeds=False)
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def _label_rows(image_id: str, *, bleeds: bool) -> list[str]:
    names = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]
    return [f"{image_id}_{name},{int(bleeds and name in ('subdural', 'any'))}" for name in names]
