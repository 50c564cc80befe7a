from pathlib import Path

import pytest
import tensorflow as tf

from tests.trainer.record_files import frame
from trainer.data.tfrecord import check_frames, read_records

RECORDS = [b"one", b"", bytes(100_000), b"four"]


def test_records_that_tensorflow_wrote(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in RECORDS:
            writer.write(record)
    assert path.read_bytes() == b"".join(map(frame, RECORDS))
    assert list(read_records(path)) == RECORDS
    assert check_frames(bytes(path)) == bytes(path)


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


GOOD = frame(b"one")
BROKEN_FRAMES = {
    "a byte of the length": (GOOD + flip(GOOD, 0), "the checksum of the record's length is wrong"),
    "its checksum": (GOOD + flip(GOOD, 8), "the checksum of the record's length is wrong"),
    "half a head": (GOOD + GOOD[:11], "the record is cut short"),
    "half a record": (GOOD + GOOD[:-1], "the record is cut short"),
    "a byte too long": (GOOD + frame(b"one", 4), "the record is cut short"),
    "a petabyte": (GOOD + frame(b"one", 1 << 50), "the record is cut short"),
    "all bits": (GOOD + frame(b"one", (1 << 64) - 1), "the record is cut short"),
}


@pytest.mark.parametrize("name", BROKEN_FRAMES)
def test_frames_are_checked(name: str, tmp_path: Path) -> None:
    content, message = BROKEN_FRAMES[name]
    path = tmp_path / "shard"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_frames(bytes(path))
    records = read_records(path)
    assert next(records) == b"one"
    with pytest.raises(ValueError, match=f"^{message}$"):
        next(records)


@pytest.mark.parametrize("place", [12, 15])
def test_the_data_are_checked(place: int, tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(flip(GOOD, place))
    with pytest.raises(ValueError, match=r"^the record's checksum is wrong$"):
        list(read_records(path))


@pytest.mark.parametrize("missing", [1, 4, 6])
def test_a_file_that_shrinks_while_it_is_read(missing: int, tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(GOOD + GOOD)
    records = read_records(path)
    assert next(records) == b"one"
    path.write_bytes((GOOD + GOOD)[:-missing])
    with pytest.raises(ValueError, match=r"^the record is cut short$"):
        next(records)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^the file cannot be read \(No such file"):
        check_frames(bytes(tmp_path / "shard"))
