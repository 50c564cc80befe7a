"""A few slices once more: as their files have them, and as the shards do."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from beam_pipeline.dicom.hounsfield import (
    PixelEncoding,
    Repair,
    hounsfield_table,
    stored_values,
)
from beam_pipeline.dicom.slices import OTHER_FUNCTION, Header, Slice, read_slice
from beam_pipeline.directory.example import decode_example
from beam_pipeline.images.convert import HU_OFFSET, voi_function_of
from beam_pipeline.images.png import decode_png, read_png_header
from beam_pipeline.images.windows import (
    PRESETS,
    VoiFunction,
    Window,
    apply_windows,
)
from beam_pipeline.workers import Watch
from headct.errors import StoreError, UsageError
from headct.reasons import Rejected
from headct.stores import InputFiles
from headct.stores.sources import decode_source
from headct.tfrecord import read_record

# Histograms have bins of 16, which hold all values of 16 bits, signed or not.
BIN = 16
LOWEST = -(1 << 15)
BINS = ((1 << 16) - LOWEST) // BIN

WIDE = Window("HU", 0.0, 2000.0)  # air to dense bone
_BRAIN = Window("brain", *PRESETS["brain"])
_SIDE = 256  # pixels: the most that a picture has
_QUALITY = 88  # of JPEG
_SHOWN = (0.005, 0.995)  # of stored values: the quantiles shown as black and white
_TYPICAL_BYTES = 1 << 19  # of a source: bounds how many are read ahead

Histogram = NDArray[np.int64]


@dataclass(frozen=True)
class Picture:
    """A slice in one way of showing it.

    Attributes:
        way: of showing.
        note: of this slice.
        jpeg: a JPEG file's bytes.
    """

    way: str
    note: str
    jpeg: bytes


@dataclass(frozen=True)
class Histograms:
    """How a slice's pixels are spread: BINS bins of BIN from LOWEST, the outer ones with the rest.

    Attributes:
        stored: stored values.
        hounsfield: HU, after the repair if there was one.
        unrepaired: HU as they would be without it.
    """

    stored: Histogram
    hounsfield: Histogram
    unrepaired: Histogram


@dataclass(frozen=True)
class Views:
    """What is found of a slice.

    Attributes:
        pixel_spacing: of the stored image, mm.
        of_shard: pictures of its channels in the shard.
        of_source: pictures of its file; none if that cannot be read.
        histograms: of its file's pixels, or None.
        encoding: of its file's pixels, or None.
        problem: why there is nothing of the file; empty if there is.
    """

    pixel_spacing: tuple[float, ...]
    of_shard: tuple[Picture, ...] = ()
    of_source: tuple[Picture, ...] = ()
    histograms: Histograms | None = None
    encoding: PixelEncoding | None = None
    problem: str = ""


@dataclass(frozen=True)
class ViewTask:
    """Slices to look at.

    Attributes:
        folder: the shard directory's path or URL.
        patience: of its store, seconds.
        windows: of the shards; none if they hold Hounsfield units.
        rows: of the index.
        pictured: whether each is to be shown, and not only measured.
        files: each row's file, as `encode_source` writes it; None if it is not known.
        source: the input; None not to look at files.
    """

    folder: str
    patience: float
    windows: tuple[Window, ...]
    rows: tuple[Mapping[str, Any], ...]
    pictured: tuple[bool, ...]
    files: tuple[bytes | None, ...]
    source: InputFiles | None = field(default=None)


def view_slices(task: ViewTask, watch: Watch) -> list[Views]:
    """Look at slices once more, in a process that a decoder may crash.

    Args:
        task: which.
        watch: told of each file that is decoded.

    Raises:
        UsageError: a shard is missing or damaged.
        StoreError: the shards' store fails; that of the input is only a problem of the views.
    """
    sources = _read_sources(task, watch)
    return [
        _view(task, place, record, source, watch)
        for place, (record, source) in enumerate(zip(_read_records(task), sources, strict=True))
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
    """Each file's bytes, or why there are none."""
    problems = {place: str(reason) for place, reason in watch.excluded.items()}
    wanted = []
    for place, file in enumerate(task.files):
        if task.source is None or file is None:
            problems.setdefault(place, "not looked at")
        elif place not in problems:
            wanted.append((decode_source(file), _TYPICAL_BYTES))
    contents = task.source.read_ahead(wanted) if task.source is not None else iter(())
    failed = ""
    for place in range(len(task.rows)):
        if place in problems or failed:
            yield problems.get(place, failed)
            continue
        try:
            data = next(contents)
        except StoreError:
            failed = "the input's store failed"
            yield failed
        else:
            yield str(Rejected.unread(data).reason) if isinstance(data, OSError) else data


