"""TensorFlow, which defines the format, judges what we write and read."""

import contextlib
import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipeline.shards.formats import decode_example, encode_example

tf = pytest.importorskip("tensorflow")  # another implementation


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
