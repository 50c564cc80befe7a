"""`tf.train.Example` and TFRecord, written without TensorFlow.

The two wire formats are small and frozen: protocol buffers' encoding of three list types
(tensorflow/core/example/feature.proto) and a length-and-checksum frame
(tensorflow/core/lib/io/record_writer.h).
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO

import google_crc32c
import numpy as np

Feature = bytes | str | list[int] | list[float]

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_FRAME_BYTES = 16  # length (8), its checksum (4), the data's checksum (4)


class CorruptRecord(ValueError):
    """A TFRecord frame is cut short or fails its checksum."""


def encode_example(features: Mapping[str, Feature]) -> bytes:
    """A serialized `tf.train.Example`: bytes and str become a bytes_list of one value."""
    entries = b"".join(
        _field(1, _field(1, name.encode()) + _field(2, _encode_feature(features[name])))
        for name in sorted(features)
    )
    return _field(1, entries)


def _encode_feature(value: Feature) -> bytes:
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return _field(1, _field(1, value))
    if all(isinstance(item, int) for item in value):
        return _field(3, _field(1, b"".join(map(_varint, map(int, value)))))
    return _field(2, _field(1, np.asarray(value, "<f4").tobytes()))


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field (wire type 2)."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative int64 values are sent as their two's complement
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def frame_record(data: bytes) -> bytes:
    """A TFRecord: length, masked CRC-32C of the length, data, masked CRC-32C of the data."""
    length = _LENGTH.pack(len(data))
    return b"".join(
        (length, _CHECKSUM.pack(_masked_crc(length)), data, _CHECKSUM.pack(_masked_crc(data)))
    )


def read_records(file: BinaryIO) -> Iterator[bytes]:
    """The records of a TFRecord file, each checked.

    Raises:
        CorruptRecord: a frame is cut short or fails its checksum; the message has its offset.
    """
    offset = 0
    while head := file.read(12):
        if len(head) < 12 or _CHECKSUM.unpack(head[8:])[0] != _masked_crc(head[:8]):
            raise CorruptRecord(f"bad length at byte {offset}")
        (length,) = _LENGTH.unpack(head[:8])
        data = file.read(length)
        tail = file.read(4)
        if len(data) < length or len(tail) < 4 or _CHECKSUM.unpack(tail)[0] != _masked_crc(data):
            raise CorruptRecord(f"bad data at byte {offset}")
        yield data
        offset += length + _FRAME_BYTES


def _masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and offset so that a checksum of checksums stays sound."""
    checksum: int = google_crc32c.value(data)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def decode_example(data: bytes) -> dict[str, list[bytes] | list[int] | list[float]]:
    """The features of a serialized `tf.train.Example`.

    Raises:
        ValueError: not an Example.
    """
    features: dict[str, list[bytes] | list[int] | list[float]] = {}
    for entries in _payloads(data, 1):
        for entry in _payloads(entries, 1):
            (name,) = _payloads(entry, 1)
            (feature,) = _payloads(entry, 2)
            features[name.decode()] = _decode_feature(feature)
    return features


def _decode_feature(feature: bytes) -> list[bytes] | list[int] | list[float]:
    ((kind, values),) = _fields(feature)
    if kind == 1:
        return list(_payloads(values, 1))
    packed = b"".join(_payloads(values, 1))
    if kind == 2:
        return [float(value) for value in np.frombuffer(packed, "<f4")]
    return [value - (1 << 64) if value >> 63 else value for value in _varints(packed)]


def _payloads(message: bytes, number: int) -> Iterable[bytes]:
    return (payload for field, payload in _fields(message) if field == number)


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        length, at = _read_varint(message, at)
        if key & 7 != 2 or at + length > len(message):
            raise ValueError("not a tf.train.Example")
        yield key >> 3, message[at : at + length]
        at += length


def _varints(packed: bytes) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = _read_varint(packed, at)
        yield value


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("not a tf.train.Example")
