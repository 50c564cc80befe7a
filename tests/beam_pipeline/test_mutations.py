"""Files broken at random: nothing but Rejected comes out, and inspection and reading agree."""

import io
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from pydicom import uid

from beam_pipeline.dicom.header import Header, read_header
from beam_pipeline.dicom.slices import read_slice
from headct.reasons import Rejected
from tests.beam_pipeline.dicom_files import NATIVE, items, make_dicom

TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
SIZES = [b"\x28\x00\x10\x00US", b"\x28\x00\x11\x00US", b"\x28\x00\x00\x01US", b"\x28\x00\x01\x01US"]
NUMBERS = [0, 1, 7, 8, 9, 12, 15, 16, 17, 64, 511, 513, 1024, 4096, 4097, 32767, 65535]
MUTATIONS_EACH = 30
MUTATIONS_OF_REAL_FILES, ALL_MUTATIONS_OF_REAL_FILES = 150, 3000


def mutate(data: bytes, source: random.Random) -> bytes:
    mutation = source.choice([cut, flip_bits, forge_size, forge_length, rename, splice, clear])
    return mutation(bytearray(data), source)


def cut(data: bytearray, source: random.Random) -> bytes:
    return bytes(data[: source.randrange(len(data))])


def flip_bits(data: bytearray, source: random.Random) -> bytes:
    """In the header or in the pixels, few or many."""
    pixels = max(data.rfind(b"\xe0\x7f\x10\x00"), 1)
    first, last = source.choice(
        [(0, len(data)), (0, pixels), (pixels, min(len(data), pixels + 600))]
    )
    for _ in range(source.choice([1, 3, 30])):
        data[source.randrange(first, last)] ^= 1 << source.randrange(8)
    return bytes(data)


def forge_size(data: bytearray, source: random.Random) -> bytes:
    place = data.find(source.choice(SIZES))
    if place >= 0:
        data[place + 8 : place + 10] = struct.pack("<H", source.choice(NUMBERS))
    return bytes(data)


def elements(data: bytearray) -> list[int]:
    """Where something that looks like an element with an explicit VR begins."""
    end = max(data.rfind(b"\xe0\x7f\x10\x00") + 1, 134)
    places = range(132, min(end, len(data) - 12))
    return [i for i in places if data[i + 4 : i + 6].isalpha() and data[i + 4 : i + 6].isupper()]


def forge_length(data: bytearray, source: random.Random) -> bytes:
    if places := elements(data):
        place = source.choice(places)
        data[place + 6 : place + 8] = struct.pack("<H", source.choice(NUMBERS))
        if source.random() < 0.3:
            longest = source.choice([0, 1 << 30, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF])
            data[place + 8 : place + 12] = struct.pack("<L", longest)
    return bytes(data)


def rename(data: bytearray, source: random.Random) -> bytes:
    """Takes elements away, by making private ones of them."""
    if places := elements(data):
        for place in source.choices(places, k=source.choice([1, 4])):
            data[place : place + 4] = struct.pack("<HH", 9, source.randrange(0x1000, 0xFFFF))
    return bytes(data)


def splice(data: bytearray, source: random.Random) -> bytes:
    here, there = (source.randrange(len(data)) for _ in range(2))
    length = source.randrange(1, 2000)
    data[here : here + length] = data[there : there + length]
    return bytes(data)


def clear(data: bytearray, source: random.Random) -> bytes:
    place, length = source.randrange(len(data)), source.randrange(1, 2000)
    data[place : place + length] = bytes(len(data[place : place + length]))
    return bytes(data)


def originals() -> dict[str, bytes]:
    """Good slices of every encoding, and files of pydicom of every kind."""
    pixels = np.linspace(-2000, 3000, 4096).astype(np.int16).reshape(64, 64)
    unsigned = pixels.view(np.uint16)
    streams = {
        uid.JPEGLosslessSV1: imagecodecs.jpeg8_encode(unsigned, lossless=True),
        uid.JPEGLSLossless: imagecodecs.jpegls_encode(unsigned),
        uid.JPEG2000Lossless: imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True),
        uid.HTJ2KLossless: imagecodecs.htj2k_encode(pixels, reversible=True),
    }
    files = {syntax: make_dicom(pixels, syntax=syntax) for syntax in NATIVE}
    for syntax, stream in streams.items():
        files[syntax] = make_dicom(pixels, syntax=syntax, frame=bytes(stream))
    groups = items(PixelValueTransformationSequence=items(RescaleIntercept="0", RescaleSlope="1"))
    files["enhanced"] = make_dicom(pixels, SharedFunctionalGroupsSequence=groups)
    names = [
        "MR_small_RLE.dcm",
        "JPEG-lossy.dcm",
        "reportsi.dcm",
        "nested_priv_SQ.dcm",
        "badVR.dcm",
    ]
    names += ["dicomdirtests/DICOMDIR", "rtstruct.dcm", "UN_sequence.dcm", "no_meta.dcm"]
    return files | {name: (TEST_FILES / name).read_bytes() for name in names}


def test_broken_files_are_read_or_rejected() -> None:
    for name, data in originals().items():
        source = random.Random(name)
        for _ in range(MUTATIONS_EACH):
            check(mutate(data, source))


def test_a_header_known_from_before_changes_nothing() -> None:
    for name, data in originals().items():
        source = random.Random(name)
        if rejection(lambda data=data: read_slice(data)):
            continue
        known = read_header(io.BytesIO(data), len(data))
        for broken in [data, *(mutate(data, source) for _ in range(MUTATIONS_EACH))]:
            assert outcome(broken, known) == outcome(broken, None)


def outcome(data: bytes, known: Header | None) -> object:
    try:
        return read_slice(data, known).pixels.tobytes()
    except Rejected as rejected:
        return rejected.reason, rejected.detail


def check(data: bytes) -> None:
    started = time.process_time()
    header = rejection(lambda: read_header(io.BytesIO(data), len(data)))
    full = rejection(lambda: read_slice(data))
    assert header in (None, full)
    assert time.process_time() - started < 10


def rejection(read: Callable[[], object]) -> tuple[str, str] | None:
    try:
        read()
    except Rejected as rejected:
        return rejected.reason, rejected.detail
    return None


def test_broken_real_files_are_read_or_rejected(real_data: Path, full: bool) -> None:
    source = random.Random(2019)
    paths = sorted((real_data / "encodings").iterdir())
    paths += sorted((real_data / "rsna" / "slices").iterdir())[::60]
    files = [path.read_bytes() for path in paths]
    for _ in range(ALL_MUTATIONS_OF_REAL_FILES if full else MUTATIONS_OF_REAL_FILES):
        check(mutate(source.choice(files), source))
