"""File formats of a shard directory, without TensorFlow: examples, index, TFDS files.

The message `tf.train.Example` is declared as in tensorflow/core/example/feature.proto, and encoded
by the protocol buffers library.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from headct.layout import (
    DATASET,
    EXAMPLE_FEATURES,
    FILE_FORMAT,
    SHARD_TEMPLATE,
    Feature,
    index_columns,
)

Values = bytes | str | list[int] | list[float]

_LISTS = {
    "bytes_list": ("BytesList", FieldDescriptorProto.TYPE_BYTES),
    "float_list": ("FloatList", FieldDescriptorProto.TYPE_FLOAT),
    "int64_list": ("Int64List", FieldDescriptorProto.TYPE_INT64),
}


def _declare_example() -> Any:
    """Return the message class; its own pool avoids a conflict with TensorFlow's declaration."""
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


def encode_example(features: Mapping[str, Values]) -> bytes:
    """Return a serialized `tf.train.Example`; bytes and str become a bytes_list of one value."""
    example = _Example()
    example.features.SetInParent()  # set even if empty
    for name, value in features.items():
        feature = example.features.feature[name]
        if isinstance(value, bytes | str):
            value = value.encode() if isinstance(value, str) else value
            feature.bytes_list.value.append(value)
        elif all(isinstance(item, int) for item in value):
            feature.int64_list.SetInParent()  # TensorFlow treats a feature without a list as absent
            feature.int64_list.value.extend(value)
        else:
            feature.float_list.value.extend(value)
    data: bytes = example.SerializeToString(deterministic=True)
    return data


def decode_example(data: bytes) -> dict[str, list[bytes] | list[int] | list[float]]:
    """Return the features of a serialized `tf.train.Example`.

    A feature without values is an empty list.

    Raises:
        ValueError: the data is no Example, or has unknown or repeated fields.
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


_ROW_GROUP = 1 << 14


def index_schema(labels: Sequence[str]) -> pa.Schema:
    """Return the schema of the index."""
    return pa.schema([(name, pa.type_for_alias(dtype)) for name, dtype in index_columns(labels)])


def index_table(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> pa.Table:
    """Return rows as an index table, in order; other fields are dropped."""
    schema = index_schema(labels)
    columns = [
        # from_pandas: a NaN position becomes null.
        pa.array([row[field.name] for row in rows], field.type, from_pandas=True)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def write_index(file: BinaryIO, parts: Iterable[pa.Table], labels: Sequence[str]) -> None:
    """Write the concatenation of index tables; only a few parts are in memory."""
    schema = index_schema(labels)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        waiting: list[pa.Table] = []
        for part in parts:
            waiting.append(part.replace_schema_metadata())
            if sum(map(len, waiting)) >= _ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting).combine_chunks())


_MODULES = "tensorflow_datasets.core.features"


def describe_dataset(splits: dict[str, Any]) -> dict[str, Any]:
    """Return `dataset_info.json` (the DatasetInfo message of TensorFlow Datasets)."""
    return {
        "name": DATASET,
        "version": "1.0.0",
        "fileFormat": FILE_FORMAT,
        "description": "Head-CT slices as windowed PNG images.",
        "splits": [
            {
                "name": name,
                "filepathTemplate": SHARD_TEMPLATE,
                "shardLengths": [str(shard["examples"]) for shard in split["shards"]],
                "numBytes": str(sum(shard["bytes"] for shard in split["shards"])),
            }
            for name, split in splits.items()
        ],
        # Result of `as_supervised=True`.
        "supervisedKeys": {
            "tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]},
        },
    }


def describe_features(labels: int, image: dict[str, Any]) -> dict[str, Any]:
    """Return `features.json`, which tells TensorFlow Datasets how to decode an example.

    Args:
        labels: number of labels per example.
        image: `image` of the manifest.
    """
    return {
        "pythonClassName": f"{_MODULES}.features_dict.FeaturesDict",
        "featuresDict": {
            "features": {
                feature.name: _describe_feature(feature, labels, image)
                for feature in EXAMPLE_FEATURES
            }
        },
    }


def _describe_feature(feature: Feature, labels: int, image: dict[str, Any]) -> dict[str, Any]:
    if feature.dtype == "PNG":
        dimensions = _dimensions([image["height"], image["width"], image["channels"]])
        content = {"shape": dimensions, "dtype": image["dtype"], "encodingFormat": "png"}
        return {"pythonClassName": f"{_MODULES}.image_feature.Image", "image": content}
    if feature.dtype == "string":
        return {"pythonClassName": f"{_MODULES}.text_feature.Text", "text": {}}
    shape = [labels if size == "labels" else int(size) for size in feature.shape]
    return _tensor(shape, feature.dtype)


def _tensor(shape: Sequence[int], dtype: str) -> dict[str, Any]:
    kind = "Scalar" if not shape else "Tensor"
    module = "scalar" if not shape else "tensor_feature"
    tensor = {"shape": _dimensions(shape), "dtype": dtype, "encoding": "none"}
    return {
        "pythonClassName": f"{_MODULES}.{module}.{kind}",
        "tensor": tensor,
    }


def _dimensions(shape: Sequence[int]) -> dict[str, list[str]]:
    return {"dimensions": [str(size) for size in shape]} if shape else {}
