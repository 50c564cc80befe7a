"""TensorFlow, which defines both formats, is the judge of what we write and read."""

import contextlib
import io
import os
import struct
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipeline.directory.example import (
    FRAME_BYTES,
    CorruptRecord,
    decode_example,
    encode_example,
    frame_record,
    read_record,
    read_records,
)

FEATURES: dict[str, Any] = {
    "image": b"\x89PNG\x00\xff" * 100,
    "image_id": "ID_0123",
    "label": [0, 1, -1, 2**63 - 1, -(2**63)],
    "position_z": [-12.5],
    "pixel_spacing": [0.488281, float("nan")],
}

names = st.text(min_size=1, max_size=20)
integers = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8)
floats = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=8)
features = st.dictionaries(names, st.one_of(st.binary(max_size=300), names, integers, floats))


def as_tensorflow(example: dict[str, Any]) -> tf.train.Example:
    """The same Example made by TensorFlow."""
    message = tf.train.Example()
    message.features.SetInParent()  # there even if empty
    for name, value in example.items():
        feature = message.features.feature[name]
        if isinstance(value, bytes | str):
            feature.bytes_list.value.append(value if isinstance(value, bytes) else value.encode())
        elif isinstance(value[0], int):
            feature.int64_list.value.extend(value)
        else:
            feature.float_list.value.extend(value)
    return message


def as_lists(example: dict[str, Any]) -> dict[str, list[Any]]:
    """What decoding gives: lists of bytes, int or float."""
    lists = {}
    for name, value in example.items():
        text = value.encode() if isinstance(value, str) else value
        lists[name] = [text] if isinstance(text, bytes) else text
    return lists


def same(one: dict[str, list[Any]], other: dict[str, list[Any]]) -> bool:
    """Equal, NaN included."""
    return repr(sorted(one.items())) == repr(sorted(other.items()))


def test_tensorflow_parses_an_example() -> None:
    parsed = tf.io.parse_single_example(
        encode_example(FEATURES),
        {
            "image": tf.io.FixedLenFeature([], tf.string),
            "image_id": tf.io.FixedLenFeature([], tf.string),
            "label": tf.io.FixedLenFeature([5], tf.int64),
            "position_z": tf.io.FixedLenFeature([], tf.float32),
            "pixel_spacing": tf.io.FixedLenFeature([2], tf.float32),
        },
    )
    assert parsed["image"].numpy() == FEATURES["image"]
    assert parsed["image_id"].numpy() == b"ID_0123"
    assert parsed["label"].numpy().tolist() == FEATURES["label"]
    assert parsed["position_z"].numpy() == -12.5
    np.testing.assert_array_equal(
        parsed["pixel_spacing"].numpy(), np.float32(FEATURES["pixel_spacing"])
    )


@given(features)
@settings(deadline=None, max_examples=50)
def test_tensorflow_parses_any_example(example: dict[str, Any]) -> None:
    assert tf.train.Example.FromString(encode_example(example)) == as_tensorflow(example)


@given(features)
@settings(deadline=None, max_examples=50)
def test_any_example_of_tensorflow_is_decoded(example: dict[str, Any]) -> None:
    decoded = decode_example(as_tensorflow(example).SerializeToString())
    assert same(decoded, as_lists(example))


@given(features)
@settings(deadline=None, max_examples=50)
def test_round_trip(example: dict[str, Any]) -> None:
    assert same(decode_example(encode_example(example)), as_lists(example))


def test_equal_examples_are_equal_bytes() -> None:
    backwards = dict(reversed(FEATURES.items()))
    assert encode_example(backwards) == encode_example(FEATURES)


def test_an_example_by_hand() -> None:
    """Fields 1 (features), 1 (entry), 1 (name) and 2 (feature), 3 (int64_list), 1 (packed)."""
    entry = b"\x0a\x01a" + b"\x12\x05" + b"\x1a\x03" + b"\x0a\x01\x07"
    assert encode_example({"a": [7]}) == b"\x0a\x0c\x0a\x0a" + entry


