"""DICOM files made for a test, in memory."""

import io
import warnings
from typing import Any

import numpy as np
from pydicom import Dataset, config
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

NATIVE = (  # transfer syntaxes without compression of the pixels
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
SIGNED_16 = np.array([[-2000, -1000, 0], [40, 80, 1000]], np.int16)


def make_dicom(
    pixels: np.ndarray = SIGNED_16,
    *,
    syntax: str = ExplicitVRLittleEndian,
    frame: bytes | None = None,
    preamble: bool = True,
    meta: bool = True,
    **attributes: Any,
) -> bytes:
    """A CT slice; None removes an attribute, `frame` encapsulates a code stream."""
    dataset = Dataset()
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in (_values(pixels, syntax, frame) | attributes).items():
            if value is not None:
                setattr(dataset, keyword, value)
        if "PixelData" in dataset:
            dataset["PixelData"].VR = "OB" if frame else "OW"
            dataset["PixelData"].is_undefined_length = frame is not None
        if meta:
            dataset.file_meta = FileMetaDataset()
            dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", CTImageStorage)
            dataset.file_meta.TransferSyntaxUID = syntax
        if preamble:
            dataset.preamble = bytes(128)
        file = io.BytesIO()
        dataset.save_as(
            file,
            enforce_file_format=False,
            implicit_vr=syntax == ImplicitVRLittleEndian,
            little_endian=syntax != ExplicitVRBigEndian,
        )
    return file.getvalue()


def _values(pixels: np.ndarray, syntax: str, frame: bytes | None) -> dict[str, Any]:
    bits = pixels.dtype.itemsize * 8
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    return {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": "ID_1",
        "Modality": "CT",
        "PatientID": "PATIENT",
        "StudyInstanceUID": "STUDY",
        "SeriesInstanceUID": "SERIES",
        "ImagePositionPatient": [-125.0, -125.0, 42.5],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "PixelSpacing": [0.5, 0.25],
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "RescaleIntercept": "-1024",
        "RescaleSlope": "1",
        "PixelData": encapsulate([frame]) if frame else data + bytes(len(data) % 2),
    }


def items(**attributes: Any) -> list[Dataset]:
    """A sequence of one item."""
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return [dataset]


def relabeled(data: bytes, old: str, new: str) -> bytes:
    """The same data set with another transfer syntax in its meta information."""
    tag, size = b"\x02\x00\x10\x00UI", len(old) + len(old) % 2
    place = data.index(tag)
    value = new.encode() + bytes(len(new) % 2)
    return data[:place] + tag + len(value).to_bytes(2, "little") + value + data[place + 8 + size :]
