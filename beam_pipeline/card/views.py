"""Pictures and histograms of a few slices, from files and shards, in a separate process."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from beam_pipeline.dicom.header import OTHER_FUNCTION
from beam_pipeline.dicom.hounsfield import (
    PixelEncoding,
    Repair,
    hounsfield_table,
    stored_values,
)
from beam_pipeline.dicom.slices import Slice, read_slice
from beam_pipeline.images.convert import HU_OFFSET, voi_function_of
from beam_pipeline.images.png import decode_png, read_png_header
from beam_pipeline.images.windows import PRESETS, VoiFunction, Window, apply_windows
from beam_pipeline.shards.formats import decode_example
from beam_pipeline.workers import Watch, WorkerPool
from headct.errors import StoreError, UsageError
from headct.reasons import Rejected
from headct.stores import InputFiles, decode_source
from headct.tfrecord import read_record

# Bins of histograms: all values of 16 bits, signed or not; outer bins include values beyond.
BIN = 16
LOWEST = -(1 << 15)
BINS = ((1 << 16) - LOWEST) // BIN

_WIDE = Window("HU", 0.0, 2000.0)  # air to dense bone
_BRAIN = Window("brain", *PRESETS["brain"])
_SIDE = 256  # pixels, largest side of a picture
_JPEG_QUALITY = 88
_SHOWN = (0.005, 0.995)  # quantiles of stored values shown as black and white
_TYPICAL_BYTES = 1 << 19  # typical size of a source file: bounds the prefetch
_STORAGE_PATIENCE = 120.0  # timeout of the input, seconds

Histogram = NDArray[np.int64]  # [BINS]


@dataclass(frozen=True)
class Picture:
    """A slice as a JPEG."""

    kind: str  # such as "brain" or "stored values"
    note: str  # range of the values shown
    jpeg: bytes

    @property
    def uri(self) -> str:
        """The picture as a data: URI."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"


@dataclass(frozen=True)
class Views:
    """A slice that was read again."""

    row: Mapping[str, Any]  # row of the index
    pixel_spacing: tuple[float, ...]  # spacing in the stored image, mm
    of_shard: tuple[Picture, ...] = ()  # one picture per channel
    of_source: tuple[Picture, ...] = ()
    histograms: Mapping[str, Histogram] | None = None  # stored, hounsfield, unrepaired (HU)
    encoding: PixelEncoding | None = None
    problem: str = ""  # why the file has no pictures


@dataclass(frozen=True)
class ViewTask:
    """Slices to read again."""

    folder: str  # the shard directory's path or URL
    patience: float  # timeout of the directory's store, seconds
    windows: tuple[Window, ...]  # windows of the shards; empty for Hounsfield units
    rows: tuple[Mapping[str, Any], ...]  # rows of the index
    pictured: tuple[bool, ...]  # whether to make pictures besides histograms, per slice
    files: tuple[bytes | None, ...]  # files in the form of `encode_source`; None if unknown
    source: InputFiles | None  # None to read no files


def view_in_process(task: ViewTask, decode_timeout: float) -> list[Views]:
    """Read slices again in a separate process, since a decoder may crash or hang the process.

    Args:
        task: the slices.
        decode_timeout: timeout of a slice's decoder, seconds.

    Raises:
        UsageError: a shard is missing or damaged.
        StoreError: the shards' store fails.
    """
    pool = WorkerPool(view_slices, 1, decode_timeout, _STORAGE_PATIENCE, task.folder)
    try:
        (views,) = pool.map([task])
    except StoreError:
        if task.source is None:
            raise
        return view_in_process(replace(task, source=None), decode_timeout)
    return views


def view_slices(task: ViewTask, watch: Watch) -> list[Views]:
    """Read slices again; an unreadable file loses only its own pictures.

    Raises:
        UsageError: a shard is missing or damaged.
        StoreError: the shards' store fails.
    """
    records, sources = _read_records(task), _read_sources(task, watch)
    return [
        _view(task, number, record, source, watch)
        for number, (record, source) in enumerate(zip(records, sources, strict=True))
    ]


def _read_records(task: ViewTask) -> Iterator[dict[str, Any]]:
    shards = InputFiles(task.folder, patience=task.patience)
    with shards.reading() as reading:
        for row, data in reading.ahead(
            task.rows,
            lambda row: reading.part(row["shard"], row["offset"], row["bytes"], bytes),
        ):
            try:
                record = read_record(io.BytesIO(data.result()), row["offset"])
                yield decode_example(record or b"")
            except (OSError, ValueError):
                raise UsageError(
                    f"{task.folder}/{row['shard']} is missing or damaged: make verify says more"
                ) from None


