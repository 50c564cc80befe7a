"""Pictures of a model's worst mistakes and best hits, with Grad-CAM maps."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from headct.layout import IMAGE_ID
from headct.manifest import ImageSpec
from trainer.evaluation.measured import Measured
from trainer.evaluation.metrics import Floats, Ints, example_losses
from trainer.networks.saved_models import load_classifier
from trainer.report.plots import Picture
from trainer.runs.evaluation_setup import EvaluationSetup

Answer = tuple[int, int]  # a row of the predictions, and a label's number


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
    spec, names = setup.shards.image, setup.run.labels
    every, rows = setup.shards.locate(setup.split, [each.image_id for each in chosen])
    images = every.select(rows).images()
    labels = np.array([each.label for each in chosen])
    maps = []
    for run in setup.run.networks:
        compiled, slices = setup.compiled(run), run.neighbors.slices
        classifier = load_classifier(run.model, compiled, spec, len(names), slices)
        seen = run.neighbors.images(every, rows) if run.neighbors.count else images
        found = activation_maps(classifier, seen, labels)
        maps.append(classifier.get_layer("resize").place(found, seen))
    heats = mean_map(maps)
    pictures = []
    for each, image, heat in zip(chosen, images, heats, strict=True):
        lack = lack_of_map(heat)
        shown = "" if lack else f" Beside it, Grad-CAM of {names[each.label]}."
        pictures.append(
            Picture(
                embed(gray_levels(image, spec), None if lack else heat),
                f"CT slice, {each.said}.{shown}",
                each.name,
                f"{each.said}{each.place}" + (f"; no map: {lack}" if lack else ""),
            )
        )
    return pictures


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


def gray_levels(image: npt.NDArray[Any], spec: ImageSpec) -> npt.NDArray[Any]:
    """Return the first window of an image, or the brain window of Hounsfield units, 0 to 255."""
    first = image[..., 0]
    if not spec.is_hounsfield:
        return first
    return np.clip((first.astype(np.float32) + spec.hu_offset) / 80 * 255, 0, 255)


def activation_maps(
    classifier: Any, images: npt.NDArray[Any], label: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Grad-CAM of one label per image, [B, h, w], 0 to 1 (Selvaraju et al., arXiv:1610.02391).

    Only a mean and a linear layer lie between the last feature map and a logit, so the gradient
    equals the layer's weights and needs no backward pass (their section 3). A map shows evidence
    for the label, and is zero without evidence: see `lack_of_map`. Images are stored ones,
    [B, H, W, C], those of all slices of a sample; labels are numbers, [B].
    """
    core = classifier.get_layer("core")
    resized = np.asarray(classifier.get_layer("resize")(images))
    head = core.get_layer("head")
    network = keras.Model(core.inputs, core.get_layer("pool").input)
    network.jit_compile = classifier.jit_compile
    features = np.asarray(network.predict_on_batch(resized)).astype(np.float32)
    kernel = keras.ops.convert_to_numpy(head.kernel).astype(np.float32)
    maps = np.maximum(np.einsum("bhwd,db->bhw", features, kernel[:, label]), 0)
    # Half-precision features can overflow: omit maps that did.
    maps[~np.isfinite(maps).all(axis=(1, 2))] = 0
    highest = maps.max(axis=(1, 2), keepdims=True)
    return np.asarray(maps / np.where(highest > 0, highest, 1), np.float32)


def mean_map(maps: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Return the mean of several networks' maps [B, h, w], of the size of the largest."""
    size = max(each.shape[1:] for each in maps)
    resized = [
        each
        if each.shape[1:] == size
        else np.asarray(keras.ops.image.resize(each[..., None], size))[..., 0]
        for each in maps
    ]
    return np.asarray(np.mean(resized, axis=0), np.float32)


def lack_of_map(heat: npt.NDArray[np.float32]) -> str | None:
    """Return why a map [h, w] cannot be shown; None if the map can be shown."""
    if not heat.any():
        return "nothing in this slice speaks for the label"
    if heat.min() == heat.max():
        return f"the network's last feature map ({heat.shape[0]} x {heat.shape[1]}) is uniform"
    return None


def embed(gray: npt.NDArray[Any], heat: npt.NDArray[Any] | None) -> str:
    """Draw a slice, 0 to 255 [H, W], beside it with its map [h, w]; return a JPEG as data: URI."""
    overlays = [None] if heat is None else [None, heat]
    figure = Figure(figsize=(2.4 * len(overlays), 2.4))
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1, wspace=0.02)
    extent = (0, gray.shape[1], gray.shape[0], 0)
    grid = figure.subplots(1, len(overlays), squeeze=False)
    for axes, overlay in zip(grid[0], overlays, strict=True):
        axes.imshow(gray, cmap="gray", vmin=0, vmax=255, extent=extent)
        if overlay is not None:
            # Pixels without evidence for the label stay gray.
            shown = 0.6 * np.sqrt(np.clip(overlay, 0, 1))
            axes.imshow(
                overlay, cmap="inferno", alpha=shown, extent=extent, interpolation="bilinear"
            )
        axes.axis("off")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", dpi=100, facecolor="black", pil_kwargs={"quality": 85})
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
