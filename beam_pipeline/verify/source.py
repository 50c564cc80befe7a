"""Shard images against the DICOM files that they were made of."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beam_pipeline.dicom.slices import Header, read_slice
from beam_pipeline.errors import Rejected, UsageError
from beam_pipeline.images.convert import Image, convert_slice
from beam_pipeline.options import ImageId, ImageOptions
from beam_pipeline.planning.identifiers import ordinal
from beam_pipeline.storage import InputFiles
from beam_pipeline.storage.sources import decode_source, encode_source, show_source
from beam_pipeline.verify.findings import printable

# A column added to the index: the file to read, where the index itself shows a number for it.
FILE = "file"


@dataclass(frozen=True)
class Conversion:
    """How a shard directory's images were made of its input.

    Attributes:
        files: the input.
        image: what the images are.
    """

    files: InputFiles
    image: ImageOptions

    @classmethod
    def recorded(cls, source: str, options: dict[str, Any]) -> "Conversion":
        """The conversion of a manifest's options.

        Args:
            source: where the input is now: a folder, a file or a pattern.
            options: the manifest's, as JSON values.

        Raises:
            UsageError: the input does not exist.
            ValueError: the options cannot be read.
        """
        files = InputFiles.parse(source)
        try:
            image = ImageOptions(**{name: options[name] for name in ImageOptions.model_fields})
            return cls(files, image)
        except (KeyError, TypeError, UsageError) as error:
            raise ValueError(f"options cannot be read: {type(error).__name__}") from None

    def read(self, row: dict[str, Any]) -> bytes | OSError:
        """The bytes of a row's file, or why it cannot be read.

        Raises:
            StoreError: the input's store fails.
        """
        try:
            return self.files.read(decode_source(row[FILE]))
        except OSError as error:
            return error

    def convert(self, data: bytes) -> tuple[Header, Image]:
        """Convert a file again.

        Raises:
            Rejected: it is not a usable slice.
        """
        slice_ = read_slice(data)
        return slice_.header, convert_slice(slice_, self.image)

    def add_files(self, index: pa.Table, options: dict[str, Any], files_seen: int) -> pa.Table:
        """The index with the column FILE.

        Args:
            index: with the column `source`.
            options: the manifest's.
            files_seen: how many files the input had.

        Raises:
            ValueError: sources are shown by number, and the input has more or fewer files now.
        """
        shown = index["source"].to_pylist()
        if options.get("image_id") == ImageId.ORDINAL:
            names = [info.path for info in self.files.list()]
            if len(names) != files_seen:
                raise ValueError(f"the input has {len(names)} files, not {files_seen} as it had")
            known = {ordinal("file", number): name for number, name in enumerate(names)}
        elif any("\\" in source for source in shown):  # perhaps a name that is not UTF-8
            known = {show_source(info.path): info.path for info in self.files.list()}
        else:
            known = {source: source for source in shown}
        files = [encode_source(known.get(source, "")) for source in shown]
        return index.append_column(FILE, pa.array(files, pa.binary()))


def compare_with_source(
    conversion: Conversion,
    row: dict[str, Any],
    data: bytes | OSError,
    pixels: NDArray[np.uint8] | NDArray[np.uint16],
    pixel_spacing: tuple[float, ...],
) -> list[str]:
    """What differs between an example and its file, as messages.

    Args:
        conversion: how to convert the file.
        row: the example's, of the index.
        data: of the file, or why it cannot be read.
        pixels: the example's, [height, width, channels].
        pixel_spacing: the example's, mm.
    """
    source = printable(row["source"])
    if isinstance(data, FileNotFoundError):
        return [f"{source} is no longer there"]
    if isinstance(data, OSError):
        return [f"{source} cannot be read: {data.strerror or type(data).__name__}"]
    try:
        header, image = conversion.convert(data)
    except Rejected as rejected:
        return [f"{source} is no longer usable: {rejected.reason} {rejected.detail}".rstrip()]
    differences = [_compare_pixels(pixels, image.pixels), *_compare_fields(row, header, image)]
    spacing = np.asarray(image.pixel_spacing, np.float32)
    if not np.array_equal(np.asarray(pixel_spacing, np.float32), spacing, equal_nan=True):
        differences.append("pixel_spacing differs")
    return [f"{source} changed: {difference}" for difference in differences if difference]


def _compare_pixels(
    found: NDArray[np.uint8] | NDArray[np.uint16], fresh: NDArray[np.uint8] | NDArray[np.uint16]
) -> str:
    if found.shape != fresh.shape or found.dtype != fresh.dtype:
        return f"its image is {fresh.shape} {fresh.dtype}, not {found.shape} {found.dtype}"
    if np.array_equal(found, fresh):
        return ""
    differing = found != fresh
    row, column = (int(place[0]) for place in np.nonzero(differing.any(axis=2)))
    return (
        f"{int(differing.any(axis=2).sum())} pixels differ, the first at row {row}, column "
        f"{column}: {fresh[row, column].tolist()} in the file, {found[row, column].tolist()} here"
    )


def _compare_fields(row: dict[str, Any], header: Header, image: Image) -> list[str]:
    fresh = {
        "rows": header.rows,
        "columns": header.columns,
        "transfer_syntax": header.transfer_syntax,
        "repair": image.repair.value,
        "resized": image.resized,
        "position_z": header.position_z,
    }
    return [
        f"{name} is {value}, not {row[name]} as in the index"
        for name, value in fresh.items()
        if row[name] != value and not (row[name] != row[name] and value != value)  # NaN is NaN
    ]
