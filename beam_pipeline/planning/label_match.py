"""Whether labels and files have ids in common, found before any header is read."""

from collections.abc import Iterable
from itertools import islice

import pandas as pd
import pyarrow as pa

from beam_pipeline.errors import UsageError
from beam_pipeline.planning.image_keys import image_keys
from beam_pipeline.planning.labels import Labels

_NAMES_AT_A_TIME = 10_000


def check_labels_fit(labels: Labels, path: str, image_ids: Iterable[str]) -> None:
    """Raise if no label belongs to a file.

    Args:
        labels: of images.
        path: of the label file.
        image_ids: of the files, by their names; they are taken until one has a label.

    Raises:
        UsageError: no image of the label file is among them; an id of each is quoted.
    """
    labeled = pd.Index(image_keys(labels.image_ids))
    names = iter(image_ids)
    example = None
    while some := list(islice(names, _NAMES_AT_A_TIME)):
        example = example or some[0]
        if labeled.isin(image_keys(pa.array(some, pa.string()))).any():
            return
    if example is not None and len(labels.image_ids):
        raise UsageError(
            f"no image of label file {path} is among the files: its ids are like "
            f"{labels.image_ids[0].as_py()!r}, those of the files like {example!r}"
        )
