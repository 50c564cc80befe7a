"""Random access to the images, labels and rows of a shard directory, by its index."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headct.errors import UsageError
from headct.layout import (
    ID_COLUMNS,
    IMAGE,
    IMAGE_ID,
    INDEX,
    LABEL,
    MANIFEST,
    PATIENT_ID,
    POSITION,
    SERIES_ID,
    UNLABELED,
    label_column,
)
from headct.manifest import Manifest, parse_manifest
from headct.png import END, SIGNATURE, decode_pngs
from headct.printable import hide_secrets, quoted
from headct.scans import SPLIT, Scans, find_scans
from headct.stores import Range, is_local, read_ranges

Positions = npt.NDArray[np.int64]
_AT_ONCE = 256  # PNGs that `images` keeps in memory


@dataclass(frozen=True)
class _Directory:
    """A shard directory and its index; all selections of one `headct.open` share it."""

    location: str
    manifest: Manifest
    index: pa.Table
    # NumPy copies of the columns that images need: ten times as fast as Arrow.
    shard: pa.Array
    start: Positions
    size: Positions
    label: npt.NDArray[np.int64]
    of_images: bool  # whether `start` and `size` are of the PNG; otherwise of the whole record


class Shards:
    """The examples of a shard directory or a selection: a lazy sequence.

    An example is a dict with the features of the README's table: `image` [H, W, C] (uint8; uint16
    for shards in Hounsfield units: HU = value + `hu_offset`), `label` int64 [L] in the order of
    `labels` (-1 where unlabeled), `image_id`, `patient_id`, `study_id`, `series_id`, `position_z`
    float32 and `pixel_spacing` float32 [2] in mm (NaN where absent).

        shards[0], shards[-1]        one example
        shards["ID_0123"]            the example with an image id
        shards[10:20]                a selection; methods return selections, too
        for example in shards: ...

    Shards can be pickled, and shared with forked or spawned processes: a read opens its own file.
    An image takes 0.7 ms of a core. From a URL, one request reads one image; `images()` and the
    batches of PyTorch send several at once.

    Attributes:
        location: path or URL of the directory.
        manifest: of the directory (headct.manifest.Manifest).
        labels: names, in the order of an example's `label`.
        windows: one per channel, with name, center and width (HU); empty for Hounsfield units.
        image_shape: (height, width, channels).
        dtype: of the images.
        hu_offset: HU minus stored value, for shards in Hounsfield units.
    """

    def __init__(self, directory: _Directory, positions: Positions) -> None:
        self._directory = directory
        self._positions = positions
        self.location = directory.location
        self.manifest = directory.manifest
        self.labels = tuple(self.manifest.labels)
        self.windows = tuple(self.manifest.windows)
        image = self.manifest.image
        self.image_shape = (image.height, image.width, image.channels)
        self.dtype = np.dtype(image.dtype)
        self.hu_offset = image.hu_offset

    @classmethod
    def read(cls, location: str | os.PathLike[str]) -> "Shards":
        """Return all examples of a directory; see `headct.open`."""
        location = os.fspath(location).rstrip("/") or "/"
        if is_local(location):  # other processes may have another working directory
            location = str(Path(location.removeprefix("file://")).absolute())
        shown = hide_secrets(location)
        try:
            (data,) = read_ranges(location, [(MANIFEST, 0, None)])
        except OSError:
            raise UsageError(f"{shown}: no {MANIFEST}, so no finished shard directory") from None
        manifest = parse_manifest(data, f"{shown}/{MANIFEST}")
        labels = [label_column(label) for label in manifest.labels]
        try:
            (data,) = read_ranges(location, [(INDEX, 0, None)])
            index = pq.read_table(pa.BufferReader(data)).combine_chunks()
            # Earlier versions only recorded the location of the record.
            of_images = "image_offset" in index.column_names
            place = ("image_offset", "image_bytes") if of_images else ("offset", "bytes")
            numbers = [index[name].fill_null(UNLABELED).to_numpy() for name in (*place, *labels)]
            start, size, *label = (column.astype(np.int64) for column in numbers)
            shard = index["shard"].combine_chunks().dictionary_encode()
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"{shown}/{INDEX}: cannot be read ({reason})") from None
        if len(index) != sum(split.examples for split in manifest.splits.values()):
            raise UsageError(f"{shown}/{INDEX}: other examples than {MANIFEST} has")
        columns = np.column_stack(label) if label else np.empty((len(index), 0), np.int64)
        if not np.isin(columns, (UNLABELED, 0, 1)).all():
            raise UsageError(f"{shown}/{INDEX}: has a label that is none of {UNLABELED} to 1")
        directory = _Directory(location, manifest, index, shard, start, size, columns, of_images)
        return cls(directory, np.arange(len(index)))

    @property
    def splits(self) -> dict[str, int]:
        """Number of examples per split in this selection."""
        counts = self._column("split").value_counts().to_pylist()
        return dict(sorted((split["values"], split["counts"]) for split in counts))

    @property
    def rows(self) -> pd.DataFrame:
        """The index as a table: one row per example, in order, with the README's columns."""
        return self.columns(*self._directory.index.column_names)

    def columns(self, *names: str) -> pd.DataFrame:
        """Return columns of `rows`.

        Raises:
            UsageError: the index of an earlier version lacks a column.
        """
        if lacking := {*names} - {*self._directory.index.column_names}:
            where = hide_secrets(self.location)
            raise UsageError(f"{where}/{INDEX}: has no column {min(lacking)}")
        columns: pd.DataFrame = (
            self._directory.index.select(names).take(self._positions).to_pandas()
        )
        return columns

    @property
    def label_values(self) -> pd.DataFrame:
        """Labels as a table: one row per example, one column per label; 0, 1 or -1."""
        ids = pd.Index(self._column(IMAGE_ID).to_pylist(), name=IMAGE_ID)
        return pd.DataFrame(self._directory.label[self._positions], ids, list(self.labels))

    def __len__(self) -> int:
        return len(self._positions)

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {count}" for name, count in self.splits.items())
        shape = " x ".join(map(str, self.image_shape))
        return (
            f"<headct.Shards {hide_secrets(self.location)}: {len(self)} examples ({splits}), "
            f"{shape} {self.dtype}, labels {', '.join(self.labels) or 'none'}>"
        )

    @overload
    def __getitem__(self, key: int | str) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, key: slice) -> "Shards": ...

    def __getitem__(self, key: int | str | slice) -> "dict[str, Any] | Shards":
        """Return an example by its position or image id, or a selection by a slice.

        Raises:
            IndexError: there is no such position.
            UsageError: there is no such image id, or the shard is damaged or gone.
            StorageError: a store fails or refuses access.
        """
        if isinstance(key, slice):
            return self.select(np.arange(len(self))[key])
        if isinstance(key, str):
            position = pc.index(self._column(IMAGE_ID), key).as_py()
            if position < 0:
                raise UsageError(f"no image {quoted(key)} among {len(self)} examples")
            return self.__getitems__([position])[0]
        return self.__getitems__([key])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """Return several examples for data loaders; reads from a URL run in parallel."""
        pngs = self.pngs(positions)
        return [
            self._example(self._at(position), png)
            for position, png in zip(positions, pngs, strict=True)
        ]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[position] for position in range(len(self)))

    def png(self, position: int) -> bytes:
        """Return the PNG of an example, as it is stored."""
        return self.pngs([position])[0]

    def images(self) -> npt.NDArray[Any]:
        """Return all images of this selection, [N, H, W, C], in memory."""
        images = np.empty((len(self), *self.image_shape), self.dtype)
        for begin in range(0, len(self), _AT_ONCE):
            positions = range(begin, min(begin + _AT_ONCE, len(self)))
            for position, png in zip(positions, self.pngs(positions), strict=True):
                self._decode(self._at(position), png, images[position])
        return images

    def select(self, which: npt.ArrayLike) -> "Shards":
        """Return the examples at some positions, or where a mask is true, in order.

        Example: `shards.select(shards.rows["label_any"] == 1)`.
        """
        chosen = np.asarray(which)
        if chosen.dtype != np.bool_:
            chosen = chosen.astype(np.int64)
        return Shards(self._directory, self._positions[chosen])

    def split(self, *names: str) -> "Shards":
        """Return the examples of one or several splits.

        Raises:
            UsageError: there is no such split.
        """
        known = self.manifest.splits
        if unknown := [name for name in names if name not in known]:
            raise UsageError(f"no split {quoted(unknown[0])}; there are {', '.join(known)}")
        return self.select(pc.is_in(self._column("split"), pa.array(names, pa.string())))

    def patient(self, patient_id: str) -> "Shards":
        """Return the examples of a patient, by series and in the order of slices.

        Raises:
            UsageError: there is no such patient.
        """
        return self._in_order(PATIENT_ID, patient_id)

    def series(self, series_id: str) -> "Shards":
        """Return the examples of a series in the order of its slices, from bottom to top.

        Raises:
            UsageError: there is no such series.
        """
        return self._in_order(SERIES_ID, series_id)

    def scans(self) -> Scans:
        """Return the scans of this selection: positions of their slices along z, and gaps in mm.

        Example: `for scan in shards.scans(): images = shards.select(scan).images()`.

        Raises:
            UsageError: the index of an earlier version lacks a column, or a series has slices in
                several splits.
        """
        wanted = (IMAGE_ID, *ID_COLUMNS, POSITION, SPLIT)
        names = [name for name in wanted if name in self._directory.index.column_names]
        return find_scans(self.columns(*names), f"{hide_secrets(self.location)}/{INDEX}")

    def _in_order(self, column: str, value: str) -> "Shards":
        found = self.select(pc.equal(self._column(column), value))
        if not len(found):
            raise UsageError(f"no {column} {quoted(value)} among {len(self)} examples")
        keys = [(name, "ascending") for name in (SERIES_ID, POSITION)]
        table = self._directory.index.select([SERIES_ID, POSITION]).take(found._positions)
        return found.select(pc.sort_indices(table, sort_keys=keys))

    def _column(self, name: str) -> Any:
        return self._directory.index[name].take(pa.array(self._positions)).combine_chunks()

    def _at(self, position: int) -> int:
        """Return an example's row in the index."""
        if not -len(self) <= position < len(self):
            raise IndexError(f"no example {position}: there are {len(self)}")
        return int(self._positions[position])

    def _example(self, row: int, png: bytes) -> dict[str, Any]:
        index = self._directory.index
        image = np.empty(self.image_shape, self.dtype)
        self._decode(row, png, image)
        spacing = [index[name][row].as_py() for name in ("row_spacing", "column_spacing")]
        return {
            IMAGE: image,
            **{name: index[name][row].as_py() for name in (IMAGE_ID, *ID_COLUMNS)},
            LABEL: self._directory.label[row].copy(),
            POSITION: np.array(index[POSITION][row].as_py(), np.float32)[()],
            "pixel_spacing": np.array(spacing, np.float32),
        }

    def _decode(self, row: int, png: bytes, image: npt.NDArray[Any]) -> None:
        try:
            decode_pngs([png], self.manifest.image, image[None])
        except ValueError as error:
            raise UsageError(f"{self._where(row)}: {error}; `make verify` says more") from None

    def _where(self, row: int) -> str:
        index = self._directory.index
        return f"{index['shard'][row]}: record {index['record'][row]}"

    def pngs(self, positions: Sequence[int]) -> Sequence[bytes]:
        """Return the PNGs of examples, as they are stored."""
        directory = self._directory
        rows = [self._at(position) for position in positions]
        ranges: list[Range] = [
            (directory.shard[row].as_py(), int(directory.start[row]), int(directory.size[row]))
            for row in rows
        ]
        try:
            found = read_ranges(directory.location, ranges)
        except OSError as error:
            shards = {directory.index["shard"][row] for row in rows}
            where = hide_secrets(self.location)
            if len(shards) == 1:
                where = self._where(rows[0]) if len(rows) == 1 else shards.pop()
            raise UsageError(f"{where}: cannot be read ({error.strerror})") from None
        if directory.of_images:
            return found
        records = map(bytes, found)
        return [record[record.find(SIGNATURE) : record.rfind(END) + len(END)] for record in records]
