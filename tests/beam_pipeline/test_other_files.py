import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from beam_pipeline.__main__ import main
from beam_pipeline.dicom.dataset import check_beginning
from beam_pipeline.dicom.other_files import BEGINNING, name_kind
from headct.reasons import Reason, Rejected
from tests.beam_pipeline.dicom_files import make_dicom


def archived(make: Callable[[io.BytesIO], None]) -> bytes:
    file = io.BytesIO()
    make(file)
    return file.getvalue()


def tar(file: io.BytesIO) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("a.dcm")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"slice"))


def zipped(file: io.BytesIO) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.dcm", b"slice")


def picture(suffix: str) -> bytes:
    return bytes(cv2.imencode(suffix, np.zeros((9, 9), np.uint8))[1])


def numpy_array(file: io.BytesIO) -> None:
    np.save(file, np.zeros(9))


NIFTI = (348).to_bytes(4, "little") + bytes(340) + b"n+1\0" + bytes(1000)
DICOM = make_dicom()
KINDS = {
    "ZIP archive": archived(zipped),
    "tar archive": archived(tar),
    "compressed tar archive": gzip.compress(archived(tar)),
    "bzip2 archive": bz2.compress(archived(tar)),
    "xz archive": lzma.compress(archived(tar)),
    "7z archive": b"7z\xbc\xaf\x27\x1c" + bytes(100),
    "RAR archive": b"Rar!\x1a\x07\x01\0" + bytes(100),
    "NIfTI image": NIFTI,
    "compressed NIfTI image": gzip.compress(NIFTI),
    "Analyze header": NIFTI[:344] + bytes(4),
    "compressed DICOM file": gzip.compress(DICOM),
    "gzip archive": gzip.compress(gzip.compress(b"a")),
    "NRRD image": b"NRRD0004\ntype: short\n",
    "MetaImage": b"ObjectType = Image\nNDims = 3\n",
    "PNG image": picture(".png"),
    "JPEG image": picture(".jpg"),
    "TIFF image": picture(".tif"),
    "BMP image": picture(".bmp"),
    "NumPy array": archived(numpy_array),
    "web page": b"\n<!DOCTYPE html>\n<html>",
    "PDF document": b"%PDF-1.7",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_rejected_as_what_it_is(kind: str) -> None:
    with pytest.raises(Rejected) as rejected:
        check_beginning(KINDS[kind])
    assert (rejected.value.reason, rejected.value.detail) == (Reason.NOT_DICOM, kind)
    assert name_kind(KINDS[kind][:BEGINNING]) == kind


@pytest.mark.parametrize(
    "data", [b"", b"text", b"\x1f\x8b", DICOM, b"II*\0" + DICOM[4:], DICOM[132:], bytes(1000)]
)
def test_nothing_is_claimed_of_other_files(data: bytes) -> None:
    assert name_kind(data) in ("", "gzip archive" if data == b"\x1f\x8b" else "")


@pytest.mark.parametrize("name", ["a.tar.gz", "b.nii.gz", "c.zip.bin"])
def test_an_input_that_is_such_a_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    kinds = {"a": "compressed tar archive", "b": "compressed NIfTI image", "c": "ZIP archive"}
    kind, path = kinds[name[0]], tmp_path / name
    path.write_bytes(KINDS[kind])
    assert main([f"--input={path}", f"--output={tmp_path / 'out'}"]) == 2
    assert capsys.readouterr().err == (
        f"beam_pipeline: error: input {path} is not DICOM ({kind}); want DICOM files in a "
        "folder, or in a ZIP archive whose name ends in .zip\n"
    )
    assert not (tmp_path / "out").exists()
