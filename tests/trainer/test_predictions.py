from pathlib import Path

import numpy as np
import pytest

from trainer.data.shards import read_shard_directory
from trainer.errors import BadInput
from trainer.evaluation.predictions import Predictions, predict_batch, predict_split, to_frame


class Brightness:
    """A model whose three logits are the mean of the left half, of the right, and of all."""

    def predict_on_batch(self, images: np.ndarray) -> np.ndarray:
        half = images.shape[2] // 2
        parts = (images[:, :, :half], images[:, :, half:], images)
        return np.stack([part.mean(axis=(1, 2, 3)) for part in parts], axis=1)


@pytest.mark.parametrize("batch_size", [1, 8, 21, 64])
def test_every_slice_is_predicted_with_its_own_ids(shards: Path, batch_size: int) -> None:
    data = read_shard_directory(shards)
    split = data.split("fold0")
    heard: list[int] = []
    found = predict_split(Brightness(), split, data.image, 3, batch_size, heard.append)
    assert found.logits.shape == (21, 3)
    assert heard[-1] == 21
    frame = to_frame(found, data.labels).set_index("image_id")
    assert sorted(frame.index) == [f"ID_0_{i:04d}" for i in range(21)]
    assert frame.loc["ID_0_0005", "patient_id"] == "P0_001"
    assert frame.loc["ID_0_0005", "position_z"] == 5
    assert set(frame["split"]) == {"fold0"}
    bright = frame["label_any"] == 1
    assert frame.loc[bright, "probability_any"].min() >= frame.loc[~bright, "probability_any"].max()


def test_the_mirror_image_is_averaged_in() -> None:
    images = np.zeros((1, 2, 2, 1), np.uint8)
    images[:, :, 0] = 100
    assert predict_batch(Brightness(), images, flip=False).tolist() == [[100, 0, 50]]
    assert predict_batch(Brightness(), images, flip=True).tolist() == [[50, 50, 50]]


def test_temperatures_by_hand() -> None:
    found = Predictions("s", np.float32([[2, 3]]), np.array([[0, 1]]), {}, np.zeros(1, np.float32))
    assert found.with_temperatures((2.0, 1.0)).logits.tolist() == [[1, 3]]


def test_more_examples_than_the_manifest_says(shards: Path) -> None:
    from dataclasses import replace

    data = read_shard_directory(shards)
    split = replace(data.split("fold0"), examples=20)
    with pytest.raises(BadInput, match="split fold0: 21 examples where the manifest has 20"):
        predict_split(Brightness(), split, data.image, 3, 8)
