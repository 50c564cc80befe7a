"""Pictures of slices: worst mistakes and best hits with class activation maps, and thumbnails."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import keras
import numpy as np
import numpy.typing as npt
import pandas as pd
from imagecodecs import jpeg8_encode

from headct.layout import IMAGE_ID
from headct.manifest import Window
from trainer.evaluation.measured import Measured
from trainer.evaluation.metrics import Floats, Ints, example_losses
from trainer.networks.saved_models import load_classifier
from trainer.report.plots import Picture
from trainer.runs.evaluation_setup import EvaluationSetup

Answer = tuple[int, int]  # a row of the predictions, and a label's number

_SIDE, _THUMBNAIL = 240, 80  # pixels
_BRAIN = (40.0, 80.0)  # center and width, HU
# Evidence for and against a label, told apart with any color vision; also in report.html.jinja.
_FOR, _AGAINST = (255.0, 140.0, 0.0), (60.0, 130.0, 255.0)


def picture_slices(
    setup: EvaluationSetup, slices: Measured, wanted: int
) -> tuple[list[Picture], list[Picture]]:
    """Return `wanted` pictures of the worst mistakes, and as many of the best hits."""
    mistakes = worst_mistakes(slices.labels, slices.predicted, wanted)
    answers = [*mistakes, *best_hits(slices.labels, slices.predicted, wanted)]
    if not answers:
        return [], []
    chosen = []
    for row, label in answers:
        truth = "present" if slices.labels[row, label] else "absent"
        said = f"{slices.names[label]} is {truth}, answered {slices.predicted[row, label]:.3f}"
        chosen.append(Chosen(slices.frame[IMAGE_ID].iloc[row], label, "", said, f" (row {row})"))
    pictures = draw_slices(setup, chosen)
    return pictures[: len(mistakes)], pictures[len(mistakes) :]


class Chosen(NamedTuple):
    """A slice to draw with the map of a label, by its number.

    Attributes:
        image_id: of the slice.
        label: number of the label.
        name: beginning of the caption.
        said: what is known of the slice.
        place: where it is.
    """

    image_id: str
    label: int
    name: str
    said: str
    place: str


def draw_slices(setup: EvaluationSetup, chosen: Sequence[Chosen]) -> list[Picture]:
    """Draw slices of the setup's split, each beside its map.

    Raises:
        UsageError: the index is missing or damaged.
    """
    names = setup.run.labels
    every, rows = setup.shards.locate(setup.split, [each.image_id for each in chosen])
    images = every.select(rows).images()
    labels = np.array([each.label for each in chosen])
    maps = []
    for run in setup.run.networks:
        compiled, slices = setup.compiled(run), run.neighbors.slices
        classifier = load_classifier(run.model, compiled, setup.shards.image, len(names), slices)
        seen = run.neighbors.images(every, rows) if run.neighbors.count else images
        maps.append(placed_maps(classifier, seen, labels))
        if setup.flip:
            mirrored = placed_maps(classifier, np.ascontiguousarray(seen[:, :, ::-1]), labels)
            maps.append(mirrored[:, :, ::-1])
    pictures = []
    for each, gray, heat in zip(chosen, gray_levels(images, setup), mean_map(maps), strict=True):
        lack = lack_of_map(heat)
        shown = "" if lack else f" Beside it, the class activation map of {names[each.label]}."
        note = f"no map: {lack}" if lack else f"colors to ±{np.abs(heat).max():.2g}"
        pictures.append(
            Picture(
                embed(gray, None if lack else heat),
                f"CT slice, {each.said}.{shown}",
                each.name,
                f"{each.said}{each.place}; {note}",
            )
        )
    return pictures


def sheet_maker(setup: EvaluationSetup) -> Callable[[Sequence[str]], str]:
    """Return a function that shows slices of the setup's split side by side, by their image ids.

    The images are read by the index, not the split from its beginning.

    Raises:
        UsageError: the index is missing or damaged.
    """
    every = setup.shards.examples((setup.split,))
    ids = pd.Index(every.columns(IMAGE_ID)[IMAGE_ID])
    first = np.flatnonzero(~ids.duplicated())

    def make_sheet(image_ids: Sequence[str]) -> str:
        images = every.select(first[ids[first].get_indexer(pd.Index(image_ids))]).images()
        cells = [fit(gray, _THUMBNAIL) for gray in gray_levels(images, setup)]
        return embed_jpeg(np.hstack(cells), quality=70)

    return make_sheet


def worst_mistakes(labels: Ints, predicted: Floats, wanted: int) -> list[Answer]:
    """Return the answers with the highest loss, one per slice; arguments [N, L]."""
    losses = example_losses(labels, predicted)
    order = np.argsort(-losses.max(axis=1), kind="stable")[:wanted]
    return [(int(row), int(losses[row].argmax())) for row in order]


def best_hits(labels: Ints, predicted: Floats, wanted: int) -> list[Answer]:
    """Return the surest true positives, one per slice, labels in turn; arguments [N, L]."""
    ranked = np.argsort(example_losses(labels, predicted), axis=0, kind="stable")
    queues = [[int(row) for row in rows if labels[row, i]] for i, rows in enumerate(ranked.T)]
    hits: dict[int, Answer] = {}
    while len(hits) < wanted and any(queues):
        for label, queue in enumerate(queues):
            while queue and queue[0] in hits:
                queue.pop(0)
            if queue and len(hits) < wanted:
                row = queue.pop(0)
                hits[row] = (row, label)
    return list(hits.values())


def gray_levels(images: npt.NDArray[Any], setup: EvaluationSetup) -> npt.NDArray[np.float32]:
    """Return images [B, H, W, C] in the brain window, 0 to 255, [B, H, W].

    Images without this window are shown in their first one.
    """
    offset = setup.shards.image.hu_offset
    if setup.shards.image.is_hounsfield:
        center, width = _BRAIN
        hounsfield = images[..., 0].astype(np.float32) + offset
        return np.asarray(np.clip((hounsfield - center) / width + 0.5, 0, 1) * 255, np.float32)
    return images[..., brain_channel(setup.shards.windows)].astype(np.float32)


def brain_channel(windows: Sequence[Window]) -> int:
    """Return the number of the brain window; 0 without one."""
    found = [i for i, w in enumerate(windows) if (w.center, w.width) == _BRAIN]
    return found[0] if found else 0


def placed_maps(
    classifier: Any, images: npt.NDArray[Any], label: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Return `activation_maps` of stored images as maps of the whole images, [B, h, w]."""
    return np.asarray(
        classifier.get_layer("resize").place(activation_maps(classifier, images, label), images)
    )


