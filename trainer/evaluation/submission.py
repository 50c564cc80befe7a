"""A Kaggle submission: `ID,Label`, a row for each image and label."""

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
    """Rows to write, and what became of the images that are asked for.

    Attributes:
        rows: columns ID, `<image id>_<label>`, and Label, a probability.
        filled: images that are asked for and were not predicted.
        left_out: images that were predicted and are not asked for.
        unclear: rows whose ID fits two images and labels: `a_b_c` is label `c` of image `a_b`, or
            `b_c` of `a`.
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
    """The rows of all images, in order, the labels of an image together.

    Args:
        image_ids: N of them.
        probabilities: [N, L].
        labels: L names.
    """
    ids = [f"{image_id}_{label}" for image_id in image_ids for label in labels]
    rows = pd.DataFrame({ID: ids, LABEL: probabilities.ravel()})
    return Submission(rows, unclear=int(rows[ID].duplicated(keep=False).sum()))


def read_sample(path: Path, labels: Sequence[str]) -> list[str]:
    """The ids of a sample submission, in its order.

    Raises:
        UsageError: it cannot be read, or asks for something else than these labels of images.
    """
    try:
        ids = pd.read_csv(path, usecols=[ID], dtype=str, na_filter=False)[ID].tolist()
    except OSError as error:
        raise UsageError(f"--sample_submission {path}: {error.strerror}") from None
    except ValueError as error:
        told = str(error).splitlines()[0]
        raise UsageError(f"--sample_submission {path}: cannot be read ({told})") from None
    known = {*labels}
    other = next((each for each in ids if not readings(each, known)), None)
    if other is not None:
        raise UsageError(
            f"--sample_submission {path}: {other!r} is not <image id>_<label>; the labels"
            f" are {', '.join(labels)}"
        )
    return ids


def readings(row: str, labels: Collection[str]) -> list[tuple[str, str]]:
    """The images and labels that an ID may stand for, the longest label first.

    >>> readings("a_midline_shift", {"midline_shift", "shift"})
    [('a', 'midline_shift'), ('a_midline', 'shift')]
    """
    found = []
    place = row.find("_")
    while place >= 0:
        if row[place + 1 :] in labels:
            found.append((row[:place], row[place + 1 :]))
        place = row.find("_", place + 1)
    return found


def fit_to_sample(
    image_ids: Sequence[str],
    probabilities: npt.NDArray[np.floating[Any]],
    ids: Sequence[str],
    prevalence: Mapping[str, float],
) -> Submission:
    """The rows that a sample submission asks for, in its order.

    Args:
        image_ids: N that were predicted.
        probabilities: [N, L].
        ids: as `read_sample` gives them.
        prevalence: of each of the L labels where the network was trained: what an image gets of
            which nothing is known, since the pipeline rejected its file.
    """
    # Of equal ids the first.
    answers = dict(zip(reversed(image_ids), reversed(probabilities.tolist()), strict=True))
    column_of = {label: number for number, label in enumerate(prevalence)}
    read = {each: readings(each, column_of) for each in ids}
    if several := [each for each, found in read.items() if len(found) > 1]:
        # An image that is asked for has a row for each label.
        asked = Counter(image for found in read.values() for image, _ in found)
        images = {image for image, rows in asked.items() if rows == len(column_of)} | answers.keys()
        for each in several:
            likely = [pair for pair in read[each] if pair[0] in images] or read[each]
            read[each] = sorted(likely, key=lambda pair: pair[0] not in answers)
    values = [
        answers[image][column_of[label]] if image in answers else prevalence[label]
        for image, label in (read[each][0] for each in ids)
    ]
    named = {found[0][0] for found in read.values()}
    return Submission(
        rows=pd.DataFrame({ID: ids, LABEL: values}),
        filled=len(named - answers.keys()),
        left_out=len(answers.keys() - named),
        unclear=sum(len(read[each]) > 1 for each in ids),
    )
