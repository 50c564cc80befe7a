"""`tf.train.Example` without TensorFlow.

The message is declared here as in tensorflow/core/example/feature.proto, for the protocol buffers
library to encode.
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

Feature = bytes | str | list[int] | list[float]

_LISTS = {
    "bytes_list": ("BytesList", FieldDescriptorProto.TYPE_BYTES),
    "float_list": ("FloatList", FieldDescriptorProto.TYPE_FLOAT),
    "int64_list": ("Int64List", FieldDescriptorProto.TYPE_INT64),
}


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
