"""A Kaggle submission: `ID,Label`, one row per image and label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from headct.errors import UsageError

ID, LABEL = "ID", "Label"


@dataclass(frozen=True)
class Submission:
    """Rows of a submission, and mismatches with the sample.

    Attributes:
        rows: columns ID, `<image id>_<label>`, and Label, a probability.
        filled: images of the sample without a prediction.
        left_out: predicted images that are not in the sample.
        unclear: rows with an ID of two images: `a_b_c` is label `c` of `a_b`, or `b_c` of `a`.
    """

    rows: pd.DataFrame
    filled: int = 0
    left_out: int = 0
    unclear: int = 0


def build_submission(
    image_ids: Iterable[str],
    probabilities: npt.NDArray[np.floating[Any]],
    labels: Sequence[str],
) -> Submission:
    """Return the rows of all images, in order, grouped by image.

    Args:
        image_ids: N image ids.
        probabilities: [N, L].
        labels: L names.
    """
    ids = [f"{image_id}_{label}" for image_id in image_ids for label in labels]
    rows = pd.DataFrame({ID: ids, LABEL: probabilities.ravel()})
    return Submission(rows, unclear=int(rows[ID].duplicated(keep=False).sum()))


def read_sample(path: Path, labels: Sequence[str]) -> list[str]:
    """Return the IDs of a sample submission, in its order.

    Raises:
        UsageError: the file cannot be read, or an ID has no known label.
    """
    try:
        ids = pd.read_csv(path, usecols=[ID], dtype=str, na_filter=False)[ID].tolist()
    except OSError as error:
        raise UsageError(f"--sample_submission {path}: {error.strerror}") from None
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--sample_submission {path}: cannot be read ({reason})") from None
    known = {*labels}
    other = next((row for row in ids if not readings(row, known)), None)
    if other is not None:
        raise UsageError(
            f"--sample_submission {path}: {other!r} is not <image id>_<label>; the labels"
            f" are {', '.join(labels)}"
        )
    return ids


def readings(row: str, labels: Collection[str]) -> list[tuple[str, str]]:
    """Return the possible images and labels of an ID, the longest label first.

    >>> readings("a_midline_shift", {"midline_shift", "shift"})
    [('a', 'midline_shift'), ('a_midline', 'shift')]
    """
    words = row.split("_")
    splits = (("_".join(words[:i]), "_".join(words[i:])) for i in range(1, len(words)))
    return [(image, label) for image, label in splits if label in labels]


def fit_to_sample(
    image_ids: Sequence[str],
    probabilities: npt.NDArray[np.floating[Any]],
    ids: Sequence[str],
    prevalence: Mapping[str, float],
) -> Submission:
    """Return the rows of a sample submission, in its order.

    Args:
        image_ids: N predicted images.
        probabilities: [N, L].
        ids: IDs from `read_sample`.
        prevalence: prevalence per label in the training data, for images that the pipeline
            rejected.
    """
    # reversed: the first of equal ids wins
    answers = dict(zip(reversed(image_ids), reversed(probabilities.tolist()), strict=True))
    column_of = {label: number for number, label in enumerate(prevalence)}
    pairs = {row: readings(row, column_of) for row in ids}
    if unclear := [row for row, options in pairs.items() if len(options) > 1]:
        # an image of the sample has one row per label
        counts = Counter(image for options in pairs.values() for image, _ in options)
        complete = {image for image, rows in counts.items() if rows == len(column_of)}
        for row in unclear:
            likely = [pair for pair in pairs[row] if pair[0] in complete or pair[0] in answers]
            pairs[row] = sorted(likely or pairs[row], key=lambda pair: pair[0] not in answers)
    values = [
        answers[image][column_of[label]] if image in answers else prevalence[label]
        for image, label in (pairs[row][0] for row in ids)
    ]
    images = {options[0][0] for options in pairs.values()}
    return Submission(
        rows=pd.DataFrame({ID: ids, LABEL: values}),
        filled=len(images - answers.keys()),
        left_out=len(answers.keys() - images),
        unclear=sum(len(pairs[row]) > 1 for row in ids),
    )