def _view(
    task: ViewTask, place: int, record: dict[str, Any], source: bytes | str, watch: Watch
) -> Views:
    row, pictured = task.rows[place], task.pictured[place]
    spacing = tuple(record["pixel_spacing"])
    of_shard = tuple(_shard_pictures(record["image"][0], task.windows)) if pictured else ()
    if isinstance(source, str):
        return Views(spacing, of_shard, problem=source)
    watch.working(place)
    try:
        slice_ = read_slice(source)
    except Rejected as rejected:
        return Views(spacing, of_shard, problem=str(rejected.reason))
    finally:
        watch.waiting()
    if not _is_same(slice_, row):
        return Views(spacing, of_shard, problem="another slice than the shard was made of")
    values = Values(slice_, Repair(row["repair"]))
    of_source = tuple(values.pictures(slice_.header)) if pictured else ()
    return Views(spacing, of_shard, of_source, values.histograms(), slice_.header.encoding)


def _is_same(slice_: Slice, row: Mapping[str, Any]) -> bool:
    """Whether a file can be the one that a row of the index is of."""
    header, position = slice_.header, row["position_z"]
    return (header.rows, header.columns, header.transfer_syntax) == (
        row["rows"],
        row["columns"],
        row["transfer_syntax"],
    ) and (position is None or header.position_z == position)


class Values:
    """What a slice's pixels stand for; all is computed once for each bit pattern that there is."""

    def __init__(self, slice_: Slice, repair: Repair) -> None:
        encoding = slice_.header.encoding
        self._pixels = slice_.pixels
        self._size = 1 << encoding.bits_allocated
        counts = np.bincount(slice_.pixels.ravel(), minlength=self._size)
        self._patterns = np.flatnonzero(counts)
        self._counts = counts[self._patterns]
        self._stored = _stored(encoding)[self._patterns]
        self._hounsfield = _hounsfield(encoding, repair)[self._patterns]
        self._unrepaired = _hounsfield(encoding, Repair.NONE)[self._patterns]

    def histograms(self) -> Histograms:
        """How the values are spread."""
        return Histograms(
            stored=self._histogram(self._stored),
            hounsfield=self._histogram(self._hounsfield),
            unrepaired=self._histogram(self._unrepaired),
        )

    def _histogram(self, values: NDArray[Any]) -> Histogram:
        bins = np.clip((np.floor(values) - LOWEST) // BIN, 0, BINS - 1).astype(np.int64)
        return np.bincount(bins, self._counts, BINS).astype(np.int64)

    def pictures(self, header: Header) -> Iterator[Picture]:
        """The slice in all ways of showing its file; `header` tells the file's own window."""
        low, high = self._shown_range()
        width = max(high - low, 1)
        stored = Window("stored", low + width / 2, width)
        yield _picture("stored values", f"{low:g} to {high:g}", self._levels(self._stored, stored))
        yield _picture("Hounsfield", _describe(WIDE), self._levels(self._hounsfield, WIDE))
        if header.window is not None and header.voi_function != OTHER_FUNCTION:
            window = Window("own", *header.window)
            # LINEAR is DICOM's default (PS3.3 C.11.2.1.2).
            function = voi_function_of(header, VoiFunction.LINEAR)
            levels = self._levels(self._hounsfield, window, function)
            named = f" {function}" if header.voi_function else ""
            yield _picture("file's own window", _describe(window) + named, levels)

    def _shown_range(self) -> tuple[int, int]:
        order = np.argsort(self._stored, kind="stable")
        total = np.cumsum(self._counts[order])
        low, high = np.searchsorted(total, [share * total[-1] for share in _SHOWN])
        return int(self._stored[order][low]), int(self._stored[order][high])

    def _levels(
        self,
        values: NDArray[Any],
        window: Window,
        function: VoiFunction = VoiFunction.LINEAR_EXACT,
    ) -> NDArray[np.uint8]:
        table = np.zeros(self._size, np.uint8)
        table[self._patterns] = apply_windows(values, [window], function)[:, 0]
        levels: NDArray[np.uint8] = table[self._pixels]
        return levels


_TABLES = 8  # a data set's slices have few encodings


@lru_cache(_TABLES)
def _stored(encoding: PixelEncoding) -> NDArray[np.int64]:
    return stored_values(encoding)


@lru_cache(_TABLES)
def _hounsfield(encoding: PixelEncoding, repair: Repair) -> NDArray[np.float64]:
    return hounsfield_table(encoding, repair)


def _shard_pictures(png: bytes, windows: tuple[Window, ...]) -> Iterator[Picture]:
    pixels = decode_png(png, read_png_header(png))
    if not windows:
        hounsfield = pixels[..., 0].astype(np.float64) + HU_OFFSET
        for window in (WIDE, _BRAIN):
            name = "HU" if window is WIDE else window.name
            yield _picture(name, _describe(window), apply_windows(hounsfield, [window])[..., 0])
        return
    for place, window in enumerate(windows):
        yield _picture(window.name, _describe(window), pixels[..., place].astype(np.uint8))


def _describe(window: Window) -> str:
    if window.center is None or window.width is None:
        return "each file's own"
    return f"L {window.center:g} W {window.width:g}"


def _picture(way: str, note: str, levels: NDArray[np.uint8]) -> Picture:
    """Gray levels [height, width], made smaller if they are many."""
    scale = _SIDE / max(levels.shape)
    levels = np.ascontiguousarray(levels)
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in reversed(levels.shape))
        levels = cv2.resize(levels, size, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", levels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return Picture(way, note, jpeg.tobytes())
