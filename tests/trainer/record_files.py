"""TFRecord files, written by hand so that they can be wrong."""

import struct

import google_crc32c


def crc(data: bytes) -> bytes:
    value = google_crc32c.value(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def frame(record: bytes, length: int | None = None) -> bytes:
    """A record; `length` is what it claims, with the right checksum."""
    head = struct.pack("<Q", len(record) if length is None else length)
    return head + crc(head) + record + crc(record)


def split_records(shard: bytes) -> list[bytes]:
    """The records of a good file."""
    records, start = [], 0
    while start < len(shard):
        (length,) = struct.unpack_from("<Q", shard, start)
        records.append(shard[start + 12 : start + 12 + length])
        start += 16 + length
    return records
