"""What TensorFlow Datasets reads a shard directory by: dataset_info.json and features.json."""

from collections.abc import Sequence
from typing import Any

from headct.layout import (
    DATASET,
    EXAMPLE_FEATURES,
    FILE_FORMAT,
    SHARD_TEMPLATE,
    Feature,
)

_MODULES = "tensorflow_datasets.core.features"


def describe_dataset(splits: dict[str, Any]) -> dict[str, Any]:
    """`dataset_info.json` (the DatasetInfo message of TensorFlow Datasets)."""
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
        # What `as_supervised=True` gives.
        "supervisedKeys": {
            "tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]},
        },
    }


def describe_features(labels: int, image: dict[str, Any]) -> dict[str, Any]:
    """`features.json`: how TensorFlow Datasets decodes an example.

    Args:
        labels: how many an example has.
        image: the manifest's.
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