def activation_maps(
    classifier: Any, images: npt.NDArray[Any], label: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Return the class activation map of one label per image, [B, h, w], in log-odds.

    Only a mean and a linear layer lie between the last feature map and a logit, so a place of that
    map contributes its features times the layer's weights, without any gradient (Zhou et al.,
    arXiv:1512.04150): the mean of a map plus the layer's bias is the logit. Values above 0 speak
    for the label. Images are stored ones, [B, H, W, C], those of all slices of a sample; labels are
    numbers, [B].
    """
    core = classifier.get_layer("core")
    resized = np.asarray(classifier.get_layer("resize")(images))
    head = core.get_layer("head")
    network = keras.Model(core.input, core.get_layer("pool").input)
    network.jit_compile = classifier.jit_compile
    features = np.asarray(network.predict_on_batch(resized)).astype(np.float32)
    kernel = keras.ops.convert_to_numpy(head.kernel).astype(np.float32)
    maps = np.einsum("bhwd,db->bhw", features, kernel[:, label])
    # Half-precision features can overflow: omit maps that did.
    maps[~np.isfinite(maps).all(axis=(1, 2))] = 0
    return np.asarray(maps, np.float32)


def mean_map(maps: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Return the mean of several networks' maps [B, h, w], of the size of the largest."""
    rows, columns = max(each.shape[1:] for each in maps)
    resized = [
        np.stack([cv2.resize(one, (columns, rows), interpolation=cv2.INTER_LINEAR) for one in each])
        for each in maps
    ]
    return np.asarray(np.mean(resized, axis=0), np.float32)


def lack_of_map(heat: npt.NDArray[np.float32]) -> str | None:
    """Return why a map [h, w] cannot be shown; None if the map can be shown."""
    if not heat.any():
        return "nothing in this slice speaks for or against the label"
    if heat.min() == heat.max():
        return f"the network's last feature map ({heat.shape[0]} x {heat.shape[1]}) is uniform"
    return None


def embed(gray: npt.NDArray[np.float32], heat: npt.NDArray[np.float32] | None) -> str:
    """Draw a slice, 0 to 255 [H, W], beside it with its map [h, w]; return a JPEG as data: URI."""
    plain = np.repeat(fit(gray, _SIDE)[..., None], 3, axis=2)
    if heat is None:
        return embed_jpeg(plain)
    size = gray.shape[::-1]
    strength = cv2.resize(heat, size, interpolation=cv2.INTER_LINEAR) / np.abs(heat).max()
    alpha = 0.7 * np.abs(strength)[..., None]
    colors = np.where(strength[..., None] > 0, _FOR, _AGAINST)
    colored = gray[..., None] * (1 - alpha) + colors * alpha
    return embed_jpeg(np.hstack([plain, np.zeros((_SIDE, 4, 3)), fit(colored, _SIDE)]))


def fit(image: npt.NDArray[Any], side: int) -> npt.NDArray[np.float32]:
    """Return an image [H, W, ...] in the middle of a black square, [side, side, ...]."""
    scale = side / max(image.shape[:2])
    rows, columns = (max(1, round(pixels * scale)) for pixels in image.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image.astype(np.float32), (columns, rows), interpolation=how)
    square = np.zeros((side, side, *image.shape[2:]), np.float32)
    top, left = (side - rows) // 2, (side - columns) // 2
    square[top : top + rows, left : left + columns] = resized
    return square


def embed_jpeg(pixels: npt.NDArray[Any], quality: int = 80) -> str:
    """Return pixels, 0 to 255, gray [H, W] or colors [H, W, 3], as data: URI of a JPEG."""
    rounded = np.ascontiguousarray(np.rint(pixels).clip(0, 255), np.uint8)
    encoded = jpeg8_encode(rounded, level=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}"
