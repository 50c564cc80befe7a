"""`tf.train.Example` and TFRecord, written without TensorFlow.

The message is declared here as in tensorflow/core/example/feature.proto, for the protocol buffers
library to encode; the frame around it is a length and two checksums
(tensorflow/core/lib/io/record_writer.h).
"""

import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import google_crc32c
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

Feature = bytes | str | list[int] | list[float]

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_MAX_MESSAGE_BYTES = (1 << 31) - 1  # of a protocol buffer
_LISTS = {
    "bytes_list": ("BytesList", FieldDescriptorProto.TYPE_BYTES),
    "float_list": ("FloatList", FieldDescriptorProto.TYPE_FLOAT),
    "int64_list": ("Int64List", FieldDescriptorProto.TYPE_INT64),
}

FRAME_BYTES = 16  # of a TFRecord, beside its data: length (8), its checksum (4), the data's (4)
DATA_OFFSET = 12  # of a TFRecord: where its data begin


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


def _declare_example() -> Any:
    """The message class, in a pool of its own: TensorFlow may declare the same name in its own."""
    file = FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")
    feature = DescriptorProto(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, (kind, of)) in enumerate(_LISTS.items(), start=1):
        _add_field(file.message_type.add(name=kind), "value", 1, of, repeated=True)
        _add_field(feature, name, number, kind).oneof_index = 0
    file.message_type.append(feature)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    _add_field(entry, "key", 1, FieldDescriptorProto.TYPE_STRING)
    _add_field(entry, "value", 2, "Feature")
    _add_field(features, "feature", 1, "Features.FeatureEntry", repeated=True)
    _add_field(file.message_type.add(name="Example"), "features", 1, "Features")
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


def _add_field(
    message: DescriptorProto,
    name: str,
    number: int,
    kind: "str | FieldDescriptorProto.Type.ValueType",
    *,
    repeated: bool = False,
) -> FieldDescriptorProto:
    label = FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
    field = message.field.add(name=name, number=number, label=label)
    if isinstance(kind, str):
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".tensorflow.{kind}"
    else:
        field.type = kind
    return field


_Example = _declare_example()


def encode_example(features: Mapping[str, Feature]) -> bytes:
    """A serialized `tf.train.Example`: bytes and str become a bytes_list of one value."""
    example = _Example()
    example.features.SetInParent()  # there even if empty
    for name, value in features.items():
        feature = example.features.feature[name]
        if isinstance(value, bytes | str):
            value = value.encode() if isinstance(value, str) else value
            feature.bytes_list.value.append(value)
        elif all(isinstance(item, int) for item in value):
            feature.int64_list.SetInParent()  # TensorFlow takes a feature without a list for absent
            feature.int64_list.value.extend(value)
        else:
            feature.float_list.value.extend(value)
    data: bytes = example.SerializeToString(deterministic=True)
    return data


def decode_example(data: bytes) -> dict[str, list[bytes] | list[int] | list[float]]:
    """The features of a serialized `tf.train.Example`.

    A feature without values is an empty list.

    Raises:
        ValueError: not such an Example as `encode_example` and TensorFlow write; fields that are
            unknown or there twice are not.
    """
    try:
        example = _Example.FromString(data)
    except DecodeError:
        raise ValueError("not a tf.train.Example") from None
    example.DiscardUnknownFields()
    if example.ByteSize() != len(data):
        raise ValueError("not a tf.train.Example: fields that are unknown or there twice")
    return {name: _values(feature) for name, feature in example.features.feature.items()}


def _values(feature: Any) -> list[bytes] | list[int] | list[float]:
    kind = feature.WhichOneof("kind")
    return list(getattr(feature, kind).value) if kind else []


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
