"""Scan models: the slices of a scan, as features and logits of a slice network → better logits.

    features ─ norm ─ dropout ─ dense ─┬───────────────┐
                      differences to both neighbors, mm ┴─ along z ─┬─ head ─ + slice logits
                                                                    └─ pool ─ + their maximum

Both heads start at zero: an untrained model returns the slice logits, and their maximum.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers, ops

from headct.errors import UsageError
from headct.scans import Scans
from trainer.networks.saved_models import load_model

SLICES, SCAN = "slices", "scan"  # the outputs
_MM = 10.0  # unit of distances: a thick slice is about 0.5
_WAVELENGTHS = 10.0 * 2.0 ** np.arange(7)  # mm, of the transformer's positions: 10 to 640
_DILATIONS = (1, 2, 4)
_HEADS = 4
_HIDDEN = -1e9  # logit of what softmax shall not see
# Slices per call: the transformer's memory grows with the square of the length.
_SLICES_AT_ONCE = 4096
_SHORTEST = 16  # padded length


def build_scan_model(kind: str, features: int, labels: int, units: int, dropout: float) -> Any:
    """Build an untrained scan model.

    Args:
        kind: "convolutions", "gru" or "transformer".
        features: features of a slice, D.
        labels: number of labels, L.
        units: width, W.
        dropout: of features, and between blocks.

    Returns:
        keras.Model: features float32 [B, T, D], logits [B, T, L], mask [B, T, 1] (1 for a slice, 0
        for padding after the last), gaps [B, T, 2] (mm to the slices before and after; 0 at the
        ends and where unknown), neighbors [B, T, 2] (1 where there is one) → slices [B, T, L] and
        scan [B, L], logits.
    """
    sizes = {"features": features, "logits": labels}
    inputs = {name: layers.Input((None, size), name=name) for name, size in sizes.items()}
    inputs |= place_inputs(None)
    mask, logits = inputs["mask"], inputs["logits"]
    before, after = ops.split(inputs["neighbors"], 2, axis=-1)
    x = layers.LayerNormalization(name="norm")(inputs["features"])
    x = layers.Dropout(dropout, name="dropout")(x)
    x = layers.Dense(units, name="project")(ops.concatenate([x, logits], axis=-1))
    # What a roll brings round the ends is masked by `before` and `after`.
    differences = [(x - ops.roll(x, 1, axis=1)) * before, (x - ops.roll(x, -1, axis=1)) * after]
    gaps = inputs["gaps"] * (1 / _MM)
    x = ops.concatenate([x, *differences, gaps, inputs["neighbors"]], axis=-1)
    x = layers.Dense(units, activation="silu", name="mix")(x) * mask
    x = _ALONG_Z[kind](x, mask, inputs["gaps"], units, dropout)
    head = layers.Dense(labels, kernel_initializer="zeros", name="head")
    # Both masked: TensorFlow's graph optimizer fails, and says so, on a sum that is an output.
    corrected = (logits + head(x)) * mask
    hidden = (1 - mask) * _HIDDEN
    attention = ops.softmax(layers.Dense(1, name="attention")(x) + hidden, axis=1)
    pooled = layers.Dense(labels, kernel_initializer="zeros", name="pool")(
        ops.sum(attention * x, axis=1)
    )
    scan = (ops.max(corrected + hidden, axis=1) + pooled) * ops.max(mask, axis=1)
    outputs = {SLICES: corrected, SCAN: scan}
    model = keras.Model(inputs, outputs, name=kind)
    if kind == "transformer":
        model.get_layer("waves").set_weights([2 * np.pi / _WAVELENGTHS[None]])
    return model


def place_inputs(length: int | None) -> dict[str, Any]:
    """Return the symbolic mask, gaps and neighbors of scans, [B, length, 1 or 2]."""
    sizes = {"mask": 1, "gaps": 2, "neighbors": 2}
    return {name: layers.Input((length, size), name=name) for name, size in sizes.items()}


def _convolve(x: Any, mask: Any, gaps: Any, units: int, dropout: float) -> Any:
    """Residual convolutions over 3 slices, dilated: 15 slices are seen."""
    for number, dilation in enumerate(_DILATIONS):
        y = layers.LayerNormalization(name=f"norm_{number}")(x) * mask
        y = layers.Conv1D(
            units,
            3,
            padding="same",
            dilation_rate=dilation,
            activation="silu",
            name=f"conv_{number}",
        )(y)
        x = (x + layers.Dropout(dropout, name=f"dropout_{number}")(y)) * mask
    return x


def _recur(x: Any, mask: Any, gaps: Any, units: int, dropout: float) -> Any:
    """Two bidirectional GRUs."""
    there = ops.squeeze(mask, axis=-1) > 0
    for number in range(2):
        gru = layers.GRU(units // 2, return_sequences=True, name=f"gru_{number}")
        y = layers.Bidirectional(gru, name=f"both_ways_{number}")(x, mask=there)
        x = (x + layers.Dropout(dropout, name=f"dropout_{number}")(y)) * mask
    return x


def _attend(x: Any, mask: Any, gaps: Any, units: int, dropout: float) -> Any:
    """Two blocks of a transformer (Vaswani et al., arXiv:1706.03762), norms first.

    A slice's position is its distance from the first slice, mm, as sines and cosines.
    """
    to_before = ops.split(gaps, 2, axis=-1)[0]
    z = ops.cumsum(to_before, axis=1)
    waves = layers.Dense(len(_WAVELENGTHS), use_bias=False, trainable=False, name="waves")(z)
    places = ops.concatenate([ops.sin(waves), ops.cos(waves)], axis=-1)
    x = x + layers.Dense(units, name="places")(places)
    seen = ops.matmul(ops.ones_like(mask), ops.transpose(mask, (0, 2, 1))) > 0
    for number in range(2):
        y = layers.LayerNormalization(name=f"norm_{number}")(x)
        attention = layers.MultiHeadAttention(
            _HEADS, max(units // _HEADS, 1), dropout=dropout, name=f"attention_{number}"
        )
        x = x + attention(y, y, attention_mask=seen)
        y = layers.LayerNormalization(name=f"second_norm_{number}")(x)
        y = layers.Dense(2 * units, activation="silu", name=f"wide_{number}")(y)
        y = layers.Dense(units, name=f"narrow_{number}")(y)
        x = x + layers.Dropout(dropout, name=f"dropout_{number}")(y)
    return x * mask


_ALONG_Z = {"convolutions": _convolve, "gru": _recur, "transformer": _attend}
KINDS = tuple(_ALONG_Z)


def arrange(
    features: npt.NDArray[Any], logits: npt.NDArray[Any], z: npt.NDArray[np.float64], length: int
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the inputs of one scan, padded to a length, without the batch axis.

    Args:
        features: of T slices in order, [T, D].
        logits: [T, L].
        z: positions, mm, rising or falling, [T]; NaN where unknown.
        length: of the result, T or more.
    """
    return _padded({"features": features, "logits": logits}, length) | places(z, length)


