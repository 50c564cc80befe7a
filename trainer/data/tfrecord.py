"""TFRecord files without TensorFlow: frames, checked before anything is allocated.

TensorFlow allocates what a frame's length asks for, and ends the process where that is more than
there is; so a shard's frames are checked before TensorFlow reads it.
https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import google_crc32c

# A record is a length (uint64), its checksum (uint32), the data and its checksum.
HEAD, TAIL = struct.Struct("<QI"), struct.Struct("<I")


def masked_crc(data: bytes) -> int:
    """CRC-32C as TFRecord masks it."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_frames(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Where the data of each record begin, and how many bytes they are.

    Args:
        file: unbuffered; it may be read in between.

    Raises:
        ValueError: a frame's length is wrong, or the file ends within it.
    """
    descriptor, end = file.fileno(), os.fstat(file.fileno()).st_size
    start = 0
    while start < end:
        head = os.pread(descriptor, HEAD.size, start)
        if len(head) < HEAD.size:
            raise ValueError("the record is cut short")
        length, crc = HEAD.unpack(head)
        if crc != masked_crc(head[:8]):
            raise ValueError("the checksum of the record's length is wrong")
        if length > end - start - HEAD.size - TAIL.size:
            raise ValueError("the record is cut short")
        yield start + HEAD.size, length
        start += HEAD.size + length + TAIL.size


def read_records(path: Path) -> Iterator[bytes]:
    """The records of a file, each checked.

    Raises:
        OSError: the file cannot be read.
        ValueError: a record is cut short, or a checksum is wrong.
    """
    with path.open("rb", buffering=0) as file:
        for start, length in read_frames(file):
            data = os.pread(file.fileno(), length + TAIL.size, start)
            record, crc = data[:length], data[length:]
            if len(crc) < TAIL.size:
                raise ValueError("the record is cut short")
            if TAIL.unpack(crc) != (masked_crc(record),):
                raise ValueError("the record's checksum is wrong")
            yield record


def check_frames(path: bytes) -> bytes:
    """Goes through the lengths of a file's records, a few microseconds each; returns `path`.

    Raises:
        ValueError: one of them is wrong, or the file cannot be read.
    """
    try:
        with Path(os.fsdecode(path)).open("rb", buffering=0) as file:
            for _ in read_frames(file):
                pass
    except OSError as error:
        raise ValueError(f"the file cannot be read ({error.strerror})") from None
    return path
