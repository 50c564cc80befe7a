"""TFRecord files without TensorFlow: writing, reading and checking of records.

A record is a length (uint64), its checksum (uint32), the data and their checksum:
https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

import google_crc32c

_HEAD, _TAIL = struct.Struct("<QI"), struct.Struct("<I")
_LENGTH_BYTES = 8
_MAX_DATA_BYTES = (1 << 31) - 1  # protocol buffers are never longer

DATA_OFFSET = _HEAD.size  # the data's offset in the record, bytes
FRAME_BYTES = _HEAD.size + _TAIL.size  # a record's size without its data


class CorruptRecord(ValueError):
    """A record is cut short or fails a checksum.

    Attributes:
        what: the error, in a few words.
        offset: of the record in its file, bytes.
    """

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(f"{what} at byte {offset}")
        self.what = what
        self.offset = offset


def frame_record(data: bytes) -> bytes:
    """Return the record of some data."""
    length = struct.pack("<Q", len(data))
    head = _HEAD.pack(len(data), _masked_crc(length))
    return b"".join((head, data, _TAIL.pack(_masked_crc(data))))


def read_records(file: BinaryIO) -> Iterator[bytes]:
    """Yield the checked data of a file's records.

    Raises:
        CorruptRecord: a record is cut short or fails a checksum.
    """
    offset = 0
    while (data := read_record(file, offset)) is not None:
        yield data
        offset += len(data) + FRAME_BYTES


def read_record(file: BinaryIO, offset: int) -> bytes | None:
    """Return the data of the next record, or None at the end of the file.

    Args:
        file: to read from, at the beginning of a record.
        offset: of the record in the file, bytes; for messages only.

    Raises:
        CorruptRecord: the record is cut short or fails a checksum.
    """
    length = _read_length(file, offset)
    if length is None:
        return None
    data, tail = file.read(length), file.read(_TAIL.size)
    if len(data) < length or len(tail) < _TAIL.size:
        raise CorruptRecord("truncated data", offset)
    if _TAIL.unpack(tail) != (_masked_crc(data),):
        raise CorruptRecord("bad checksum of the data", offset)
    return data


def check_lengths(file: BinaryIO) -> None:
    """Check the length of every record without reading data: a few microseconds per record.

    TensorFlow allocates the stated length and ends the process if the memory is too small:
    check untrusted files first.

    Args:
        file: unbuffered.

    Raises:
        CorruptRecord: a length fails its checksum, or the file ends within a record.
    """
    end, offset = file.seek(0, os.SEEK_END), file.seek(0)
    while (length := _read_length(file, offset)) is not None:
        if offset + length + FRAME_BYTES > end:
            raise CorruptRecord("truncated data", offset)
        offset = file.seek(offset + length + FRAME_BYTES)


def _read_length(file: BinaryIO, offset: int) -> int | None:
    """Return the length of the next record's data, or None at the end of the file."""
    head = file.read(_HEAD.size)
    if not head:
        return None
    if len(head) < _HEAD.size:
        raise CorruptRecord("truncated length", offset)
    length, checksum = _HEAD.unpack(head)
    # do not allocate impossible lengths, even if the checksum is right
    if checksum != _masked_crc(head[:_LENGTH_BYTES]) or length > _MAX_DATA_BYTES:
        raise CorruptRecord("bad checksum of the length", offset)
    return int(length)


def _masked_crc(data: bytes) -> int:
    """Return the CRC-32C, rotated and offset so that checksums of checksums stay sound."""
    checksum: int = google_crc32c.value(data)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
