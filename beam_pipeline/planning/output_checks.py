"""Checks that inputs are outside the output, and the output outside the input."""

import os
import posixpath
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from beam_pipeline.options import Options
from headct.declarations import Mark
from headct.errors import UsageError
from headct.layout import CARD, DATASET, FILES, ShardFile, fold_split
from headct.stores import FileInfo, InputFiles, is_local

# Alternative URL schemes of one store.
_SAME_SCHEMES = {"s3a": "s3", **dict.fromkeys(("azure", "abfs", "abfss", "adl"), "az")}
_WRITTEN = (*FILES, CARD, ShardFile(fold_split(0), 0, 1).name)  # names in an output


def check_places(options: Options) -> None:
    """Check that all inputs of the run are outside the output.

    Raises:
        UsageError: an input is in the output.
    """
    output = options.files.output
    for part, kind in Options.groups().items():
        for name, field in kind.model_fields.items():
            path = getattr(getattr(options, part), name)
            if Mark.LOCATION not in field.metadata or name == "output" or path is None:
                continue
            if _is_within(path, output):
                raise UsageError(
                    f"--{name} {path} lies in the output {output}, which holds nothing but what "
                    "the pipeline writes; move it, or choose another --output"
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
    below = posixpath.relpath(_normal(output), _normal(files.root))
    written = [posixpath.join(below, name) for name in _WRITTEN]
    if files.pattern and not any(map(files.matches, written)):
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
        may_be_own = name in _WRITTEN or name.startswith(f"{DATASET}-")
        if not may_be_own or not _is_within(posixpath.join(files.root, info.path), output):
            yield info


def _is_within(inner: str, outer: str) -> bool:
    """Return whether a path or URL equals another or is below it, whatever their spellings."""
    inside, folder = _normal(inner), _normal(outer)
    if f"{inside}/".startswith(f"{folder}/"):
        return True
    if not (is_local(inner) and is_local(outer)):
        return False
    # One folder may have several names: by letter case or mount.
    above = (Path(inside), *Path(inside).parents)
    with suppress(OSError):  # a name is too long, or a folder may not be searched
        return Path(folder).exists() and any(
            path.exists() and path.samefile(folder) for path in above
        )
    return False


def _normal(path: str) -> str:
    """Return an absolute path without links, or a URL in its usual form."""
    if is_local(path):
        return os.path.realpath(path.removeprefix("file://") or ".").rstrip("/")
    scheme, _, rest = path.partition("://")
    bucket, _, key = rest.partition("/")
    scheme = _SAME_SCHEMES.get(scheme, scheme)
    if scheme == "az":
        bucket = bucket.partition("@")[0]  # drop the account, which is optional
    return f"{scheme}://{bucket}{posixpath.normpath(f'/{key}')}".rstrip("/")
