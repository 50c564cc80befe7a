"""Layers between a stored image and the backbone, computed on the device in float32.

Resize          any image → a square
ApplyWindows    Hounsfield units → gray levels 0 to 255
Augment         random changes of training images
Mixup           pairs of training images, mixed
Normalize       gray levels → the range that the backbone was trained on
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers, ops
from scipy.stats import beta

# Augmentation at strength 1: the result still looks like a head in a scanner.
_ROTATION = math.radians(15)
_SCALE = 0.1
SHIFT = 0.05
_CONTRAST = 0.1
_BRIGHTNESS = 0.05
_SHARES = 4096  # shares that Mixup can draw

_Constants = npt.NDArray[np.float32]


class ImageLayer(layers.Layer):  # type: ignore[misc,unused-ignore]
    """Base layer: computes in float32 under every dtype policy and keeps the input's shape.

    Attributes:
        arguments: names of the constructor's arguments and of the attributes with their values.
        alike: consecutive images of a batch that get the same random changes, such as the slices
            of a scan; not saved.
    """

    arguments: tuple[str, ...] = ()
    alike = 1

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor, for a saved model."""
        return {**super().get_config(), **{name: getattr(self, name) for name in self.arguments}}

    def uniform(self, shape: tuple[Any, ...], reach: float) -> Any:
        """Draw uniform numbers within ± reach, for a batch of images, [B, ...]."""
        if self.alike == 1:
            return _uniform(shape, reach, self.generator)
        drawn = _uniform((shape[0] // self.alike, *shape[1:]), reach, self.generator)
        return ops.repeat(drawn, self.alike, axis=0)

    def portable(self, images: Any) -> Any:
        """Apply Keras's own layers that predict the same: float32 in, float32 out."""
        raise NotImplementedError


def apply_fixed(layer: Any, images: Any, *weights: npt.NDArray[Any]) -> Any:
    """Apply a layer with constant weights."""
    layer.trainable = False
    result = layer(images)
    layer.set_weights([array.astype(np.float32) for array in weights])
    return result


def resize_matrix(size_in: int, size_out: int) -> npt.NDArray[np.float32]:
    """Return the linear map from `size_in` pixels of a row to `size_out` pixels.

    A triangle filter at half-pixel centers, widened by the scale when the image shrinks: the same
    as `tf.image.resize(method="bilinear", antialias=True)` and `jax.image.resize`.

    Returns:
        float32 [size_out, size_in]; every row sums to 1.
    """
    scale = size_in / size_out
    reach = max(scale, 1.0)
    centers = (np.arange(size_out) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(size_in)[None, :] - centers[:, None])
    weights = np.maximum(0.0, 1.0 - distance / reach)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


@keras.saving.register_keras_serializable("headct")
class Resize(ImageLayer):
    """Any [B, H, W, C] → float32 [B, size, size, C], same unit, with antialiasing.

    Two matrix products: XLA compiles them, both backends return the same numbers, and TensorFlow's
    antialiased resize has no GPU kernel.

    Args:
        size: side of the resized images, pixels.
        middle: value that is subtracted before the products and added afterwards. NVIDIA's tensor
            cores round factors to 11 bits (TF32): an error of half a unit at 1,064, of 0.01 at 40.
    """

    arguments: tuple[str, ...] = ("size", "middle")

    def __init__(self, size: int, middle: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size, self.middle = size, middle

    def call(self, images: Any) -> Any:
        """Resize rows, then columns."""
        images = ops.cast(images, "float32")
        if images.shape[1:3] == (self.size, self.size):
            return images
        images = images - self.middle if self.middle else images
        for axis, equation in ((1, "oh,bhwc->bowc"), (2, "ow,bhwc->bhoc")):
            if images.shape[axis] != self.size:
                matrix = ops.convert_to_tensor(resize_matrix(images.shape[axis], self.size))
                images = ops.einsum(equation, matrix, images)
        # Rows of the matrices sum to 1.
        return images + self.middle if self.middle else images

    def place(self, maps: _Constants, images: npt.NDArray[Any]) -> _Constants:
        """Return maps of the resized images, [B, h, w], as maps of the images, [B, H, W, C]."""
        return maps

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return [B, size, size, C]."""
        return (input_shape[0], self.size, self.size, input_shape[-1])

    def portable(self, images: Any) -> Any:
        """Multiply by a matrix per axis."""
        for axis, name, equation in ((1, "rows", "bhwc,ho->bowc"), (2, "cols", "bhwc,wo->bhoc")):
            shape = list(images.shape[1:])
            if shape[axis - 1] != self.size:
                matrix = resize_matrix(shape[axis - 1], self.size).T
                shape[axis - 1] = self.size
                layer = layers.EinsumDense(equation, shape, dtype="float32", name=f"resize_{name}")
                images = apply_fixed(layer, images, matrix)
        return images


@keras.saving.register_keras_serializable("headct")
class ApplyWindows(ImageLayer):
    """Stored values [B, H, W, n] → float32 gray levels 0 to 255, [B, H, W, n · windows].

    The n slices of a sample have one channel each, and all get the same random changes.

    LINEAR_EXACT of DICOM PS3.3 C.11.2.1.3.2: ((x - c) / w + 0.5) · 255, clipped.

    Args:
        centers: window centers, HU.
        widths: window widths, HU.
        hu_offset: added to a stored value to get Hounsfield units.
        jitter: training only: the center moves by up to ± jitter · width, and the width is
            multiplied by exp(-jitter) to exp(jitter).
        seed: seed of the random changes.
    """

    arguments = ("centers", "widths", "hu_offset", "jitter", "seed")

    def __init__(
        self,
        centers: list[float],
        widths: list[float],
        hu_offset: float,
        jitter: float,
        seed: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.centers, self.widths = list(centers), list(widths)
        self.hu_offset, self.jitter, self.seed = hu_offset, jitter, seed
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """Apply every window to each image."""
        slices = images.shape[-1]
        centers = ops.reshape(ops.convert_to_tensor(self.centers, "float32"), (1, 1, 1, -1))
        widths = ops.reshape(ops.convert_to_tensor(self.widths, "float32"), (1, 1, 1, -1))
        if training and self.jitter > 0:
            shape = (ops.shape(images)[0], 1, 1, len(self.centers))
            centers = centers + widths * self.uniform(shape, self.jitter)
            widths = widths * ops.exp(self.uniform(shape, self.jitter))
        if slices > 1:
            images = ops.repeat(images, len(self.centers), axis=-1)
            centers, widths = (ops.tile(each, (1, 1, 1, slices)) for each in (centers, widths))
        hounsfield = ops.cast(images, "float32") + self.hu_offset
        levels = ((hounsfield - centers) / widths + 0.5) * 255
        return ops.clip(levels, 0.0, 255.0)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the input's shape with one channel per slice and window."""
        return (*input_shape[:-1], (input_shape[-1] or 1) * len(self.centers))

    def portable(self, images: Any) -> Any:
        """Scale and shift by one Dense layer, then clip to 0 to 255."""
        gain = 255 / np.asarray(self.widths, np.float64)
        level = 127.5 - gain * (np.asarray(self.centers) - self.hu_offset)
        slices = images.shape[-1]
        dense = layers.Dense(slices * len(gain), dtype="float32", name="windows")
        matrix = np.kron(np.eye(slices), gain)
        levels = apply_fixed(dense, images, matrix, np.tile(level, slices))
        return layers.ReLU(max_value=255.0, dtype="float32", name="windows_clip")(levels)


def _uniform(shape: tuple[Any, ...], reach: float, generator: Any) -> Any:
    """Draw uniform numbers within ± reach."""
    return keras.random.uniform(shape, -reach, reach, "float32", generator)


def affine_grid(angle: Any, scale: Any, shift: Any, flip: Any, size: int) -> tuple[Any, Any]:
    """Return the source position of every target pixel.

    Args:
        angle: radians, [B].
        scale: magnification, [B].
        shift: rows and columns as a fraction of the size, [B, 2].
        flip: 1 or -1, [B]; -1 mirrors left and right.
        size: side of the square image, pixels.

    Returns:
        Source rows and columns, float32 [B, size, size].
    """
    middle = (size - 1) / 2
    centered = ops.arange(size, dtype="float32") - middle
    rows = ops.reshape(centered, (1, size, 1))
    columns = ops.reshape(centered, (1, 1, size))
    cosine, sine, across = (
        ops.reshape(factor, (-1, 1, 1))
        for factor in (ops.cos(angle) / scale, ops.sin(angle) / scale, flip)
    )
    down, right = (ops.reshape(shift[:, axis], (-1, 1, 1)) * size for axis in (0, 1))
    source_rows = cosine * rows - sine * columns + down + middle
    source_columns = (sine * rows + cosine * columns) * across + right + middle
    return source_rows, source_columns


def sample_bilinear(images: Any, rows: Any, columns: Any) -> Any:
    """Interpolate [B, S, S, C] at float rows and columns [B, S, S]; pixels outside are 0."""
    size, channels = images.shape[1], images.shape[-1]
    top, left = ops.floor(rows), ops.floor(columns)
    pixels = ops.reshape(images, (-1, size * size, channels))
    total = 0.0
    for below in (0, 1):
        for beside in (0, 1):
            row, column = top + below, left + beside
            weight = (1 - ops.abs(rows - row)) * (1 - ops.abs(columns - column))
            inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
            weight = ops.where(inside, weight, 0.0)
            pixel = ops.clip(row, 0, size - 1) * size + ops.clip(column, 0, size - 1)
            # A gather per image: from one list of all pixels, each of several devices would
            # gather the pixels of the whole batch.
            places = (pixels, ops.cast(pixel, "int32"))
            values = ops.vectorized_map(lambda each: ops.take(each[0], each[1], axis=0), places)
            total = total + values * ops.expand_dims(weight, -1)
    return total


@keras.saving.register_keras_serializable("headct")
class Augment(ImageLayer):
    """float32 [B, S, S, C], 0 to 255 → the same shape and range; random changes in training.

    Flip, rotation, scale and shift are one affine map, so pixels are interpolated once. Checkpoints
    include the random generator's state, so a resumed run continues with the same images.
    """

    arguments = ("strength", "seed")

    def __init__(self, strength: float, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.strength = strength
        self.seed = seed
        self.generator = keras.random.SeedGenerator(seed)

    def uniform(self, shape: tuple[Any, ...], reach: float) -> Any:
        """Draw uniform numbers within ± reach · strength."""
        return super().uniform(shape, reach * self.strength)

    def call(self, images: Any, training: bool = False) -> Any:
        """Transform every image, and change its contrast and brightness."""
        if not training or self.strength == 0:
            return images
        batch = ops.shape(images)[0]
        flip = ops.sign(super().uniform((batch,), 1.0))
        rows, columns = affine_grid(
            angle=self.uniform((batch,), _ROTATION),
            scale=ops.exp(self.uniform((batch,), _SCALE)),
            shift=self.uniform((batch, 2), SHIFT),
            flip=ops.where(flip < 0, -1.0, 1.0),
            size=images.shape[1],
        )
        images = sample_bilinear(images, rows, columns)
        contrast = ops.exp(self.uniform((batch, 1, 1, 1), _CONTRAST))
        brightness = self.uniform((batch, 1, 1, 1), _BRIGHTNESS * 255)
        return ops.clip((images - 127.5) * contrast + 127.5 + brightness, 0.0, 255.0)

    def portable(self, images: Any) -> Any:
        """Return the images: predictions are not augmented."""
        return images


@keras.saving.register_keras_serializable("headct")
class Mixup(ImageLayer):
    """float32 [B, S, S, C] → the same shape; in training, each image mixed with another one.

    mixup (Zhang et al., arXiv:1710.09412): share · image + (1 - share) · partner, with a share per
    batch from Beta(alpha, alpha). The partners are the batch in reverse order: batches are
    shuffled. `mix` mixes the labels of the same step alike.

    Attributes:
        draw: the share of the step, as its number among `_SHARES` equally probable ones. An
            integer: averages and copies of weights take floating-point variables.
    """

    arguments = ("alpha", "seed")

    def __init__(self, alpha: float, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alpha, self.seed = alpha, seed
        self.generator = keras.random.SeedGenerator(seed)
        # Quantiles: XLA has no kernel for TensorFlow's gamma distribution.
        middles = (np.arange(_SHARES) + 0.5) / _SHARES
        self.quantiles = beta.ppf(middles, alpha, alpha).astype(np.float32)
        self.draw = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False, name="draw"
        )

    def call(self, images: Any, training: bool = False) -> Any:
        """Draw the share of a training step, and mix the images."""
        if not training:
            return images
        drawn = keras.random.uniform((), 0.0, _SHARES, "float32", self.generator)
        # Rounding may reach the upper limit.
        self.draw.assign(ops.minimum(ops.cast(drawn, "int32"), _SHARES - 1))
        return self.mix(images)

    def mix(self, values: Any) -> Any:
        """Mix float32 [B, ...] in the share of the last training step."""
        share = ops.take(ops.convert_to_tensor(self.quantiles), self.draw.value)
        return share * values + (1 - share) * ops.flip(values, axis=0)

    def portable(self, images: Any) -> Any:
        """Return the images: predictions are not mixed."""
        return images


@dataclass(frozen=True)
class Normalization:
    """(x - mean) / deviation per channel: red, green, blue; `bgr` reverses the channels."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    bgr: bool = False


# As in `keras.applications.imagenet_utils.preprocess_input`.
NORMALIZATIONS: Mapping[str, Normalization] = MappingProxyType(
    {
        "caffe": Normalization((123.68, 116.779, 103.939), (1.0, 1.0, 1.0), bgr=True),
        "torch": Normalization(
            (0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)
        ),
        "tf": Normalization((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
        # EfficientNetV2 S, M and L divide by 128 and subtract 1.
        "tf128": Normalization((128.0, 128.0, 128.0), (128.0, 128.0, 128.0)),
    }
)


@keras.saving.register_keras_serializable("headct")
class Normalize(ImageLayer):
    """float32 [B, H, W, C] of 0 to 255 → float32 of the same shape.

    Three channels of a slice are treated as RGB. With any other number of channels, the mean of the
    three constants applies to every channel.

    Args:
        mode: a key of `NORMALIZATIONS`.
        slices: slices of a sample, whose channels follow one another.
    """

    arguments = ("mode", "slices")

    def __init__(self, mode: str, slices: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mode, self.slices = mode, slices

    def call(self, images: Any) -> Any:
        """Normalize every channel."""
        mean, deviation, order = self.constants(images.shape[-1])
        images = (images - mean) / deviation
        if (order[:-1] < order[1:]).all():
            return images
        return ops.flip(images, axis=-1) if self.slices == 1 else ops.take(images, order, axis=-1)

    def constants(self, channels: int) -> tuple[_Constants, _Constants, npt.NDArray[np.int64]]:
        """Return mean [C] and deviation [C] per channel, and the order of the output's channels."""
        chosen, slices = NORMALIZATIONS[self.mode], self.slices
        channels //= slices
        mean = np.asarray(chosen.mean, np.float32)
        deviation = np.asarray(chosen.deviation, np.float32)
        order = np.arange(channels)
        if channels != 3:
            mean = np.full(channels, mean.mean(), np.float32)
            deviation = np.full(channels, deviation.mean(), np.float32)
        elif chosen.bgr:
            order = order[::-1]
        order = (np.arange(slices)[:, None] * channels + order).ravel()
        return np.tile(mean, slices), np.tile(deviation, slices), order

    def portable(self, images: Any) -> Any:
        """Scale by one Dense layer, whose matrix also reorders the channels."""
        channels = images.shape[-1]
        mean, deviation, order = self.constants(channels)
        matrix = np.diag(1 / deviation.astype(np.float64))[:, order]
        bias = (-mean.astype(np.float64) / deviation)[order]
        dense = layers.Dense(channels, dtype="float32", name="normalize")
        return apply_fixed(dense, images, matrix, bias)
