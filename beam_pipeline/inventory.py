"""What is known of every input file before its pixels are read: one row a file."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

from beam_pipeline.dicom import read_header
from beam_pipeline.errors import Reason, Rejected
from beam_pipeline.storage import InputFiles

BATCH = 256  # files inspected by one task

_COLUMNS = ("source", "image_id", "patient_id", "study_id", "series_id", "reason", "detail")


@dataclass(frozen=True)
class Batch:
    """Some of the input's files.

    Attributes:
        sources: their paths, relative to the input's root.
        excluded: files not to touch, and why.
    """

    sources: tuple[str, ...]
    excluded: dict[str, Reason] = field(default_factory=dict)

    def excluding(self, source: str, reason: Reason) -> "Batch":
        """The same files, without touching one of them."""
        return Batch(self.sources, {**self.excluded, source: reason})


def list_batches(files: InputFiles) -> Iterator[Batch]:
    """All input files, in order, a batch at a time."""
    sources = files.list()
    while batch := tuple(islice(sources, BATCH)):
        yield Batch(batch)


def inspect_batch(batch: Batch, note: Callable[[int], None], *, files: InputFiles) -> pd.DataFrame:
    """Read the headers of some files.

    Args:
        batch: the files.
        note: told the place of each file before it is read.
        files: where they are.

    Returns:
        str columns source, image_id, patient_id, study_id, series_id (as in the file), reason
        (empty for a usable file) and detail; a row a file.
    """
    rows = []
    for place, source in enumerate(batch.sources):
        note(place)
        rows.append(_inspect(source, files, batch.excluded.get(source)))
    return inventory_frame(rows)


def inventory_frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """An inventory of rows; what a row lacks is empty."""
    filled = ([row.get(column, "") for column in _COLUMNS] for row in rows)
    return pd.DataFrame(filled, columns=list(_COLUMNS), dtype=str)


def image_id(source: str) -> str:
    """A file's name without its suffix."""
    name = PurePosixPath(source).name
    return name.removesuffix(PurePosixPath(name).suffix) or name


def _inspect(source: str, files: InputFiles, excluded: Reason | None) -> dict[str, Any]:
    row = {"source": source, "image_id": image_id(source)}
    try:
        if excluded:
            raise Rejected(excluded)
        with files.open(source) as (file, size):
            header = read_header(file, size)
    except Rejected as rejected:
        return {**row, "reason": rejected.reason.value, "detail": rejected.detail}
    except OSError as error:
        return {**row, "reason": Reason.UNREADABLE.value, "detail": error.strerror or ""}
    return {
        **row,
        "patient_id": header.patient_id,
        "study_id": header.study_id,
        "series_id": header.series_id,
    }
