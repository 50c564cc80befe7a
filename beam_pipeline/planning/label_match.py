"""Whether labels and files have ids in common, found before any header is read."""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import pyarrow as pa

from beam_pipeline.errors import UsageError
from beam_pipeline.planning.image_keys import image_keys
from beam_pipeline.planning.labels import Labels

_NAMES_AT_A_TIME = 10_000


def check_labels_fit(labels: Labels, path: str, image_ids: Iterable[str]) -> None:
    """Raise if not one label is of a file.

    Most often the first names tell that there is one; all are compared before there is none.

    Args:
        labels: of images.
        path: of the label file.
        image_ids: of the files, as their names give them.

    Raises:
        UsageError: no image of the label file is among them; an id of each is quoted.
    """
    names = iter(image_ids)
    seen: list[pa.Array] = []
    for ids in labels.image_ids.chunks:
        keys = image_keys(ids)
        known = _among(seen, keys) or _among(_listed(names, seen), keys)
        if known:
            return
    if len(labels.image_ids) and seen:
        raise UsageError(
            f"no image of label file {path} is among the files: its ids are like "
            f"{labels.image_ids[0].as_py()!r}, those of the files like {seen[0][0].as_py()!r}"
        )


def _listed(names: Iterator[str], seen: list[pa.Array]) -> Iterator[pa.Array]:
    """The next names, a part at a time, which are kept in `seen`."""
    while part := list(islice(names, _NAMES_AT_A_TIME)):
        seen.append(pa.array(part, pa.string()))
        yield seen[-1]


def _among(parts: Iterable[pa.Array], keys: np.ndarray) -> bool:
    return any(np.isin(image_keys(part), keys).any() for part in parts)
