"""The square around a head, found, resized, and exported in operations of Keras."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest

from headct.manifest import ImageSpec
from trainer.evaluation.export import answer, write_format
from trainer.networks.head_crop import CropHead, foreground_threshold
from trainer.networks.image_layers import Resize

Box = tuple[int, int, int, int]  # rows from, to; columns from, to


def draw(*boxes: Box, shape: tuple[int, int] = (128, 128)) -> npt.NDArray[np.float32]:
    """Two channels, the second with bright boxes; a cell has 2 x 2 pixels."""
    image = np.zeros((*shape, 2), np.float32)
    for top, bottom, left, right in boxes:
        image[top:bottom, left:right, 1] = 200
    return image


HEAD: Box = (40, 100, 30, 90)  # of 60 pixels, with margins 66; its middle is at 70, 60
SQUARES: dict[str, tuple[npt.NDArray[np.float32], tuple[float, float, float]]] = {
    "head": (draw(HEAD), (37, 27, 66)),
    "head with a head rest of four pixels": (draw(HEAD, (110, 114, 10, 120)), (37, 27, 66)),
    "oblong": (draw((20, 100, 50, 70)), (16, 16, 88)),
    "at the upper edge": (draw((0, 70, 30, 100)), (0, 26.5, 77)),
    "in the uppermost cell alone": (draw((0, 4, 30, 90)), (0, 27, 66)),
    "at the lower right corner": (draw((68, 128, 64, 128)), (57.6, 57.6, 70.4)),
    "small": (draw((60, 80, 30, 50)), (38, 8, 64)),
    "empty": (draw(), (0, 0, 128)),
    "lines alone": (draw((110, 114, 0, 128), (0, 128, 5, 8)), (0, 0, 128)),
    "full": (draw((0, 128, 0, 128)), (0, 0, 128)),
    "too dark": (draw(HEAD) / 8, (0, 0, 128)),
}


def find(images: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    squares = CropHead(32, 25.0).find_squares(keras.ops.convert_to_tensor(images))
    return np.stack([keras.ops.convert_to_numpy(each) for each in squares], axis=-1)


def test_squares_by_hand() -> None:
    found = find(np.stack([image for image, _ in SQUARES.values()]))
    for name, square, (_, expected) in zip(SQUARES, found, SQUARES.values(), strict=True):
        np.testing.assert_allclose(square, expected, atol=1e-3, err_msg=name)


@pytest.mark.parametrize(
    ("boxes", "shape", "square"),
    [
        ((), (96, 128), (-16, 0, 128)),
        (((40, 100, 30, 90),), (104, 128), (37, 27, 66)),  # moved into the image: 104 - 66 = 38
        (((0, 128, 0, 60),), (128, 64), (0, -32, 128)),
        (((4, 28, 4, 28),), (32, 32), (2.8, 2.8, 26.4)),  # a cell is a pixel at least
    ],
)
def test_images_of_other_shapes(
    boxes: tuple[Box, ...], shape: tuple[int, int], square: tuple[float, ...]
) -> None:
    np.testing.assert_allclose(find(draw(*boxes, shape=shape)[None]), [square], atol=1e-3)


def test_sizes_that_cells_do_not_divide() -> None:
    # 131 pixels are 66 cells of 2 with half a pixel of rest on one side.
    top, left, side = find(draw((40, 100, 30, 90), shape=(131, 131))[None])[0]
    assert (top, left, side) == pytest.approx((37, 27, 66), abs=2.5)


def test_the_square_is_resized_like_an_image_of_its_own() -> None:
    random = np.random.default_rng(0)
    image = draw(HEAD)
    image[40:100, 30:90] = random.uniform(30, 200, (60, 60, 2))
    found = np.asarray(CropHead(33, 25.0)(image[None]))
    expected = np.asarray(Resize(33)(image[None, 37:103, 27:93]))
    np.testing.assert_allclose(found[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-3)
    whole = random.uniform(30, 200, (2, 128, 128, 2)).astype(np.float32)
    np.testing.assert_allclose(
        np.asarray(CropHead(40, 25.0)(whole)), np.asarray(Resize(40)(whole)), atol=1e-3
    )
    # The square of a narrow image is black beside it.
    narrow = np.asarray(CropHead(32, 25.0)(draw((0, 128, 0, 64), shape=(128, 64))[None]))
    assert not narrow[:, :, [*range(7), *range(25, 32)]].any()
    np.testing.assert_allclose(narrow[:, :, 9:23, 1], 200, rtol=1e-5)


def test_a_mirrored_image_is_cropped_in_the_mirror() -> None:
    images = np.stack([image for image, _ in SQUARES.values()])
    layer = CropHead(32, 25.0)
    found = np.asarray(layer(images[:, :, ::-1].copy()))
    np.testing.assert_allclose(found, np.asarray(layer(images))[:, :, ::-1], atol=1e-2)


def test_foreground_is_a_gray_level_or_skin() -> None:
    assert foreground_threshold(ImageSpec(64, 64, 3, "uint8", 0)) == 25
    assert foreground_threshold(ImageSpec(64, 64, 1, "uint16", -1024)) == 524


def test_maps_of_a_square_are_placed_in_the_image() -> None:
    image = draw((32, 96, 0, 128))[None]  # the whole image
    maps = np.float32([[[0, 1], [0, 1]]])
    whole = CropHead(32, 25.0).place(maps, image.astype(np.uint8))[0]
    assert whole.shape == (64, 64)
    np.testing.assert_allclose(whole[5], np.clip((np.arange(64) - 15.5) / 32, 0, 1), atol=1e-5)
    # The square has rows 36.8 to 107.2 and columns 24.8 to 95.2; points lie at 1, 3, 5, …
    image = draw((40, 104, 30, 90))[None]
    placed = CropHead(32, 25.0).place(np.ones((1, 3, 3), np.float32), image)[0]
    expected = np.zeros((64, 64))
    expected[18:54, 12:48] = 1
    np.testing.assert_allclose(placed, expected, atol=1e-5)
    assert Resize(32).place(maps, image) is maps


def test_it_is_exported_as_operations_of_keras(tmp_path: Path) -> None:
    layer = CropHead(32, 25.0, name="resize")
    again = CropHead.from_config(layer.get_config())
    assert (again.size, again.threshold, again.name) == (32, 25.0, "resize")
    inputs = keras.layers.Input((128, 128, 2))
    model = keras.Model(inputs, layer.portable(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={}, safe_mode=True)
    images = np.stack([image for image, _ in SQUARES.values()])
    expected = np.asarray(layer(images))
    np.testing.assert_allclose(loaded.predict_on_batch(images), expected, atol=1e-3)


@pytest.mark.full
def test_it_is_exported_to_onnx(tmp_path: Path) -> None:
    layer = CropHead(32, 25.0)
    inputs = keras.layers.Input((128, 128, 2))
    write_format(keras.Model(inputs, layer.portable(inputs)), "onnx", tmp_path / "model.onnx")
    images = np.stack([image for image, _ in SQUARES.values()])
    found = answer("onnx", tmp_path / "model.onnx", images)
    np.testing.assert_allclose(found, np.asarray(layer(images)), atol=1e-3)


@pytest.mark.full
def test_a_process_that_has_not_trained_loads_it(tmp_path: Path) -> None:
    inputs = keras.layers.Input((128, 128, 2))
    keras.Model(inputs, CropHead(32, 25.0)(inputs)).save(tmp_path / "model.keras")
    code = (
        "import sys; from trainer.networks.saved_models import load_model; load_model(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.keras")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
