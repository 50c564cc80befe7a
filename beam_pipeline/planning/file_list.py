"""The list of the files to use (`--files`): lines, a table or rejects, matched with the input."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from beam_pipeline.planning.text_tables import open_table
from beam_pipeline.shards.unfinished import Unfinished, table_metadata
from headct.errors import UsageError
from headct.layout import FILES_TABLE
from headct.stores import (
    DEFAULT_PATIENCE,
    FileInfo,
    InputFiles,
    decode_source,
    encode_source,
    is_local,
    open_file,
    show_source,
)
from headct.stores.archives import decompressed

_COLUMNS = ("source", "path", "file", "file_name", "filename")  # of a table; the first is used
_AT_A_TIME = 1 << 14  # entries or files in memory as text
_FILES = pa.schema(
    {"source": pa.binary(), "size": pa.int64(), "version": pa.string(), "number": pa.int64()}
)
_IN_ANY_FOLDER = "//"  # before a file name; no path below the input begins with it


@dataclass(frozen=True)
class FileList:
    """A list of files; memory holds 17 bytes per entry.

    Attributes:
        path: of the list.
        paths: uint64 [entries], keys of the entries as paths below the input.
        others: uint64 [entries], keys for entries that are no path below the input: the rest of a
            path that begins with the input's, or a file name in any folder.
        are_names: bool [entries], whether `others` are file names.
    """

    path: str
    paths: NDArray[np.uint64]
    others: NDArray[np.uint64]
    are_names: NDArray[np.bool_]

    @classmethod
    def read(cls, path: str, files: InputFiles, patience: float = DEFAULT_PATIENCE) -> "FileList":
        """Read a list of files.

        Args:
            path: path or URL of a text file with a path per line, of a CSV or Parquet table with
                one of `_COLUMNS`, for instance an index, or of a rejects.jsonl.
            files: the input.
            patience: seconds to retry a failing request.

        Raises:
            UsageError: the list does not exist, is no text or table, or has no entry.
            StoreError: the store fails.
        """
        roots = {files.root.rstrip("/").removeprefix("./")}  # as of the entries
        if is_local(files.root):
            roots |= {os.path.abspath(files.root), os.path.realpath(files.root)}  # noqa: PTH100
        before = tuple(f"{show_source(root)}/" for root in roots)
        keys: list[NDArray[np.uint64]] = []
        names: list[bool] = []
        try:
            for part in _entries(path, patience):
                texts = [text.removeprefix("./") for text in part]
                behind = [next((t[len(b) :] for b in before if t.startswith(b)), t) for t in texts]
                are_names = ["/" not in text for text in texts]
                others = [
                    f"{_IN_ANY_FOLDER}{text}" if is_name else text
                    for text, is_name in zip(behind, are_names, strict=True)
                ]
                keys.append(np.stack([_keys(texts), _keys(others)]))
                names += are_names
        except FileNotFoundError:
            raise UsageError(f"--files {path}: no such file") from None
        except OSError as error:
            raise UsageError(f"--files {path}: {error.strerror or error}") from None
        if not names:
            raise UsageError(f"--files {path}: names no file")
        paths, elsewhere = np.concatenate(keys, axis=1)
        return cls(path, paths, elsewhere, np.array(names))

    def keep(self, unfinished: Unfinished) -> None:
        """Write the list for the step that lists the input; raises as `Unfinished.write`."""
        columns = {name: getattr(self, name) for name in ("paths", "others", "are_names")}
        unfinished.write(FILES_TABLE, pa.table(columns), {"path": self.path})

    @classmethod
    def find(cls, unfinished: Unfinished) -> "FileList | None":
        """Return the list that `keep` wrote, or None."""
        table = unfinished.find(FILES_TABLE)
        if table is None:
            return None
        columns = (column.to_numpy() for column in table.columns)
        return cls(table_metadata(table)["path"], *columns)

    def select(self, found: Iterable[FileInfo]) -> "ListedFiles":
        """Return the files of the input that the list names.

        Raises:
            UsageError: the list names no file, or a file name fits several files.
            StoreError: the input's store fails.
        """
        known = pd.Index(np.unique(np.concatenate([self.paths, self.others])))
        # Positions of each file's path and name in `known`; -1 (absent) is the last of `chosen`.
        places: list[NDArray[np.int32]] = [np.empty((2, 0), np.int32)]
        tables = [_FILES.empty_table()]
        numbered, total = enumerate(found), 0
        while part := list(islice(numbered, _AT_A_TIME)):
            total += len(part)
            texts = [show_source(info.path) for _, info in part]
            names = [f"{_IN_ANY_FOLDER}{text.rpartition('/')[2]}" for text in texts]
            own = np.stack([known.get_indexer(_keys(each)) for each in (texts, names)])
            some = np.flatnonzero((own >= 0).any(axis=0))
            places.append(own[:, some].astype(np.int32))
            rows = [
                (encode_source(info.path), info.size, info.version, number)
                for number, info in (part[place] for place in some.tolist())
            ]
            if rows:
                tables.append(pa.table([*zip(*rows, strict=True)], _FILES))
        place = np.concatenate(places, axis=1)
        counts = np.bincount(place[place >= 0], minlength=len(known))
        paths, others = (known.get_indexer(keys) for keys in (self.paths, self.others))
        by_path = counts[paths] > 0
        if several := int((~by_path & self.are_names & (counts[others] > 1)).sum()):
            raise UsageError(
                f"--files {self.path}: {several} file names are those of several files; want paths "
                "relative to the input"
            )
        chosen = np.zeros(len(known) + 1, np.bool_)
        chosen[paths[by_path]] = chosen[others[~by_path]] = True
        used = chosen[place].any(axis=0)
        if not used.any():
            raise UsageError(
                f"--files {self.path}: none of its {len(paths)} entries is a file of the input; "
                "want paths relative to the input, absolute paths in it, or file names; the column "
                f"of a table is to be {', '.join(_COLUMNS[:-1])} or {_COLUMNS[-1]}"
            )
        return ListedFiles(
            pa.concat_tables(tables).filter(pa.array(used)),
            {
                "entries": len(paths),
                "unmatched": int((~by_path & (counts[others] == 0)).sum()),
                "not_listed": total - int(used.sum()),
            },
        )


@dataclass(frozen=True)
class ListedFiles:
    """The files of the input that a list names.

    Attributes:
        files: source, size, version and number in the whole input, in its order.
        counts: `entries` of the list; `unmatched` entries, which are no file of the input;
            `not_listed` files, which the list does not name.
    """

    files: pa.Table
    counts: dict[str, int]


def _keys(texts: Sequence[str]) -> NDArray[np.uint64]:
    """Return a key per text, as `image_keys` does."""
    array = np.array(texts, dtype=object)
    return pd.util.hash_array(array, categorize=False)


def _entries(path: str, patience: float) -> Iterator[list[str]]:
    """Yield the entries of a list in parts, as `show_source` shows paths."""
    with open_file(path, patience) as file, decompressed(file) as content:
        head = content.peek(1).removeprefix(b"\xef\xbb\xbf")
        first = head.split(b"\n")[0].decode("latin-1").casefold()
        cells = {cell.strip(' "\r') for cell in re.split(r"[,;\t|]", first)}
        if not head.startswith(b"PAR1") and cells.isdisjoint(_COLUMNS):
            if b"\0" in head:
                raise OSError("it is no text in UTF-8, and no table")
            while lines := list(islice(content, _AT_A_TIME)):
                stripped = [line.removeprefix(b"\xef\xbb\xbf").strip(b"\r\n") for line in lines]
                entry = _source if head.startswith(b"{") else _show
                found = (entry(line) for line in stripped if line.strip())
                yield [text for text in found if text]
            return
    with open_table(path, patience) as table:
        columns = [column.casefold() for column in table.columns]
        column = next((name for name in _COLUMNS if name in columns), None)
        if column is None:
            raise OSError(f"it has no column {', '.join(_COLUMNS[:-1])} or {_COLUMNS[-1]}")
        for (texts,) in table.read([columns.index(column)]):
            for start in range(0, len(texts), _AT_A_TIME):
                part = texts[start : start + _AT_A_TIME].to_pylist()
                yield [text for text in part if text]


def _show(line: bytes) -> str:
    return show_source(decode_source(line))


def _source(line: bytes) -> str:
    try:
        return str(json.loads(line)["source"])
    except (ValueError, LookupError, TypeError, RecursionError):
        raise OSError("a line is no row of a rejects.jsonl") from None
