"""`tf.train.Example` and TFRecord, written without TensorFlow.

The two wire formats are small and frozen: protocol buffers' encoding of three list types
(tensorflow/core/example/feature.proto) and a length-and-checksum frame
(tensorflow/core/lib/io/record_writer.h).
"""

import struct
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import google_crc32c
import numpy as np

Feature = bytes | str | list[int] | list[float]
_Parts = list[bytes]

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_MAX_MESSAGE_BYTES = (1 << 31) - 1  # of a protocol buffer
_NOT_AN_EXAMPLE = "not a tf.train.Example"

FRAME_BYTES = 16  # of a TFRecord, beside its data: length (8), its checksum (4), the data's (4)


class CorruptRecord(ValueError):
    """A TFRecord frame is cut short or fails a checksum.

    Attributes:
        offset: where the frame begins, bytes.
        end: where the next one begins; None where that cannot be told.
    """

    def __init__(self, what: str, offset: int, end: int | None = None) -> None:
        super().__init__(f"{what} at byte {offset}")
        self.what = what
        self.offset = offset
        self.end = end


def encode_example(features: Mapping[str, Feature]) -> bytes:
    """A serialized `tf.train.Example`: bytes and str become a bytes_list of one value."""
    entries: _Parts = []
    for name in sorted(features):
        entry = _field(1, [name.encode()]) + _field(2, _encode_feature(features[name]))
        entries += _field(1, entry)
    return b"".join(_field(1, entries))


def _encode_feature(value: Feature) -> _Parts:
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return _field(1, _field(1, [value]))
    if all(isinstance(item, int) for item in value):
        return _field(3, _field(1, [b"".join(map(_varint, map(int, value)))]))
    return _field(2, _field(1, [np.asarray(value, "<f4").tobytes()]))


def _field(number: int, payload: _Parts) -> _Parts:
    """A length-delimited field (wire type 2), in parts: an image is copied but once, at the end."""
    return [_varint(number << 3 | 2) + _varint(sum(map(len, payload))), *payload]


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
        CorruptRecord: a frame is cut short or fails a checksum; the message has its offset.
    """
    offset = 0
    while (data := read_record(file, offset)) is not None:
        yield data
        offset += len(data) + FRAME_BYTES


def read_record(file: BinaryIO, offset: int) -> bytes | None:
    """The next record of a TFRecord file, or None at the file's end.

    Args:
        file: to read from, at the beginning of a frame.
        offset: of that frame in the file, bytes: for messages only.

    Raises:
        CorruptRecord: the frame is cut short or fails a checksum.
    """
    head = file.read(12)
    if not head:
        return None
    if len(head) < 12:
        raise CorruptRecord("truncated length", offset)
    (length,) = _LENGTH.unpack(head[:8])
    # No protocol buffer is longer: not worth an allocation, even if the checksum is right.
    if _CHECKSUM.unpack(head[8:])[0] != _masked_crc(head[:8]) or length > _MAX_MESSAGE_BYTES:
        raise CorruptRecord("bad checksum of the length", offset)
    data, tail = file.read(length), file.read(4)
    if len(data) < length or len(tail) < 4:
        raise CorruptRecord("truncated data", offset)
    if _CHECKSUM.unpack(tail)[0] != _masked_crc(data):
        raise CorruptRecord("bad checksum of the data", offset, offset + length + FRAME_BYTES)
    return data


def _masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and offset so that a checksum of checksums stays sound."""
    checksum: int = google_crc32c.value(data)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def decode_example(data: bytes) -> dict[str, list[bytes] | list[int] | list[float]]:
    """The features of a serialized `tf.train.Example`.

    Reads what `encode_example` and TensorFlow write: numbers packed, no field unknown. A feature
    without values is an empty list.

    Raises:
        ValueError: not such an Example, or a feature is there twice.
    """
    features: dict[str, list[bytes] | list[int] | list[float]] = {}
    for entries in _payloads(data):
        for entry in _payloads(entries):
            name, feature = _name_and_feature(entry)
            if name in features:
                raise ValueError("a feature is there twice")
            features[name] = _decode_feature(feature)
    return features


def _name_and_feature(entry: bytes) -> tuple[str, bytes]:
    parts = list(_fields(entry))
    if [number for number, _ in parts] != [1, 2]:
        raise ValueError(_NOT_AN_EXAMPLE)
    try:
        return parts[0][1].decode(), parts[1][1]
    except UnicodeDecodeError:
        raise ValueError(_NOT_AN_EXAMPLE) from None


def _decode_feature(feature: bytes) -> list[bytes] | list[int] | list[float]:
    lists = list(_fields(feature))
    if not lists:
        return []
    if len(lists) > 1 or lists[0][0] not in (1, 2, 3):
        raise ValueError(_NOT_AN_EXAMPLE)
    kind, values = lists[0]
    items = list(_payloads(values))
    if kind == 1:
        return items
    packed = b"".join(items)
    if kind == 3:
        return [value - (1 << 64) if value >> 63 else value for value in _varints(packed)]
    if len(packed) % 4:
        raise ValueError(_NOT_AN_EXAMPLE)
    return [float(value) for value in np.frombuffer(packed, "<f4")]


def _payloads(message: bytes) -> Iterator[bytes]:
    """The values of a message whose only field has the number 1."""
    for number, payload in _fields(message):
        if number != 1:
            raise ValueError(_NOT_AN_EXAMPLE)
        yield payload


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        length, at = _read_varint(message, at)
        if key & 7 != 2 or at + length > len(message):
            raise ValueError(_NOT_AN_EXAMPLE)
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
    raise ValueError(_NOT_AN_EXAMPLE)
