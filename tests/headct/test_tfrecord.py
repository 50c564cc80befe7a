"""TensorFlow, which defines the format, judges what we write and read."""

import io
import os
import struct
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headct.tfrecord import (
    DATA_OFFSET,
    CorruptRecord,
    check_lengths,
    frame_record,
    read_record,
    read_records,
)

tf = pytest.importorskip("tensorflow")  # another implementation


RECORDS = [b"", b"a", b"\x89PNG\x00\xff" * 100, bytes(100_000)]


def check(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        check_lengths(file)


def test_tensorflow_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "records"
    path.write_bytes(b"".join(map(frame_record, RECORDS)))
    assert [each.numpy() for each in tf.data.TFRecordDataset(str(path))] == RECORDS


def test_a_file_of_tensorflow_is_read(tmp_path: Path) -> None:
    path = tmp_path / "records"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in RECORDS:
            writer.write(record)
    assert path.read_bytes() == b"".join(map(frame_record, RECORDS))
    with path.open("rb") as file:
        assert list(read_records(file)) == RECORDS
    check(path)


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_records_round_trip(records: list[bytes]) -> None:
    assert list(read_records(io.BytesIO(b"".join(map(frame_record, records))))) == records


def test_every_flipped_bit_is_found() -> None:
    first, second = frame_record(b"first"), frame_record(b"second")
    for place in range(8 * len(second)):
        damaged = bytearray(first + second)
        damaged[len(first) + place // 8] ^= 1 << place % 8
        with pytest.raises(CorruptRecord, match=f"at byte {len(first)}$"):
            list(read_records(io.BytesIO(damaged)))


def test_every_cut_is_found() -> None:
    first, second = frame_record(b"first"), frame_record(b"second")
    for length in range(1, len(second)):
        with pytest.raises(CorruptRecord, match="truncated") as found:
            list(read_records(io.BytesIO(first + second[:length])))
        assert found.value.offset == len(first)


def test_the_record_after_damaged_data_can_be_read() -> None:
    first, second = bytearray(frame_record(b"first")), frame_record(b"second")
    first[13] ^= 1
    file = io.BytesIO(first + second)
    with pytest.raises(CorruptRecord, match="checksum of the data at byte 0"):
        read_record(file, 0)
    assert read_record(file, len(first)) == b"second"
    assert read_record(file, len(first) + len(second)) is None


TOO_LONG = "checksum of the length"


@pytest.mark.parametrize(
    ("length", "what"),
    [(1 << 60, TOO_LONG), (1 << 31, TOO_LONG), ((1 << 31) - 1, "truncated data")],
)
def test_a_length_that_no_message_has_is_not_allocated_for(length: int, what: str) -> None:
    packed = struct.pack("<Q", length)
    checksum = frame_record(packed)[-4:]  # the right one
    with pytest.raises(CorruptRecord, match=what):
        list(read_records(io.BytesIO(packed + checksum)))


def claiming(length: int) -> bytes:
    """The record of three bytes that says it has another length, with the right checksum."""
    packed = struct.pack("<Q", length)
    return packed + frame_record(packed)[-4:] + frame_record(b"one")[DATA_OFFSET:]


GOOD = frame_record(b"one")
BROKEN = {
    "a byte of the length": (b"\x02" + GOOD[1:], "bad checksum of the length"),
    "its checksum": (GOOD[:8] + bytes(4) + GOOD[12:], "bad checksum of the length"),
    "half a head": (GOOD[:11], "truncated length"),
    "half a record": (GOOD[:-1], "truncated data"),
    "a byte too long": (claiming(4), "truncated data"),
    "a petabyte": (claiming(1 << 50), "bad checksum of the length"),
    "all bits": (claiming((1 << 64) - 1), "bad checksum of the length"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_lengths_are_checked_without_the_data(name: str, tmp_path: Path) -> None:
    content, message = BROKEN[name]
    path = tmp_path / "shard"
    path.write_bytes(GOOD + content)
    with pytest.raises(CorruptRecord, match=f"^{message} at byte {len(GOOD)}$"):
        check(path)
    with path.open("rb") as file, pytest.raises(CorruptRecord, match=f"^{message} at byte"):
        list(read_records(file))


def test_wrong_data_have_the_right_length(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(GOOD[:-1] + b"\0" + GOOD)
    check(path)


@pytest.mark.parametrize("missing", [1, 4, 6])
def test_a_file_that_shrinks_while_it_is_read(missing: int, tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(GOOD + GOOD)
    with path.open("rb", buffering=0) as file:
        records = read_records(file)
        assert next(records) == b"one"
        path.write_bytes((GOOD + GOOD)[:-missing])
        with pytest.raises(CorruptRecord, match=r"^truncated data at byte"):
            next(records)
