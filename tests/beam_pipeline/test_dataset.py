"""Files read up to their pixels: bounded, quiet, and by one kind of failure."""

import io
import logging
import time
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydicom import config, uid
from pydicom.tag import Tag

from beam_pipeline.dicom.dataset import MAX_FILE_BYTES, inflate, parse
from beam_pipeline.dicom.slices import FIRST_BYTES, read_header, read_slice
from beam_pipeline.dicom.third_party import contained
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
    assert parsed.big_endian == (syntax == uid.ExplicitVRBigEndian)
    assert list(parsed.dataset.keys()) == [Tag("Rows")]
    assert parsed.pixels is not None
    assert (parsed.pixels.keyword, parsed.pixels.length) == ("PixelData", length)
    assert parsed.pixels.vr == vr
    order = ">" if parsed.big_endian else "<"
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
