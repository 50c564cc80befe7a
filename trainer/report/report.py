"""One page with everything one looks at after a run: no other file, no script, no network."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from trainer.data.damage import damage_reported
from trainer.data.input_pipeline import evaluation_batches
from trainer.data.shards import ImageSpec
from trainer.evaluation.bootstrap import example_losses
from trainer.evaluation.gradcam import activation_maps
from trainer.files import write_whole
from trainer.json_documents import read_json
from trainer.networks.model import load_classifier
from trainer.progress import number, span
from trainer.report import curves
from trainer.report.figures import plot_confusion, plot_curves, plot_mistake, plot_speed
from trainer.runs.job import EvaluationJob


@dataclass(frozen=True)
class Mistake:
    """A slice and label whose answer costs most.

    Attributes:
        row: of the predictions.
        label: its number.
        loss: nats.
    """

    row: int
    label: int
    loss: float


def write_report(job: EvaluationJob, mistakes: int) -> None:
    """Writes report.html into a run that is complete, and its pictures to TensorBoard.

    Raises:
        BadInput: a file of the run is damaged, or a shard is.
    """
    run, names = job.run, job.shards.labels
    metrics, history = read_json(run.metrics), read_json(run.path / "history.json")
    frame = pd.read_parquet(run.predictions(job.split.name))
    labels = frame[[f"label_{name}" for name in names]].to_numpy()
    predicted = frame[[f"probability_{name}" for name in names]].to_numpy()
    pictures = {
        "Course": curves.plot_history(history, names),
        "Speed": plot_speed(history),
        "Curves": plot_curves(labels, predicted, names, metrics),
        "Subtypes": plot_confusion(labels, predicted, names),
    }
    for title, figure in pictures.items():
        curves.log_picture(run.path / "tensorboard", title, figure, metrics["epochs"])
    worst = worst_mistakes(labels, predicted, mistakes)
    shown = [embed(each) for each in mistake_pictures(job, frame, worst)]
    page = render(job, metrics, {t: embed(f) for t, f in pictures.items()}, shown)
    write_whole(run.path / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
    job.display.say(f"written: {run.path}/report.html")


def worst_mistakes(
    labels: npt.NDArray[Any], predicted: npt.NDArray[Any], wanted: int
) -> list[Mistake]:
    """The most expensive answers, one a slice; labels and probabilities are [N, L]."""
    losses = example_losses(labels, predicted)
    label = losses.argmax(axis=1)
    highest = losses[np.arange(len(losses)), label]
    order = np.argsort(-highest, kind="stable")[:wanted]
    return [Mistake(int(i), int(label[i]), float(highest[i])) for i in order]


def mistake_pictures(job: EvaluationJob, frame: pd.DataFrame, worst: list[Mistake]) -> list[Figure]:
    """Each mistake's image, beside it what the model looked at."""
    if not worst:
        return []
    rows = [each.row for each in worst]
    images = read_images(job, rows)
    label = np.array([each.label for each in worst])
    heats = activation_maps(load_classifier(job.run.model), images, label)
    names, figures = job.shards.labels, []
    for mistake, image, heat in zip(worst, images, heats, strict=True):
        name, row = names[mistake.label], frame.iloc[mistake.row]
        title = (
            f"{row['image_id']}: {name} is {row[f'label_{name}']},"
            f" answered {row[f'probability_{name}']:.3f}"
        )
        figures.append(plot_mistake(gray_levels(image, job.shards.image), heat, title))
    return figures


def read_images(job: EvaluationJob, rows: list[int]) -> npt.NDArray[Any]:
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


def embed(figure: Figure) -> str:
    """A figure as a PNG in base64."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def render(
    job: EvaluationJob, metrics: dict[str, Any], pictures: dict[str, str], mistakes: list[str]
) -> str:
    """The page, out of report.html.jinja."""
    description = read_json(job.run.description)
    figures = next(iter(metrics["labels"].values()))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"number": number, "span": span}
    return environment.get_template("report.html.jinja").render(
        title=f"{job.run.path.name}: {metrics['split']}",
        metrics=metrics,
        figures=[name for name, value in figures.items() if not isinstance(value, list)],
        pictures=pictures,
        mistakes=mistakes,
        options=description["options"] | description["versions"],
    )
