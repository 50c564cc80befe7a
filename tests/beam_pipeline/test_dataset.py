"""Files are parsed up to their pixels: bounded, quiet, with one kind of failure."""

import bz2
import gzip
import io
import logging
import lzma
import tarfile
import time
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom import config, uid
from pydicom.tag import Tag

from beam_pipeline.__main__ import main
from beam_pipeline.dicom.dataset import (
    BEGINNING,
    MAX_FILE_BYTES,
    check_beginning,
    contained,
    inflate,
    name_kind,
    parse,
)
from beam_pipeline.dicom.header import FIRST_BYTES, read_header
from beam_pipeline.dicom.slices import read_slice
from headct.reasons import Reason, Rejected
from tests.beam_pipeline.dicom_files import SIGNED_16, make_dicom, relabeled


def deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


@pytest.mark.parametrize(
    ("syntax", "vr", "length"),
    [
        (uid.ImplicitVRLittleEndian, "", 12),
        (uid.ExplicitVRLittleEndian, "OW", 12),
        (uid.ExplicitVRBigEndian, "OW", 12),
        (uid.JPEG2000, "OB", None),
    ],
)
def test_the_pixels_are_found_not_read(syntax: str, vr: str, length: int | None) -> None:
    frame = b"code stream" if length is None else None
    data = make_dicom(syntax=syntax, frame=frame)
    parsed = parse(data, len(data), [Tag("Rows")])
    assert parsed.transfer_syntax == syntax
    assert parsed.attributes.value("Rows") == 2
    assert parsed.attributes.value("Columns") is None
    assert parsed.pixels is not None
    assert (parsed.pixels.keyword, parsed.pixels.length) == ("PixelData", length)
    assert parsed.pixels.vr == vr
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    value = b"\xfe\xff\x00\xe0" if frame else SIGNED_16.astype(f"{order}i2").tobytes()
    assert data[parsed.pixels.offset :].startswith(value)


def test_the_body_of_a_deflated_file_is_inflated() -> None:
    data = make_dicom(syntax=uid.DeflatedExplicitVRLittleEndian)
    parsed = parse(data, len(data), [])
    assert parsed.pixels is not None
    assert parsed.body[parsed.pixels.offset :][: SIGNED_16.nbytes] == SIGNED_16.tobytes()
    assert parsed.size == len(parsed.body)


def test_inflating_stops_at_the_limit() -> None:
    assert inflate(deflate(bytes(1000)), 1000) == bytes(1000)
    with pytest.raises(Rejected) as caught:
        inflate(deflate(bytes(1001)), 1000)
    assert caught.value.reason is Reason.TOO_LARGE


def test_a_cut_deflate_stream_is_inflated_as_far_as_it_goes() -> None:
    data = bytes(range(256))
    inflated = inflate(deflate(data)[:-10], 1000)
    assert 200 < len(inflated) < 256
    assert data.startswith(inflated)


@pytest.mark.parametrize("whole", [False, True], ids=["read_header", "read_slice"])
def test_a_deflate_bomb_costs_no_more_than_the_limit(whole: bool) -> None:
    data = relabeled(make_dicom(), uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian)
    start = data.index(b"\x08\x00\x16\x00UI")  # SOP Class UID, the first behind the meta header
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = stream.compress(data[start:])
    bomb += b"".join(stream.compress(bytes(1 << 20)) for _ in range(4 * MAX_FILE_BYTES >> 20))
    bomb = data[:start] + bomb + stream.flush()
    assert len(bomb) < MAX_FILE_BYTES // 200
    tracemalloc.start()
    with pytest.raises(Rejected) as caught:
        read_slice(bomb) if whole else read_header(io.BytesIO(bomb), len(bomb))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.reason is Reason.TOO_LARGE
    assert peak < 2.1 * MAX_FILE_BYTES  # zlib grows its buffer by copies


def test_only_as_much_of_a_file_is_read_as_is_needed() -> None:
    data = make_dicom(PixelData=bytes(1 << 20))
    file = io.BytesIO(data)
    read_header(file, len(data))
    assert file.tell() == FIRST_BYTES


