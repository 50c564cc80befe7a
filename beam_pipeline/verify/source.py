"""Comparison of shard images with the DICOM files that they were made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beam_pipeline.dicom.slices import read_slice
from beam_pipeline.images.convert import convert_slice
from beam_pipeline.options import ImageId, ImageOptions, fill_in
from beam_pipeline.planning.locate_sources import locate_sources
from beam_pipeline.verify.findings import printable
from headct.errors import UsageError
from headct.reasons import Rejected
from headct.stores import InputFiles, decode_source

Pixels = NDArray[np.uint8 | np.uint16]

FILE = "file"  # added column of the index: the source file's path; `source` may hide the path


@dataclass(frozen=True)
class Conversion:
    """Input and options of a shard directory's images."""

    files: InputFiles
    image: ImageOptions

    @classmethod
    def recorded(cls, source: str, options: dict[str, Any]) -> "Conversion":
        """Return the conversion with a manifest's options; the input may have been moved.

        Raises:
            UsageError: the input does not exist.
            ValueError: the options are invalid.
        """
        files = InputFiles.parse(source)
        try:
            recorded = fill_in(options)
            image = ImageOptions(**{name: recorded[name] for name in ImageOptions.model_fields})
        except (KeyError, TypeError, UsageError) as error:
            raise ValueError(f"options cannot be read: {type(error).__name__}") from None
        return cls(files, image)

    def add_files(self, index: pa.Table, options: dict[str, Any], files_seen: int) -> pa.Table:
        """Return the index with the column FILE, for the manifest's options and number of files.

        Raises:
            ValueError: sources are numbers, and the input has more or fewer files now.
        """
        files = locate_sources(
            self.files,
            index["source"].to_pylist(),
            numbered=options.get("image_id") == ImageId.ORDINAL,
            count=files_seen,
        )
        paths = pa.array([path or b"" for path in files], pa.binary())
        return index.append_column(FILE, paths)

    def read(self, row: dict[str, Any]) -> "SourceFile":
        """Return the source file of a row of the index.

        Raises:
            StoreError: the input's store fails.
        """
        try:
            return SourceFile(self.image, row, self.files.read(decode_source(row[FILE])))
        except OSError as error:
            return SourceFile(self.image, row, error)


@dataclass(frozen=True)
class SourceFile:
    """The DICOM file of an example."""

    image: ImageOptions
    row: dict[str, Any]  # row of the index
    data: bytes | OSError  # content, or the reading error

    def compare(self, pixels: Pixels, pixel_spacing: Sequence[float]) -> list[str]:
        """Return one message per difference between an example and the file.

        Args:
            pixels: pixels of the example, [height, width, channels].
            pixel_spacing: spacing of the example, mm.
        """
        source = printable(self.row["source"])
        if isinstance(self.data, FileNotFoundError):
            return [f"{source} is no longer there"]
        if isinstance(self.data, OSError):
            return [f"{source} cannot be read: {self.data.strerror or type(self.data).__name__}"]
        try:
            slice_ = read_slice(self.data)
            image = convert_slice(slice_, self.image)
        except Rejected as rejected:
            return [f"{source} is no longer usable: {rejected.reason} {rejected.detail}".rstrip()]
        fresh = {
            "rows": slice_.header.rows,
            "columns": slice_.header.columns,
            "transfer_syntax": slice_.header.transfer_syntax,
            "repair": image.repair.value,
            "resized": image.resized,
            "position_z": slice_.header.position_z,
        }
        differences = _compare_pixels(pixels, image.pixels)
        differences += [
            f"{name} is {value}, not {self.row[name]} as in the index"
            for name, value in fresh.items()
            if not _same(self.row[name], value)
        ]
        spacing = np.asarray(image.pixel_spacing, np.float32)
        if not np.array_equal(np.asarray(pixel_spacing, np.float32), spacing, equal_nan=True):
            differences.append("pixel_spacing differs")
        return [f"{source} changed: {difference}" for difference in differences]


def _same(indexed: object, fresh: object) -> bool:
    return indexed == fresh or (indexed != indexed and fresh != fresh)  # both NaN


def _compare_pixels(stored: Pixels, fresh: Pixels) -> list[str]:
    if stored.shape != fresh.shape or stored.dtype != fresh.dtype:
        return [f"its image is {fresh.shape} {fresh.dtype}, not {stored.shape} {stored.dtype}"]
    if np.array_equal(stored, fresh):
        return []
    differing = (stored != fresh).any(axis=2)
    row, column = (int(axis[0]) for axis in np.nonzero(differing))
    return [
        f"{int(differing.sum())} pixels differ, the first at row {row}, column {column}: "
        f"{fresh[row, column].tolist()} in the file, {stored[row, column].tolist()} here"
    ]
