"""Checks that inputs are outside the output, and the output outside the input."""

import os
import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path

from beam_pipeline.options import Options
from headct.declarations import Mark
from headct.errors import UsageError
from headct.layout import (
    CARD,
    DATASET,
    FILES,
    HOLDOUT_SPLIT,
    UNLABELED_SPLIT,
    ShardFile,
    fold_split,
)
from headct.stores import FileInfo, InputFiles, is_local

# Alternative URL schemes of one store.
_SAME_SCHEMES = {"s3a": "s3", **dict.fromkeys(("azure", "abfs", "abfss", "adl"), "az")}
_SPLITS = (*map(fold_split, range(100)), HOLDOUT_SPLIT, UNLABELED_SPLIT)
# Files in a listing of an unfinished output.
_DESCRIPTION = frozenset((*FILES, CARD))
_WRITTEN = (*_DESCRIPTION, *(ShardFile(split, 0, 1).name for split in _SPLITS))


def check_places(options: Options) -> None:
    """Check that all inputs of the run are outside the output.

    Raises:
        UsageError: an input is in the output.
    """
    output = options.files.output
    for name, path in _read_paths(options):
        if _is_within(path, output):
            raise UsageError(
                f"--{name} {path} lies in the output {output}, which holds nothing but what the "
                f"pipeline writes; move it, or choose another --output"
            )


def check_output_is_not_read(files: InputFiles, output: str) -> None:
    """Check that the output is outside the searched input.

    Otherwise a resumed run would read its own shards as input.

    Args:
        files: the input.
        output: path or URL of the output.

    Raises:
        UsageError: the output is in the input.
    """
    if files.name or not _is_within(output, files.root):
        return
    if files.pattern and not any(map(files.matches, _files_to_be(output, files.root))):
        return
    where = f"{files.root}/{files.pattern}" if files.pattern else files.root
    raise UsageError(
        f"output {output} lies in the input {where}, where it would be read as input; choose a "
        "folder outside of it, or a pattern that leaves the output out"
    )


def without_output(found: Iterable[FileInfo], files: InputFiles, output: str) -> Iterator[FileInfo]:
    """Yield the input files, without files of the output that a link in the input leads to.

    Args:
        found: listed input files.
        files: the input.
        output: path or URL of the output.
    """
    for info in found:
        name = posixpath.basename(info.path)
        may_be_own = name in _DESCRIPTION or name.startswith(f"{DATASET}-")
        if not may_be_own or not _is_within(posixpath.join(files.root, info.path), output):
            yield info


def _read_paths(options: Options) -> Iterator[tuple[str, str]]:
    """Yield name and path of the options that name an input."""
    for part, kind in Options.groups().items():
        for name, field in kind.model_fields.items():
            path = getattr(getattr(options, part), name)
            if Mark.LOCATION in field.metadata and name != "output" and path is not None:
                yield name, path


def _files_to_be(output: str, root: str) -> Iterator[str]:
    """Yield paths of the output's files, relative to a folder above the output."""
    for below in _relative(output, root):
        yield from (posixpath.join(below, name) for name in _WRITTEN)


def _relative(inner: str, outer: str) -> set[str]:
    """Return the paths of a folder relative to an outer folder."""
    if not is_local(outer):
        return {posixpath.relpath(_key(inner), _key(outer))}
    return {
        path.relative_to(folder).as_posix()
        for path in _spellings(inner)
        for folder in _spellings(outer)
        if path.is_relative_to(folder)
    }


def _is_within(inner: str, outer: str) -> bool:
    """Return whether a path or URL equals another or is below it."""
    if is_local(inner) != is_local(outer):
        return False
    if not is_local(outer):
        return f"{_key(inner)}/".startswith(f"{_key(outer)}/")
    inside = [parent for path in _spellings(inner) for parent in (path, *path.parents)]
    if any(folder in inside for folder in _spellings(outer)):
        return True
    # One folder may have several names: by letter case or mount.
    folder = _identity(Path(_plain(outer)))
    return folder is not None and folder in map(_identity, inside)


def _spellings(path: str) -> tuple[Path, ...]:
    """Return a local path as given, and with symbolic links resolved."""
    absolute = os.path.abspath(_plain(path))  # noqa: PTH100 - Path's keeps ..
    return Path(absolute), Path(os.path.realpath(_plain(path)))


def _plain(path: str) -> str:
    return path.removeprefix("file://") or "."


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _key(url: str) -> str:
    """Return the normalized form of a URL."""
    scheme, _, rest = url.partition("://")
    bucket, _, path = rest.partition("/")
    scheme = _SAME_SCHEMES.get(scheme, scheme)
    if scheme == "az":
        bucket = bucket.partition("@")[0]  # drop the account, which is optional
    return f"{scheme}://{bucket}{posixpath.normpath(f'/{path}')}".rstrip("/")