def test_no_more_is_read_of_a_file_to_reject_it() -> None:
    data = make_dicom(PixelData=bytes(1 << 20), Modality="MR", SOPClassUID=uid.MRImageStorage)
    file = io.BytesIO(data)
    with pytest.raises(Rejected):
        read_header(file, len(data))
    assert file.tell() == FIRST_BYTES


def test_a_header_of_millions_of_items_is_read_in_bounded_time() -> None:
    data = make_dicom()
    place = data.index(b"\x28\x00\x02\x00US")
    sequence = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff"
    items = b"\xfe\xff\x00\xe0\0\0\0\0" * 1_000_000
    started = time.process_time()
    with pytest.raises(Rejected):
        read_slice(data[:place] + sequence + items + data[place:])
    assert time.process_time() - started < 60  # without the bound, minutes


def test_what_other_code_raises_is_told_by_its_type_alone() -> None:
    with pytest.raises(Rejected) as caught, contained(Reason.CORRUPT_PIXELS):
        raise LookupError("Secret^Name")
    assert (caught.value.reason, caught.value.detail) == (Reason.CORRUPT_PIXELS, "LookupError")
    assert caught.value.__suppress_context__


def test_a_rejection_passes_as_it_is() -> None:
    with pytest.raises(Rejected) as caught, contained(Reason.CORRUPT_PIXELS):
        raise Rejected(Reason.NOT_CT)
    assert caught.value.reason is Reason.NOT_CT


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_is_no_fault_of_the_bytes_is_no_rejection(error: type[BaseException]) -> None:
    with pytest.raises(error), contained(Reason.CORRUPT_PIXELS):
        raise error


def test_what_other_code_warns_and_logs_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logger, mode = logging.getLogger("pydicom"), config.settings.reading_validation_mode
    with contained(Reason.UNREADABLE):
        warnings.warn("Secret^Name", UserWarning, stacklevel=1)
        logging.getLogger("pydicom.misc").warning("Secret^Name")
    assert not caplog.records
    assert logger.propagate
    assert config.settings.reading_validation_mode == mode


def test_threads_put_back_what_they_found() -> None:
    logger, data = logging.getLogger("pydicom"), make_dicom()

    def state() -> tuple[object, ...]:
        return list(warnings.filters), logger.propagate, config.settings.reading_validation_mode

    before = state()
    with ThreadPoolExecutor(8) as threads:
        headers = list(threads.map(lambda _: read_header(io.BytesIO(data), len(data)), range(400)))
    assert state() == before
    assert all(header == headers[0] for header in headers)


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
    "Zstandard archive": b"\x28\xb5\x2f\xfd\x04\0A\0\0hello world\x92\x8b\x09\x03",
    "NIfTI header": NIFTI[:344] + b"ni1\0",
    "JPEG 2000 image": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
    "GIF image": b"GIF89a\1\0\1\0",
    "WebP image": b"RIFF\x1a\0\0\0WEBPVP8L",
    "HDF5 file": b"\x89HDF\r\n\x1a\n\0\0",
    "MATLAB file": b"MATLAB 5.0 MAT-file, Platform: GLNXA64",
    "Parquet table": b"PAR1\x15\4",
}
OTHER_FORMS = [
    ("MetaImage", b"NDims = 3\nDimSize = 9 9 9\n"),
    ("TIFF image", b"MM\0*\0\0\0\x08"),
    ("NIfTI image", (540).to_bytes(4, "little") + b"n+2\0\r\n\x1a\n" + bytes(528)),
    ("web page", b"<html lang=en>"),
]


@pytest.mark.parametrize(
    ("kind", "data"),
    [pytest.param(kind, data, id=kind) for kind, data in [*KINDS.items(), *OTHER_FORMS]],
)
def test_a_file_of_another_kind_is_rejected_as_what_it_is(kind: str, data: bytes) -> None:
    with pytest.raises(Rejected) as rejected:
        check_beginning(data)
    assert (rejected.value.reason, rejected.value.detail) == (Reason.NOT_DICOM, kind)
    assert name_kind(data[:BEGINNING]) == kind


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
