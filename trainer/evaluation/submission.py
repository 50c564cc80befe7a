"""A Kaggle submission: `ID,Label`, a row for each image and label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from trainer.errors import BadInput

ID, LABEL = "ID", "Label"


@dataclass(frozen=True)
class Submission:
    """Rows to write, and what became of the images that are asked for.

    Attributes:
        rows: columns ID, `<image id>_<label>`, and Label, a probability.
        filled: images that are asked for and were not predicted.
        left_out: images that were predicted and are not asked for.
    """

    rows: pd.DataFrame
    filled: int = 0
    left_out: int = 0


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
    return Submission(pd.DataFrame({ID: ids, LABEL: probabilities.ravel()}))


def read_sample(path: Path, labels: Sequence[str]) -> pd.Series[str]:
    """The ids of a sample submission, in its order.

    Raises:
        BadInput: it cannot be read, or asks for something else than these labels of images.
    """
    try:
        ids = pd.read_csv(path, usecols=[ID], dtype=str)[ID].fillna("")
    except OSError as error:
        raise BadInput(f"--sample_submission {path}: {error.strerror}") from None
    except ValueError as error:
        told = str(error).splitlines()[0]
        raise BadInput(f"--sample_submission {path}: cannot be read ({told})") from None
    other = ids[~ids.str.rpartition("_")[2].isin(labels)]
    if len(other):
        raise BadInput(
            f"--sample_submission {path}: {other.iloc[0]!r} is not <image id>_<label>; the labels"
            f" are {', '.join(labels)}"
        )
    return ids


def fit_to_sample(
    submission: Submission, ids: pd.Series[str], prevalence: Mapping[str, float]
) -> Submission:
    """The rows that a sample submission asks for, in its order.

    Args:
        submission: of the images that were predicted.
        ids: as `read_sample` gives them.
        prevalence: of each label where the network was trained: what an image gets of which
            nothing is known, since the pipeline rejected its file.
    """
    predicted = submission.rows.drop_duplicates(ID).set_index(ID)[LABEL]
    parts = ids.str.rpartition("_")
    values = ids.map(predicted)
    missing = values.isna()
    values = values.where(~missing, parts[2].map(dict(prevalence)))
    known = predicted.index.to_series().str.rpartition("_")[0]
    return Submission(
        rows=pd.DataFrame({ID: ids, LABEL: values}),
        filled=parts[0][missing].nunique(),
        left_out=len({*known} - {*parts[0]}),
    )