def test_a_feature_without_values() -> None:
    message = tf.train.Example()
    message.features.feature["none"].SetInParent()
    message.features.feature["no_numbers"].float_list.SetInParent()
    assert decode_example(message.SerializeToString()) == {"none": [], "no_numbers": []}


@pytest.mark.parametrize(
    "data",
    [
        b"no protocol buffer",
        b"\x0a",  # cut after a key
        b"\x0a\x05\x0a",  # a length beyond the end
        b"\x0a\x02\x0a\xff",  # a varint beyond the end
        b"\x08\x01",  # a number where a message belongs
        b"\x12\x00",  # an unknown field
        b"\x0a" + b"\xff" * 11,  # an endless varint
        b"\x0a\x09\x0a\x07\x0a\x01\xff\x12\x02\x0a\x00",  # a name that is not UTF-8
        b"\x0a\x09\x0a\x07\x0a\x01a\x12\x02\x22\x00",  # a kind of list that there is not
        b"\x0a\x0c\x0a\x0a\x0a\x01a\x12\x05\x12\x03\x0a\x01\x00",  # a quarter of a float
    ],
)
def test_other_bytes_are_no_example(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a tf\.train\.Example"):
        decode_example(data)


def test_a_feature_that_is_there_twice() -> None:
    with pytest.raises(ValueError, match="twice"):
        decode_example(encode_example({"a": [1]}) + encode_example({"a": [2]}))


@given(st.binary(max_size=60))
def test_any_bytes_are_an_example_or_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        decode_example(data)


# TFRecord


def test_tensorflow_reads_a_file(tmp_path: Path) -> None:
    records = [b"", b"a", encode_example(FEATURES), bytes(100_000)]
    path = tmp_path / "records"
    path.write_bytes(b"".join(map(frame_record, records)))
    assert [each.numpy() for each in tf.data.TFRecordDataset(str(path))] == records


def test_a_file_of_tensorflow_is_read(tmp_path: Path) -> None:
    records = [b"", b"a", encode_example(FEATURES), bytes(100_000)]
    path = tmp_path / "records"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    assert path.read_bytes() == b"".join(map(frame_record, records))
    with path.open("rb") as file:
        assert list(read_records(file)) == records


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_records_round_trip(records: list[bytes]) -> None:
    assert list(read_records(io.BytesIO(b"".join(map(frame_record, records))))) == records


def test_every_flipped_bit_is_found() -> None:
    first, second = frame_record(b"first"), frame_record(b"second")
    for place in range(8 * len(second)):
        damaged = bytearray(first + second)
        damaged[len(first) + place // 8] ^= 1 << place % 8
        with pytest.raises(CorruptRecord, match=f"at byte {len(first)}$"):
            list(read_records(io.BytesIO(damaged)))


def test_every_cut_is_found() -> None:
    first, second = frame_record(b"first"), frame_record(b"second")
    for length in range(1, len(second)):
        with pytest.raises(CorruptRecord, match="truncated") as found:
            list(read_records(io.BytesIO(first + second[:length])))
        assert (found.value.offset, found.value.end) == (len(first), None)


def test_reading_goes_on_after_damaged_data() -> None:
    first, second = bytearray(frame_record(b"first")), frame_record(b"second")
    first[13] ^= 1
    file = io.BytesIO(first + second)
    with pytest.raises(CorruptRecord, match="checksum of the data") as found:
        read_record(file, 0)
    assert found.value.end == len(first) == len(b"first") + FRAME_BYTES
    assert read_record(file, found.value.end) == b"second"
    assert read_record(file, len(first) + len(second)) is None


TOO_LONG = "checksum of the length"


@pytest.mark.parametrize(
    ("length", "what"),
    [(1 << 60, TOO_LONG), (1 << 31, TOO_LONG), ((1 << 31) - 1, "truncated data")],
)
def test_a_length_that_no_message_has_is_not_allocated_for(length: int, what: str) -> None:
    packed = struct.pack("<Q", length)
    checksum = frame_record(packed)[-4:]  # the right one
    with pytest.raises(CorruptRecord, match=what):
        list(read_records(io.BytesIO(packed + checksum)))