def places(z: npt.NDArray[np.float64], length: int) -> dict[str, npt.NDArray[np.float32]]:
    """Return mask, gaps and neighbors of one scan, as `arrange` does."""
    steps = np.nan_to_num(np.abs(np.diff(z)))
    neighbors = np.ones((len(z), 2))
    neighbors[0, 0] = neighbors[-1, 1] = 0
    gaps = np.stack([np.append(0, steps), np.append(steps, 0)], axis=1)
    arrays = {"mask": np.ones((len(z), 1)), "gaps": gaps, "neighbors": neighbors}
    return _padded(arrays, length)


def _padded(arrays: dict[str, npt.NDArray[Any]], length: int) -> dict[str, npt.NDArray[np.float32]]:
    padded = {}
    for name, array in arrays.items():
        padded[name] = np.zeros((length, array.shape[1]), np.float32)
        padded[name][: len(array)] = array
    return padded


def scan_inputs(features: Any, logits: Any, z: Any) -> dict[str, Any]:
    """Return the inputs of one scan, as tensors [1, S, ...], like `arrange`.

    Args:
        features: [S, D].
        logits: [S, L].
        z: positions, mm, [S].
    """
    number = ops.cumsum(ops.ones_like(z))
    before = ops.cast(number > 1, "float32")
    to_before = ops.abs(z - ops.roll(z, 1)) * before
    arrays = {
        "features": features,
        "logits": logits,
        "mask": ops.expand_dims(ops.ones_like(z), -1),
        "gaps": ops.stack([to_before, ops.roll(to_before, -1)], axis=-1),
        "neighbors": ops.stack([before, ops.roll(before, -1)], axis=-1),
    }
    return {name: ops.expand_dims(array, 0) for name, array in arrays.items()}


@dataclass(frozen=True)
class ScanNetwork:
    """A slice network, and the scan model that corrects its logits.

    Attributes:
        features: stored images → logits and features, from `features_model`.
        model: from `build_scan_model`.
        both_directions: average with the answer for the reversed scan.
        control: as in `control_scans`.
    """

    features: Any
    model: Any
    both_directions: bool
    control: str = "none"


