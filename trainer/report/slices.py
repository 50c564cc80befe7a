"""Slices that a model got right or wrong, and what it looked at."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from headct.manifest import ImageSpec
from trainer.data.damage import damage_reported
from trainer.data.input_pipeline import evaluation_batches
from trainer.evaluation.bootstrap import example_losses
from trainer.networks.model import load_classifier
from trainer.report.figures import plot_slice
from trainer.runs.job import EvaluationJob

JPEG_QUALITY = 85


@dataclass(frozen=True)
class Answer:
    """A slice and label.

    Attributes:
        row: of the predictions.
        label: its number.
        loss: nats.
    """

    row: int
    label: int
    loss: float


@dataclass(frozen=True)
class Picture:
    """A slice, beside it the same with its activation map, where there is one.

    Attributes:
        source: data: URI of a JPEG.
        alt: what it shows.
        caption: what is true and what was answered; why there is no map.
    """

    source: str
    alt: str
    caption: str


def worst_mistakes(
    labels: npt.NDArray[Any], predicted: npt.NDArray[Any], wanted: int
) -> list[Answer]:
    """The most expensive answers, one a slice; labels and probabilities are [N, L]."""
    losses = example_losses(labels, predicted)
    label = losses.argmax(axis=1)
    highest = losses[np.arange(len(losses)), label]
    order = np.argsort(-highest, kind="stable")[:wanted]
    return [Answer(int(i), int(label[i]), float(highest[i])) for i in order]


def best_hits(labels: npt.NDArray[Any], predicted: npt.NDArray[Any], wanted: int) -> list[Answer]:
    """The surest true positives, one a slice, the labels taking turns; both are [N, L]."""
    losses = example_losses(labels, predicted)
    queues = [
        [int(row) for row in np.argsort(losses[:, i], kind="stable") if labels[row, i] == 1]
        for i in range(labels.shape[1])
    ]
    found: dict[int, Answer] = {}
    while len(found) < wanted and any(queues):
        for label, queue in enumerate(queues):
            while queue and queue[0] in found:
                queue.pop(0)
            if queue and len(found) < wanted:
                row = queue.pop(0)
                found[row] = Answer(row, label, float(losses[row, label]))
    return list(found.values())


def picture_answers(
    job: EvaluationJob,
    labels: npt.NDArray[Any],
    predicted: npt.NDArray[Any],
    answers: Sequence[Answer],
) -> list[Picture]:
    """Each answer's slice; labels and probabilities of the split are [N, L].

    Raises:
        UsageError: a shard is damaged.
    """
    if not answers:
        return []
    images = read_images(job, [each.row for each in answers])
    chosen = np.array([each.label for each in answers])
    classifier = load_classifier(job.run.model, job.xla, job.shards.image, labels.shape[1])
    heats = activation_maps(classifier, images, chosen)
    pictures = []
    for answer, image, heat in zip(answers, images, heats, strict=True):
        name = job.shards.labels[answer.label]
        true = "present" if labels[answer.row, answer.label] else "absent"
        probability = predicted[answer.row, answer.label]
        said = f"{name} is {true}, answered {probability:.3f}"
        lack = lack_of_map(heat)
        pictures.append(
            Picture(
                source=embed(gray_levels(image, job.shards.image), None if lack else heat),
                alt=f"CT slice, {said}."
                + ("" if lack else f" Beside it, Grad-CAM of {name}, strongest {strongest(heat)}."),
                caption=f"{said} (row {answer.row})" + (f"; no map: {lack}" if lack else ""),
            )
        )
    return pictures


def activation_maps(
    classifier: Any, images: npt.NDArray[Any], label: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Grad-CAM of one label per image, [B, h, w], 0 to 1 (Selvaraju et al., arXiv:1610.02391).

    Between the last feature map and a logit there is a mean and a linear layer alone, so
    the gradient is that layer's weights, and no backward pass is needed (their section 3).
    A map shows what speaks for the label, and is zero where nothing does: `lack_of_map`.

    Args:
        classifier: stored images → logits.
        images: stored images, [B, H, W, C].
        label: which label to explain, [B].
    """
    core = classifier.get_layer("core")
    resized = np.asarray(classifier.get_layer("resize")(images))
    head = core.get_layer("head")
    network = keras.Model(core.inputs, core.get_layer("pool").input)
    network.jit_compile = classifier.jit_compile
    features = np.asarray(network.predict_on_batch(resized)).astype(np.float32)
    kernel = keras.ops.convert_to_numpy(head.kernel).astype(np.float32)
    maps = np.maximum(np.einsum("bhwd,db->bhw", features, kernel[:, label]), 0)
    # Half-precision features can overflow; a map with a hole in it is none.
    maps[~np.isfinite(maps).all(axis=(1, 2))] = 0
    highest = maps.max(axis=(1, 2), keepdims=True)
    return np.asarray(maps / np.where(highest > 0, highest, 1), np.float32)


def lack_of_map(heat: npt.NDArray[np.float32]) -> str | None:
    """Why a map [h, w] has nothing to show; None if it has."""
    if not heat.any():
        return "nothing in this slice speaks for the label"
    if heat.min() == heat.max():
        return f"the network's last feature map ({heat.shape[0]} x {heat.shape[1]}) is uniform"
    return None


def strongest(heat: npt.NDArray[Any]) -> str:
    """Where a map [h, w] has its highest value, in words."""
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    down = int(3 * (row + 0.5) / heat.shape[0])
    right = int(3 * (column + 0.5) / heat.shape[1])
    if (down, right) == (1, 1):
        return "in the middle"
    vertical, sideways = ("top", "", "bottom")[down], ("left", "", "right")[right]
    return f"at the {' '.join(filter(None, (vertical, sideways)))}"


def read_images(job: EvaluationJob, rows: Sequence[int]) -> npt.NDArray[Any]:
    """The images of some rows of the split, in the order of `rows`."""
    found: dict[int, Any] = {}
    labels, start = len(job.shards.labels), 0
    batches = evaluation_batches(job.split, job.shards.image, labels, job.batch_size)
    with damage_reported((job.split,), job.shards.image, labels):
        for batch in batches.as_numpy_iterator():
            for row in rows:
                if start <= row < start + len(batch["label"]):
                    found[row] = batch["image"][row - start]
            start += len(batch["label"])
            if len(found) == len(set(rows)):
                break
    return np.stack([found[row] for row in rows])


def gray_levels(image: npt.NDArray[Any], spec: ImageSpec) -> npt.NDArray[Any]:
    """The first window of an image, or the brain window of Hounsfield units, 0 to 255."""
    first = image[..., 0]
    if not spec.is_hounsfield:
        return first
    return np.clip((first.astype(np.float32) + spec.hu_offset) / 80 * 255, 0, 255)


def embed(gray: npt.NDArray[Any], heat: npt.NDArray[Any] | None) -> str:
    """A slice, and with its map if there is one, as a data: URI."""
    buffer = io.BytesIO()
    options = {"quality": JPEG_QUALITY}
    plot_slice(gray, heat).savefig(
        buffer, format="jpeg", dpi=100, facecolor="black", pil_kwargs=options
    )
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
