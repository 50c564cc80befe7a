"""Pictures, histograms and charts of a few slices, which a separate process reads again."""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from imagecodecs import PngError, png_decode
from numpy.typing import NDArray

from beam_pipeline.dicom.header import OTHER_FUNCTION
from beam_pipeline.dicom.hounsfield import PixelEncoding, Repair, hounsfield_table, stored_values
from beam_pipeline.dicom.slices import Slice, read_slice
from beam_pipeline.images.convert import HU_OFFSET, voi_function_of
from beam_pipeline.workers import Watch, WorkerPool
from headct.errors import StoreError, UsageError
from headct.reasons import Rejected
from headct.stores import InputFiles, decode_source
from headct.windows import PRESETS, VoiFunction, Window, apply_windows

# Bins of histograms: all values of 16 bits, signed or not; outer bins include values beyond.
BIN = 16
LOWEST = -(1 << 15)
BINS = ((1 << 16) - LOWEST) // BIN

_WIDE = Window("HU", 0.0, 2000.0)  # air to dense bone
_BRAIN = Window("brain", *PRESETS["brain"])
_SIDE = 256  # pixels, largest side of a picture
_JPEG_QUALITY = 88
_SHOWN = (0.005, 0.995)  # quantiles of stored values shown as black and white
_STORAGE_PATIENCE = 120.0  # timeout of the input, seconds
_STORE_FAILED = "the input's store failed"

Histogram = NDArray[np.int64]  # [BINS]


@dataclass(frozen=True)
class Picture:
    """A slice as a JPEG."""

    kind: str  # such as "brain" or "stored values"
    note: str  # range of the values shown
    uri: str  # data: URI


@dataclass(frozen=True)
class View:
    """A slice that was read again."""

    row: Mapping[str, Any]  # row of the index
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
    rows: Sequence[Mapping[str, Any]]  # rows of the index
    pictured: Sequence[bool]  # whether to make pictures besides histograms, per slice
    files: Sequence[bytes | None]  # files in the form of `encode_source`; None if unknown
    source: InputFiles | None  # None to read no files


def view_in_process(task: ViewTask, decode_timeout: float) -> list[View]:
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


def view_slices(task: ViewTask, watch: Watch) -> list[View]:
    """Read slices again; an unreadable file loses only its own pictures.

    Raises:
        UsageError: a shard is missing or damaged.
        StoreError: the shards' store fails.
    """
    views: list[View] = []
    for number, (row, file) in enumerate(zip(task.rows, task.files, strict=True)):
        view = View(row, tuple(_shard_pictures(task, row)) if task.pictured[number] else ())
        if task.source is None or file is None:
            problem = "not looked at"
        elif views and views[-1].problem == _STORE_FAILED:
            problem = _STORE_FAILED
        elif number in watch.excluded:
            problem = str(watch.excluded[number])
        else:
            try:
                data = task.source.read(decode_source(file))
                watch.working(number)
                views.append(_add_source(view, read_slice(data), task.pictured[number]))
                continue
            except StoreError:
                problem = _STORE_FAILED
            except OSError as error:
                problem = str(Rejected.unread(error).reason)
            except Rejected as rejected:
                problem = str(rejected.reason)
            finally:
                watch.waiting()
        views.append(replace(view, problem=problem))
    return views


def _shard_pictures(task: ViewTask, row: Mapping[str, Any]) -> Iterator[Picture]:
    shards = InputFiles(task.folder, patience=task.patience)
    try:
        png = shards.read(row["shard"], row["image_offset"], row["image_bytes"])
        pixels = np.atleast_3d(png_decode(png))
    except (OSError, ValueError, PngError):
        raise UsageError(
            f"{task.folder}/{row['shard']} is missing or damaged: make verify says more"
        ) from None
    if not task.windows:
        hounsfield = pixels[..., 0].astype(np.float64) + HU_OFFSET
        for window in (_WIDE, _BRAIN):
            gray = apply_windows(hounsfield, [window])[..., 0]
            yield _picture(window.name, _describe(window), gray)
    for number, window in enumerate(task.windows):
        yield _picture(window.name, _describe(window), pixels[..., number].astype(np.uint8))


def _add_source(view: View, slice_: Slice, pictured: bool) -> View:
    header, row = slice_.header, view.row
    same = all(
        getattr(header, name) == row[name] for name in ("rows", "columns", "transfer_syntax")
    )
    if not same or row["position_z"] not in (None, header.position_z):
        return replace(view, problem="another slice than the shard was made of")
    encoding, repair = header.encoding, Repair(row["repair"])
    counts = np.bincount(slice_.pixels.ravel(), minlength=1 << encoding.bits_allocated)
    # Of bit patterns, not pixels: a slice has a quarter as many.
    histograms = {
        name: np.bincount(bins, counts, BINS).astype(np.int64)
        for name, bins in _bins(encoding, repair).items()
    }
    of_source = tuple(source_pictures(slice_, repair)) if pictured else ()
    return replace(view, of_source=of_source, histograms=histograms, encoding=encoding)


