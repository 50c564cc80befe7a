"""A scanned slice to the bytes of a DICOM file, in the ways seen in RSNA 2019."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydicom import config, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from examples.sample.fields import Field
from examples.sample.scanner import Geometry, reconstruction_circle

PADDING = -2000  # raw value outside the reconstruction circle in 16-bit signed files


@dataclass(frozen=True)
class Encoding:
    """How a series is stored. Numbers are kept as the text that the file shows."""

    explicit: bool
    signed: bool  # 16 bits signed, else 12 bits unsigned
    padded: bool
    intercept: str
    center: str | list[str]
    width: str | list[str]
    decimals: int  # of positions and spacings
    wrapped: bool = False  # 12-bit two's complement in a file that says unsigned


# In the order of the patients; all four are in the real files.
ENCODINGS = (
    Encoding(True, True, True, "-1024", "30", "80", 6),
    Encoding(False, False, False, "-1024", ["00036", "00036"], ["00080", "00080"], 8),
    Encoding(True, True, False, "-1024.000000", "35.000000", "80.000000", 6),
    Encoding(True, False, False, "-1024", ["00040", "00040"], ["00080", "00080"], 8),
)

# The known fault: HU modulo 4096 in 12 bits called unsigned, so that air of -1000 reads 3096.
BADLY_ENCODED = Encoding(True, False, False, "0", ["00040", "00040"], ["00080", "00080"], 8, True)


@dataclass(frozen=True)
class Names:
    """The pseudonyms that a file bears, as Kaggle writes them (`ID_` and hexadecimal digits)."""

    image: str
    patient: str
    study: str
    series: str


def stored_values(hu: Field, encoding: Encoding) -> npt.NDArray[np.uint16]:
    """HU [rows, columns] to the 16-bit words of PixelData."""
    if encoding.wrapped:
        whole = np.clip(np.rint(hu), -1000, 3095).astype(np.int16)
        return np.asarray(whole & 0x0FFF, np.uint16)
    raw = np.clip(np.rint(hu) - float(encoding.intercept), 0, 4095).astype(np.int16)
    if encoding.padded and raw.shape == reconstruction_circle().shape:
        raw[~reconstruction_circle()] = PADDING
    return np.asarray(raw.view(np.uint16))


def dicom_bytes(
    raw: npt.NDArray[np.uint16],
    encoding: Encoding,
    names: Names,
    geometry: Geometry,
    position: tuple[float, float, float],
) -> bytes:
    """The file: preamble, meta group and the 21 elements that Kaggle left in, no others."""
    syntax = ExplicitVRLittleEndian if encoding.explicit else ImplicitVRLittleEndian
    buffer = io.BytesIO()
    # RSNA's UIDs are no valid UIDs; that is the point of them here, so pydicom need not say it.
    with config.disable_value_validation():
        dataset = _header(encoding, names, geometry, position)
        dataset.Rows, dataset.Columns = raw.shape
        dataset.add_new("PixelData", "OW", raw.astype("<u2").tobytes())
        dataset.file_meta = _meta(names, syntax)
        dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def _meta(names: Names, syntax: UID) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(f"2.25.{int(names.image[3:], 16) + 1}")
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = UID("1.2.3.4")  # as in the real implicit files
    meta.ImplementationVersionName = "HEADCT SAMPLE"
    return meta


def _header(
    encoding: Encoding,
    names: Names,
    geometry: Geometry,
    position: tuple[float, float, float],
) -> Dataset:
    def text(value: float) -> str:
        return f"{value:.{encoding.decimals}f}"[:16]

    dataset = Dataset()
    dataset.SOPInstanceUID = names.image
    dataset.Modality = "CT"
    dataset.PatientID = names.patient
    dataset.StudyInstanceUID = names.study
    dataset.SeriesInstanceUID = names.series
    dataset.StudyID = ""
    dataset.ImagePositionPatient = [text(value) for value in position]
    dataset.ImageOrientationPatient = [text(value) for value in geometry.orientation]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelSpacing = [text(geometry.pixel_mm)] * 2
    dataset.BitsAllocated = 16
    dataset.BitsStored = 16 if encoding.signed else 12
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(encoding.signed)
    dataset.WindowCenter = encoding.center
    dataset.WindowWidth = encoding.width
    dataset.RescaleIntercept = encoding.intercept
    dataset.RescaleSlope = "1"
    return dataset