def _read_sources(task: ViewTask, watch: Watch) -> Iterator[bytes | str]:
    """Yield the bytes of every file, or why the bytes are missing."""
    problems = {number: str(reason) for number, reason in watch.excluded.items()}
    wanted = []
    for number, file in enumerate(task.files):
        if task.source is None or file is None:
            problems.setdefault(number, "not looked at")
        elif number not in problems:
            wanted.append((decode_source(file), _TYPICAL_BYTES))
    contents = task.source.read_ahead(wanted) if task.source is not None else iter(())
    failed = ""
    for number in range(len(task.rows)):
        if number in problems or failed:
            yield problems.get(number, failed)
            continue
        try:
            data = next(contents)
        except StoreError:
            failed = "the input's store failed"
            yield failed
        else:
            yield str(Rejected.unread(data).reason) if isinstance(data, OSError) else data


def _view(
    task: ViewTask, number: int, record: dict[str, Any], source: bytes | str, watch: Watch
) -> Views:
    row, pictured = task.rows[number], task.pictured[number]
    of_shard = _shard_pictures(record["image"][0], task.windows) if pictured else ()
    views = Views(row, tuple(record["pixel_spacing"]), tuple(of_shard))
    if isinstance(source, str):
        return replace(views, problem=source)
    watch.working(number)
    try:
        slice_ = read_slice(source)
    except Rejected as rejected:
        return replace(views, problem=str(rejected.reason))
    finally:
        watch.waiting()
    if not _matches(slice_, row):
        return replace(views, problem="another slice than the shard was made of")
    repair, encoding = Repair(row["repair"]), slice_.header.encoding
    of_source = source_pictures(slice_, repair) if pictured else ()
    tables = {
        "stored": stored_values(encoding),
        "hounsfield": hounsfield_table(encoding, repair),
        "unrepaired": hounsfield_table(encoding, Repair.NONE),
    }
    histograms = {name: _histogram(table, slice_.pixels) for name, table in tables.items()}
    return replace(views, of_source=tuple(of_source), histograms=histograms, encoding=encoding)


def _matches(slice_: Slice, row: Mapping[str, Any]) -> bool:
    """Return whether a file can be the source of a row of the index."""
    header, position = slice_.header, row["position_z"]
    return (header.rows, header.columns, header.transfer_syntax) == (
        row["rows"],
        row["columns"],
        row["transfer_syntax"],
    ) and (position is None or header.position_z == position)


def _histogram(table: NDArray[Any], pixels: NDArray[Any]) -> Histogram:
    """Return the histogram of pixels; the table has the value of every bit pattern."""
    bins = np.clip((np.floor(table) - LOWEST) // BIN, 0, BINS - 1).astype(np.int64)
    return np.bincount(bins[pixels.ravel()], minlength=BINS)


def source_pictures(slice_: Slice, repair: Repair) -> Iterator[Picture]:
    """Yield pictures of a file: stored values, Hounsfield units, and the file's own window."""
    header, pixels = slice_.header, slice_.pixels
    stored = stored_values(header.encoding).astype(np.float64)
    hounsfield = hounsfield_table(header.encoding, repair)
    quantiles = np.quantile(stored[pixels], _SHOWN, method="inverted_cdf")
    low, high = int(quantiles[0]), int(quantiles[1])
    width = max(high - low, 1)
    gray = apply_windows(stored, [Window("stored", low + width / 2, width)])[:, 0]
    yield _picture("stored values", f"{low:g} to {high:g}", gray[pixels])
    gray = apply_windows(hounsfield, [_WIDE])[:, 0]
    yield _picture("Hounsfield", _describe(_WIDE), gray[pixels])
    if header.window is not None and header.voi_function != OTHER_FUNCTION:
        window = Window("own", *header.window)
        # LINEAR is DICOM's default (PS3.3 C.11.2.1.2).
        function = voi_function_of(header, VoiFunction.LINEAR)
        gray = apply_windows(hounsfield, [window], function)[:, 0]
        named = f" {function}" if header.voi_function else ""
        yield _picture("file's own window", _describe(window) + named, gray[pixels])


def _shard_pictures(png: bytes, windows: Sequence[Window]) -> Iterator[Picture]:
    pixels = decode_png(png, read_png_header(png))
    if not windows:
        hounsfield = pixels[..., 0].astype(np.float64) + HU_OFFSET
        for window in (_WIDE, _BRAIN):
            gray = apply_windows(hounsfield, [window])[..., 0]
            yield _picture(window.name, _describe(window), gray)
    for number, window in enumerate(windows):
        yield _picture(window.name, _describe(window), pixels[..., number].astype(np.uint8))


def _describe(window: Window) -> str:
    if window.center is None or window.width is None:
        return "each file's own"
    return f"L {window.center:g} W {window.width:g}"


def _picture(kind: str, note: str, gray: NDArray[np.uint8]) -> Picture:
    """Return a picture of gray levels [height, width], reduced to _SIDE pixels."""
    scale = _SIDE / max(gray.shape)
    gray = np.ascontiguousarray(gray)
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in reversed(gray.shape))
        gray = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", gray, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return Picture(kind, note, jpeg.tobytes())
