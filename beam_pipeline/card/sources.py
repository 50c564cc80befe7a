"""Where the files of some slices are, which the index may show only by number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from beam_pipeline.directory.unfinished import Unfinished
from beam_pipeline.options import ImageId, Options
from beam_pipeline.planning.identifiers import ordinal
from headct.errors import StoreError, UsageError
from headct.layout import SHARDS_A_PART, plan_table
from headct.stores import InputFiles, find_input
from headct.stores.sources import encode_source, show_source

Row = Mapping[str, Any]
_PATIENCE = 30.0  # seconds for an input that fails at the end: a card is not worth more


class Sources(Protocol):
    """The input of a shard directory, as far as it can be found again."""

    def input(self) -> InputFiles | None:
        """Where the files are; None if that is not known any more."""
        ...

    def find(self, rows: Sequence[Row]) -> list[bytes | None]:
        """The files of some rows of the index, as `encode_source` writes them; None if unknown."""
        ...


@dataclass(frozen=True)
class NoFiles:
    """No input: of a directory that has been moved, or whose input has."""

    def input(self) -> InputFiles | None:
        """See Sources."""
        return None

    def find(self, rows: Sequence[Row]) -> list[bytes | None]:
        """See Sources."""
        return [None] * len(rows)


@dataclass(frozen=True)
class PlannedFiles:
    """The files of a run that ends now: its plan knows them.

    Attributes:
        unfinished: holds the plan.
        shards: the plan's, in order.
        options: of the run.
    """

    unfinished: Unfinished
    shards: Sequence[str]
    options: Options

    def input(self) -> InputFiles | None:
        """See Sources."""
        files = self.options.files
        try:
            return find_input(files.input, min(files.storage_patience, _PATIENCE))
        except (StoreError, UsageError):  # it was there when the run began
            return None

    def find(self, rows: Sequence[Row]) -> list[bytes | None]:
        """See Sources."""
        if self.options.labels.image_id is ImageId.ORDINAL or _are_escaped(rows):
            return [self._planned(row) for row in rows]
        return [encode_source(row["source"]) for row in rows]

    def _planned(self, row: Row) -> bytes | None:
        part, batch = divmod(self.shards.index(row["shard"]), SHARDS_A_PART)
        plan = self.unfinished.read_batch(plan_table(part), batch).select(["image_id", "source"])
        found = [each["source"] for each in plan.to_pylist() if each["image_id"] == row["image_id"]]
        return found[0] if found else None


@dataclass(frozen=True)
class ListedFiles:
    """The files of an input that may have changed since.

    Attributes:
        files: the input as it is now.
        numbered: whether the index shows files by number.
        seen: how many files there were.
    """

    files: InputFiles
    numbered: bool
    seen: int

    def input(self) -> InputFiles | None:
        """See Sources."""
        return self.files

    def find(self, rows: Sequence[Row]) -> list[bytes | None]:
        """See Sources."""
        if not self.numbered and not _are_escaped(rows):
            return [encode_source(row["source"]) for row in rows]
        paths = [info.path for info in self.files.list()]
        if not self.numbered:
            known = {show_source(path): path for path in paths}
        elif len(paths) == self.seen:
            known = {ordinal("file", number): path for number, path in enumerate(paths)}
        else:
            known = {}
        found = [known.get(row["source"]) for row in rows]
        return [None if path is None else encode_source(path) for path in found]


def _are_escaped(rows: Sequence[Row]) -> bool:
    """Whether a name may be one that is not UTF-8."""
    return any("\\" in row["source"] for row in rows)
