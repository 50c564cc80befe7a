"""What was measured, made into tables of costs and of aims reached or missed."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from tests.benchmarks.processes import Cost, Memory
from tests.benchmarks.report import Figures, spread
from tests.benchmarks.ways import ALIKE, FLOOR, LEAST, OURS, SCRIPT, TITLES

# What the project sets itself.
MIN_SPEEDUP = 6.0  # (a) over (c)
MAX_OVERHEAD = 1.3  # (c) over (d)
MAX_DEFAULT = 1.1  # (c) and (f) over (e)
MAX_SIZE = 0.87  # shard bytes of (c) over those of (a)
MAX_GROWTH = 2_000  # bytes of memory a slice
MAX_PROCESS = 500e6  # bytes


@dataclass(frozen=True)
class Turn:
    """One way's costs in one turn.

    Attributes:
        whole: of a slice, the start of processes included; seconds.
        slice: of a slice more; seconds.
        start: of a run, apart from its slices; seconds.
        bytes: of images a slice.
    """

    whole: Cost
    slice: Cost
    start: Cost
    bytes: float


def split_costs(part: Cost, part_files: int, whole: Cost, files: int, bytes_: int) -> Turn:
    """A turn's costs, from those of a run on few and of one on many files."""

    def slope(few: float, many: float) -> float:
        return (many - few) / (files - part_files)

    slice_ = Cost(slope(part.wall, whole.wall), slope(part.cpu, whole.cpu))
    start = Cost(part.wall - slice_.wall * part_files, part.cpu - slice_.cpu * part_files)
    return Turn(Cost(whole.wall / files, whole.cpu / files), slice_, start, bytes_ / files)


Turns = dict[str, list[Turn]]
Figure = Callable[[Turn], float]


def tabulate_costs(turns: Turns) -> Figures:
    columns = ("", "CPU ms a slice", "slices a second", "KB a slice", "CPU / c", "wall / c")
    figures = Figures("Whole runs, the start included: median (least to greatest)", columns)
    for way, own in turns.items():
        row = (
            TITLES[way],
            spread([1e3 * turn.whole.cpu for turn in own]),
            spread([1 / turn.whole.wall for turn in own], 0),
            f"{own[0].bytes / 1e3:.1f}",
            f"{_ratio(turns, way, OURS, lambda turn: turn.whole.cpu):.2f}",
            f"{_ratio(turns, way, OURS, lambda turn: turn.whole.wall):.2f}",
        )
        figures.rows.append(row)
    return figures


def tabulate_starts(turns: Turns) -> Figures:
    columns = ("", "CPU ms a slice", "slices a second", "start: CPU s", "wall s", "CPU / c")
    figures = Figures("The start apart", columns)
    for way, own in turns.items():
        row = (
            TITLES[way],
            spread([1e3 * turn.slice.cpu for turn in own]),
            spread([1 / turn.slice.wall for turn in own], 0),
            spread([turn.start.cpu for turn in own], 1),
            spread([turn.start.wall for turn in own], 1),
            f"{_ratio(turns, way, OURS, lambda turn: turn.slice.cpu):.2f}",
        )
        figures.rows.append(row)
    return figures


def judge_costs(turns: Turns) -> Figures:
    figures = Figures("Aims", ("", "aim", "found", "start apart", "reached"))
    kinds: dict[str, tuple[Figure, Figure]] = {
        "CPU": (lambda turn: turn.whole.cpu, lambda turn: turn.slice.cpu),
        "wall": (lambda turn: turn.whole.wall, lambda turn: turn.slice.wall),
    }
    aims = [(SCRIPT, OURS, kind, ">=", MIN_SPEEDUP) for kind in kinds]
    aims += [(OURS, FLOOR, kind, "<=", MAX_OVERHEAD) for kind in kinds]
    aims += [(way, LEAST, "CPU", "<=", MAX_DEFAULT) for way in (OURS, ALIKE)]
    for way, base, kind, sign, aim in aims:
        found, apart = (_ratio(turns, way, base, figure) for figure in kinds[kind])
        reached = found >= aim if sign == ">=" else found <= aim
        row = (f"({way}) / ({base}), {kind}", f"{sign} {aim:g}", f"{found:.2f}", f"{apart:.2f}")
        figures.rows.append((*row, _said(reached)))
    size = _ratio(turns, OURS, SCRIPT, lambda turn: turn.bytes)
    row = ("(c) / (a), shard bytes", f"<= {MAX_SIZE:g}", f"{size:.3f}", "")
    figures.rows.append((*row, _said(size <= MAX_SIZE)))
    return figures


def _ratio(turns: Turns, way: str, base: str, figure: Figure) -> float:
    """The median of one way over that of another."""
    return median(map(figure, turns[way])) / median(map(figure, turns[base]))


def _said(reached: bool) -> str:
    return "yes" if reached else "no"


def tabulate_memory(peaks: dict[int, Memory]) -> Figures:
    columns = ("files", "largest process", "main process", "all processes", "processes", "samples")
    figures = Figures("Peak memory of (c), MB", columns)
    for files, memory in peaks.items():
        sizes = (f"{size / 1e6:.0f}" for size in (memory.largest, memory.main, memory.total))
        row = (f"{files:,}", *sizes, str(memory.processes), str(memory.samples))
        figures.rows.append(row)
    return figures


def judge_memory(peaks: dict[int, Memory]) -> Figures:
    (few, less), (many, more) = peaks.items()
    growth = (more.total - less.total) / (many - few)
    largest = max(less.largest, more.largest)
    rows = [
        (
            "memory for a slice more, bytes",
            f"< {MAX_GROWTH:,}",
            f"{growth:,.0f}",
            _said(growth < MAX_GROWTH),
        ),
        (
            "largest process, MB",
            f"<= {MAX_PROCESS / 1e6:.0f}",
            f"{largest / 1e6:.0f}",
            _said(largest <= MAX_PROCESS),
        ),
    ]
    return Figures("Aims", ("", "aim", "found", "reached"), rows)