@lru_cache(maxsize=8)  # series of a scanner share an encoding
def _bins(encoding: PixelEncoding, repair: Repair) -> dict[str, NDArray[np.int64]]:
    """Return the bins of all bit patterns by stored value, and by HU after and before repair."""
    values = {
        "stored": stored_values(encoding),
        "hounsfield": hounsfield_table(encoding, repair),
        "unrepaired": hounsfield_table(encoding, Repair.NONE),
    }
    return {
        name: np.clip((np.floor(table) - LOWEST) // BIN, 0, BINS - 1).astype(np.int64)
        for name, table in values.items()
    }


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
    return Picture(
        kind, note, f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}"
    )


# ---- Charts of pixel values, which `chart.html.jinja` draws as SVG

Chart = dict[str, Any]  # argument of the macro

_HOUNSFIELD = (-1104 - LOWEST) // BIN, (3200 - LOWEST) // BIN  # bins shown of values in HU
_LINES = 10  # lines of single slices
_NAME_LENGTH = 16
_MOST_TICKS = 6
_LEAST = 2e-6  # smallest share of pixels shown
_TAIL = 2e-4  # share of pixels omitted at either end
_MARGIN = 3  # further bins shown at either end


def value_charts(sample: Sequence[View], repaired: Sequence[View], number: int) -> list[Chart]:
    """Return charts of the values of ten slices, of the sample, and of repaired files.

    Args:
        sample: slices of the whole set.
        repaired: some repaired slices.
        number: of repaired files in the whole set.
    """
    sample = [view for view in sample if view.histograms]
    repaired = [view for view in repaired if view.histograms]
    if not sample:
        return []
    lines: dict[str, dict[str, Histogram]] = {"stored": {}, "hounsfield": {}}
    for view in sample[:_LINES]:
        name = view.row["image_id"]
        name = name if len(name) <= _NAME_LENGTH else f"…{name[1 - _NAME_LENGTH :]}"
        for kind in lines:
            lines[kind][name] = (view.histograms or {})[kind]
    what = f"{len(lines['stored'])} slices"
    each = ", one line per slice."
    whole = f"Hounsfield units of {len(sample)} slices drawn from the whole set, added up"
    same = ". Without repaired slices among them the lines coincide."
    some = f"Hounsfield units of {len(repaired)} of the {number:,} repaired files"
    wrapped = ". Before the repair, air is at the top of the 12-bit range."
    charts = [
        draw_chart("stored", f"Stored values of {what}", each, lines["stored"]),
        draw_chart("hounsfield", f"Hounsfield units of {what}", each, lines["hounsfield"]),
        draw_chart("sample", whole, same, _before_and_after(sample)),
    ]
    if repaired:
        charts.append(draw_chart("repaired", some, wrapped, _before_and_after(repaired)))
    return charts


def _before_and_after(views: Sequence[View]) -> dict[str, Histogram]:
    kinds = {"after repair": "hounsfield", "before repair": "unrepaired"}
    return {
        name: np.sum([(view.histograms or {})[kind] for view in views], axis=0)
        for name, kind in kinds.items()
    }


def draw_chart(name: str, title: str, note: str, lines: Mapping[str, Histogram]) -> Chart:
    """Return a chart: share of pixels per bin, on a logarithmic scale, over values.

    Args:
        name: unique name on a page; "stored" for stored values, otherwise they are in HU.
        title: title of the chart.
        note: continues the title in the caption.
        lines: histograms to draw, by their names in the legend.
    """
    shares = {label: pixels / max(pixels.sum(), 1) for label, pixels in lines.items()}
    first, last = (0, BINS) if name == "stored" else _HOUNSFIELD
    inside = np.max([*shares.values()], axis=0)[first:last]
    shown = np.flatnonzero((inside.cumsum() > _TAIL) & (inside[::-1].cumsum()[::-1] > _TAIL))
    if len(shown):
        last = min(last, first + int(shown[-1]) + 1 + _MARGIN)
        first = max(first, first + int(shown[0]) - _MARGIN)
    low, high = LOWEST + BIN * first, LOWEST + BIN * last
    step = 10 ** math.floor(math.log10((high - low) / _MOST_TICKS))
    step *= next(digit for digit in (1, 2, 5, 10) if step * digit >= (high - low) / _MOST_TICKS)
    return {
        "name": name,
        "title": title,
        "caption": title + note,
        "heading": f"share of pixels in bins of {BIN}",
        "unit": "stored value" if name == "stored" else "HU",
        "low": low,
        "high": high,
        "ticks": [*range(math.ceil(low / step) * step, high + 1, step)],
        "decades": -math.log10(_LEAST),
        "lines": [(label, _path(own[first:last])) for label, own in shares.items()],
        "bins": last - first,
        "solid": 5 if "before repair" not in lines else 1,  # further lines are dashed
    }


def _path(shares: NDArray[np.float64]) -> str:
    """Return a line as an SVG path: x in bins, y in decades below 100 %.

    At bins without pixels the line drops to the axis and breaks.
    """
    near = np.convolve(shares >= _LEAST, [1, 1, 1], "same") > 0
    starts = near & ~np.concatenate(([False], near[:-1]))
    heights = -np.log10(np.maximum(shares, _LEAST))
    return "".join(
        f"{'M' if starts[number] else 'L'}{number + 0.5} {heights[number]:.3f}"
        for number in np.flatnonzero(near)
    )
