"""File formats of a shard directory, without TensorFlow: examples, index, TFDS files.

The message `tf.train.Example` is declared as in tensorflow/core/example/feature.proto, and encoded
by the protocol buffers library.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from numpy.typing import NDArray

from headct.layout import (
    DATASET,
    DATASET_VERSION,
    EXAMPLE_FEATURES,
    FILE_FORMAT,
    SHARD_TEMPLATE,
    index_columns,
)

Values = bytes | str | list[int] | list[float]

# feature.proto; `oneof_index: 0` is the group `kind`.
_EXAMPLE = """
name: "example.proto" package: "tensorflow" syntax: "proto3"
message_type { name: "BytesList"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "FloatList"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: "Int64List"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type { name: "Feature" oneof_decl { name: "kind" }
  field { name: "bytes_list" number: 1 type: TYPE_MESSAGE type_name: "BytesList" oneof_index: 0 }
  field { name: "float_list" number: 2 type: TYPE_MESSAGE type_name: "FloatList" oneof_index: 0 }
  field { name: "int64_list" number: 3 type: TYPE_MESSAGE type_name: "Int64List" oneof_index: 0 } }
message_type { name: "Features"
  nested_type { name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING }
    field { name: "value" number: 2 type: TYPE_MESSAGE type_name: "Feature" } }
  field { name: "feature" number: 1 label: LABEL_REPEATED
    type: TYPE_MESSAGE type_name: "Features.FeatureEntry" } }
message_type { name: "Example"
  field { name: "features" number: 1 type: TYPE_MESSAGE type_name: "Features" } }
"""
_pool = DescriptorPool()  # its own, to avoid a conflict with TensorFlow's declaration
_pool.Add(text_format.Parse(_EXAMPLE, FileDescriptorProto()))
_Example: Any = GetMessageClass(_pool.FindMessageTypeByName("tensorflow.Example"))


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
    kinds = {name: feature.WhichOneof("kind") for name, feature in example.features.feature.items()}
    return {
        name: list(getattr(example.features.feature[name], kind).value) if kind else []
        for name, kind in kinds.items()
    }


_ROW_GROUP = 1 << 14
_MOST_BYTES = (1 << 31) - 1  # of the texts of a column


def index_schema(labels: Sequence[str]) -> pa.Schema:
    """Return the schema of the index."""
    return pa.schema([(name, pa.type_for_alias(dtype)) for name, dtype in index_columns(labels)])


def index_table(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> pa.Table:
    """Return rows as an index table, in order; other fields are dropped."""
    return table_of_rows(rows, index_schema(labels))


def table_of_rows(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows as a table.

    The columns are made of buffers: `pa.array` and `Table.from_pylist` would load pandas, which
    takes a worker process longer than all else that it loads.

    Args:
        rows: with a value for each column; other fields are dropped. A NaN becomes null.
        schema: of numbers, texts, bytes, and texts in dictionaries of int32.
    """
    columns = [_column([row[field.name] for row in rows], field.type) for field in schema]
    return pa.table(columns, schema=schema)


def _column(values: list[Any], dtype: pa.DataType) -> pa.Array:
    valid, count = None, len(values)
    if pa.types.is_dictionary(dtype):
        places: dict[str, int] = {}
        indices = [places.setdefault(text, len(places)) for text in values]
        known = _column([*places], dtype.value_type)
        return pa.DictionaryArray.from_arrays(_column(indices, dtype.index_type), known)
    if pa.types.is_string(dtype) or pa.types.is_binary(dtype):
        encoded = values if pa.types.is_binary(dtype) else [text.encode() for text in values]
        ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        if ends[-1] > _MOST_BYTES:
            raise OverflowError("a table has more than 2 GiB of text in a column")
        return pa.Array.from_buffers(
            dtype, count, [None, *map(pa.py_buffer, (ends.astype(np.int32), b"".join(encoded)))]
        )
    numbers = np.array(values, str(dtype))  # such as int32 and double
    if pa.types.is_floating(dtype) and np.isnan(numbers).any():
        valid = _bits(~np.isnan(numbers))
    data = _bits(numbers) if pa.types.is_boolean(dtype) else pa.py_buffer(numbers)
    return pa.Array.from_buffers(dtype, count, [valid, data])


def _bits(flags: NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))


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
        "version": DATASET_VERSION,
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
    features: dict[str, Any] = {}
    for name, dtype, shape, _ in EXAMPLE_FEATURES:
        if dtype == "PNG":
            kind, module = "image", "image_feature.Image"
            size = [image["height"], image["width"], image["channels"]]
            content = {"shape": _dimensions(size), "dtype": image["dtype"], "encodingFormat": "png"}
        elif dtype == "string":
            kind, module, content = "text", "text_feature.Text", {}
        else:
            kind, module = "tensor", "tensor_feature.Tensor" if shape else "scalar.Scalar"
            size = [labels if length == "labels" else int(length) for length in shape]
            content = {"shape": _dimensions(size), "dtype": dtype, "encoding": "none"}
        features[name] = {"pythonClassName": f"{_MODULES}.{module}", kind: content}
    class_name = f"{_MODULES}.features_dict.FeaturesDict"
    return {"pythonClassName": class_name, "featuresDict": {"features": features}}


def _dimensions(shape: Sequence[int]) -> dict[str, list[str]]:
    return {"dimensions": [str(size) for size in shape]} if shape else {}