class Corrections:
    """Answers of a scan model; scans of similar length are computed together.

    A scan's features are kept until its answer is computed, in float16.

    Args:
        model: from `build_scan_model`.
        both_directions: average with the answer for the reversed scan.
        shape: slices, N, and labels, L.

    Attributes:
        of_slices: logits, [N, L].
        of_scan: logits of the scan of each slice, [N, L].
    """

    def __init__(self, model: Any, both_directions: bool, shape: tuple[int, ...]) -> None:
        self.model, self.both_directions = model, both_directions
        self.of_slices, self.of_scan = (np.zeros(shape, np.float32) for _ in range(2))
        self._waiting: dict[int, list[tuple[npt.NDArray[Any], ...]]] = {}

    def add(
        self,
        rows: npt.NDArray[np.int64],
        features: npt.NDArray[Any],
        logits: npt.NDArray[np.float32],
        z: npt.NDArray[np.float64],
    ) -> None:
        """Answer a scan, now or later.

        Args:
            rows: of T slices in order, where their answers go, [T].
            features: [T, D].
            logits: [T, L].
            z: positions, mm, [T].
        """
        length = max(1 << (len(rows) - 1).bit_length(), _SHORTEST)
        self._waiting.setdefault(length, []).append((rows, features, logits, z))
        if len(self._waiting[length]) * length >= _SLICES_AT_ONCE:
            self._answer(length)

    def end(self) -> None:
        """Answer the scans that wait."""
        for length in [*self._waiting]:
            self._answer(length)

    def _answer(self, length: int) -> None:
        found = self._waiting.pop(length)
        ways = (1, -1) if self.both_directions else (1,)
        for step in ways:
            batch = [
                arrange(features[::step], logits[::step], z[::step], length)
                for _, features, logits, z in found
            ]
            joined = {name: np.stack([one[name] for one in batch]) for name in batch[0]}
            outputs = self.model.predict_on_batch(joined)
            answers = {name: np.asarray(output) / len(ways) for name, output in outputs.items()}
            for place, (rows, *_) in enumerate(found):
                self.of_slices[rows[::step]] += answers[SLICES][place, : len(rows)]
                self.of_scan[rows] += answers[SCAN][place]


def control_scans(scans: Scans, control: str) -> Scans:
    """Return scans without what a control lacks.

    Args:
        scans: of N slices.
        control: none; shuffled: the slices of each scan in random order, the same in every call;
            alone: each slice as a scan of its own. Both are without positions.
    """
    if control == "none":
        return scans
    random, unknown = np.random.default_rng(0), np.full(len(scans.z), np.nan)
    if control == "shuffled":
        order = np.concatenate([random.permutation(scan) for scan in scans])
        return Scans(order, scans.starts, unknown)
    return Scans(scans.order, np.arange(len(scans.order) + 1), unknown)


def correct(
    model: Any,
    features: npt.NDArray[Any],
    logits: npt.NDArray[np.float32],
    scans: Scans,
    both_directions: bool,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the scan model's logits of slices, [N, L], and of the scan of each, [N, L].

    Args:
        model: from `build_scan_model`.
        features: of all slices, [N, D].
        logits: [N, L].
        scans: of these slices.
        both_directions: average with the answer for the reversed scan.
    """
    found = Corrections(model, both_directions, logits.shape)
    for begin, end in scans.ranges():
        rows = scans.order[begin:end]
        found.add(rows, features[rows], logits[rows], scans.z[begin:end])
    found.end()
    return found.of_slices, found.of_scan


def load_scan_model(path: Path, labels: int) -> Any:
    """Load the scan model of a run.

    Raises:
        UsageError: the file is missing or unreadable, or holds another network.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no scan model yet; training has not finished an epoch")
    try:
        model = load_model(path)
        if {name: model.output[name].shape[-1] for name in (SLICES, SCAN)} != dict.fromkeys(
            (SLICES, SCAN), labels
        ):
            raise UsageError("it has other labels")
    except (UsageError, TypeError, KeyError) as error:
        raise UsageError(f"{path}: no scan model ({error})") from None
    return model


def as_half(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Return features as they are kept; beyond the range of float16, its largest number."""
    largest = np.finfo(np.float16).max
    return np.clip(features, -largest, largest).astype(np.float16)


def features_model(classifier: Any, mirrored: bool) -> Any:
    """Return a model of stored images [B, H, W, C] → logits and pooled features, [B, L + D].

    Args:
        classifier: from `load_classifier`.
        mirrored: whether to take the mean over each image and its mirror image.
    """
    inner = resized_features(classifier.get_layer("core"))
    stored = layers.Input(classifier.input_shape[1:], dtype=classifier.inputs[0].dtype)
    resized = classifier.get_layer("resize")(stored)
    outputs = inner(resized)
    if mirrored:
        outputs = (outputs + inner(ops.flip(resized, axis=2))) / 2
    model = keras.Model(stored, outputs, name="features")
    model.jit_compile = classifier.jit_compile
    return model


def resized_features(core: Any) -> Any:
    """Return a model of resized images [B, S, S, C] → logits and pooled features, [B, L + D]."""
    pooled = core.get_layer("pool").output
    both = layers.Concatenate(dtype="float32", name="both")([core.output, pooled])
    return keras.Model(core.input, both, name="inner")
