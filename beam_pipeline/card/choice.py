"""Which slices a card shows: a few, chosen by the run's seed, the same whenever they are chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beam_pipeline.card.totals import Totals

# At most a few dozen files are read again, whatever the data set's size.
MOST_EXAMPLES = 16
SAMPLED = 20
_A_GROUP = 2
_UNLABELED = 4
_REPAIRED = 4  # of each kind of repair

NO_LABEL = "no label"
UNLABELED = "slices"


@dataclass(frozen=True)
class Example:
    """A slice to show.

    Attributes:
        group: why: the label that it has, NO_LABEL, UNLABELED, or the repair.
        row: its number in the index.
    """

    group: str
    row: int


@dataclass(frozen=True)
class Choice:
    """Slices to look at again, by their numbers in the index.

    Attributes:
        examples: to show, in the order of their groups.
        sample: of all slices.
        repaired: some of each repair.
    """

    examples: tuple[Example, ...]
    sample: tuple[int, ...]
    repaired: tuple[int, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """All of them, ascending."""
        shown = (example.row for example in self.examples)
        return tuple(sorted({*shown, *self.sample, *self.repaired}))


def choose(totals: Totals, labels: Sequence[str], seed: int) -> Choice:
    """Choose the slices that a card shows.

    Args:
        totals: of the index.
        labels: names of the classes.
        seed: of the run.
    """
    random = np.random.default_rng(seed)
    repaired = {name: _pick(random, rows, _REPAIRED) for name, rows in totals.repaired.items()}
    examples = _examples(random, totals, labels)
    examples += [Example(f"repair: {name}", rows[0]) for name, rows in repaired.items()]
    everything = np.arange(totals.rows)
    return Choice(
        tuple(examples),
        tuple(_pick(random, everything, SAMPLED)),
        tuple(row for rows in repaired.values() for row in rows),
    )


def _examples(random: np.random.Generator, totals: Totals, labels: Sequence[str]) -> list[Example]:
    if not totals.labeled:
        rows = _pick(random, np.arange(totals.rows), _UNLABELED)
        return [Example(UNLABELED, row) for row in rows]
    groups = dict(zip(labels, totals.positives, strict=True)) | {NO_LABEL: totals.negatives}
    groups = {name: rows for name, rows in groups.items() if len(rows)}
    names = list(groups)[:MOST_EXAMPLES]
    each = min(_A_GROUP, MOST_EXAMPLES // len(names))
    chosen: dict[str, list[int]] = {}
    taken: set[int] = set()
    # The rarest first: what has it may have others too, and is not to be shown for them.
    for name in sorted(names, key=lambda name: (len(groups[name]), name)):
        free = groups[name][~np.isin(groups[name], [*taken])]
        chosen[name] = _pick(random, free if len(free) else groups[name], each)
        taken.update(chosen[name])
    return [Example(name, row) for name in names for row in chosen[name]]


def _pick(random: np.random.Generator, rows: NDArray[np.int64], number: int) -> list[int]:
    chosen = random.choice(rows, min(number, len(rows)), replace=False)
    return [int(row) for row in np.sort(chosen)]


def rows_at(index: pq.ParquetFile, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Some rows of an index, by their numbers; a row group at a time is in memory.

    Args:
        index: to read.
        numbers: of the rows, ascending.
    """
    found: dict[int, dict[str, Any]] = {}
    start = 0
    for group in range(index.metadata.num_row_groups):
        end = start + index.metadata.row_group(group).num_rows
        wanted = [number for number in numbers if start <= number < end]
        if wanted:
            places = pa.array([number - start for number in wanted])
            rows = index.read_row_group(group).take(places).to_pylist()
            found.update(zip(wanted, rows, strict=True))
        start = end
    return found
