"""A small data set of CT slices, made of files that pydicom wrote."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

WriteSlice = Callable[..., Path]


def _write_slice(path: Path, pixels: np.ndarray | None = None, **attributes: Any) -> Path:
    """A CT slice of signed 16-bit stored values with intercept -1024; None removes an attribute."""
    if pixels is None:
        seed = zlib.crc32(path.stem.encode())
        pixels = np.random.default_rng(seed).integers(0, 1200, (32, 32)).astype(np.int16)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    values = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": path.stem,
        "Modality": "CT",
        "PatientID": "PAT",
        "StudyInstanceUID": "STUDY",
        "SeriesInstanceUID": "SERIES",
        "ImagePositionPatient": [-125.0, -125.0, 42.5],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "PixelSpacing": [0.5, 0.25],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleIntercept": "-1024",
        "RescaleSlope": "1",
        "PixelData": pixels.tobytes(),
    } | attributes
    with config.disable_value_validation():
        for keyword, value in values.items():
            if value is not None:
                setattr(dataset, keyword, value)
        if "PixelData" in dataset:
            dataset["PixelData"].VR = "OW"
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=False, implicit_vr=False, little_endian=True)
    # Written apart: pydicom adds the preamble only to files whose meta information is complete.
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
    _write_slice(folder / "slices" / "ID_unlabelled.dcm")
    rows += _label_rows("ID_text", bleeds=False) + _label_rows("ID_flat", bleeds=False)
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def _label_rows(image_id: str, *, bleeds: bool) -> list[str]:
    names = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]
    return [f"{image_id}_{name},{int(bleeds and name in ('subdural', 'any'))}" for name in names]
