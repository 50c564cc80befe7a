"""State of the output folder: empty, foreign, unfinished or complete."""

import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from beam_pipeline.errors import Refusal
from beam_pipeline.options import Options, fill_in
from beam_pipeline.shards.run_record import Begun
from beam_pipeline.shards.unfinished import Unfinished
from headct.errors import OutputError, UsageError
from headct.layout import (
    CARD,
    FILES,
    JOB,
    MANIFEST,
    REFUSAL,
    RESERVE,
    UNFINISHED,
    ShardFile,
)
from headct.printable import show_line
from headct.stores import Folder
from headct.stores.local import partial_target

_logger = logging.getLogger(__name__)

_RESERVE_BYTES = 1 << 16  # random, since file systems may compress zeros
_OWN_FILES = {*FILES, CARD}


def find_manifest(folder: Folder) -> dict[str, Any] | None:
    """Return the manifest of a complete shard directory, or None.

    Raises:
        UsageError: the manifest is not a shard directory's.
    """
    if not folder.exists(MANIFEST):
        return None
    try:
        manifest = json.loads(folder.read(MANIFEST))
    except ValueError:
        manifest = None
    return _check_ours(folder, manifest)


def _check_ours(folder: Folder, manifest: Any) -> dict[str, Any]:
    try:
        ours = isinstance(manifest["options"], dict) and bool(manifest["schema_version"])
    except (KeyError, TypeError):
        ours = False
    if not ours:
        raise UsageError(f"{folder.url}/{MANIFEST} is not a shard directory's manifest")
    return dict(manifest)


def prepare_output(
    folder: Folder, options: Options, *, alone: bool = True
) -> dict[str, Any] | None:
    """Prepare the folder for writing, unless it is complete.

    Args:
        folder: the output folder.
        options: options of the run.
        alone: whether no other run is known to write to the folder.

    Returns:
        The manifest, if an earlier run with the same options completed the folder.

    Raises:
        UsageError: the folder has foreign files, or output of other options.
        OutputError: the folder cannot be read or written.
        StoreError: the store fails.
    """
    try:
        return _prepare(folder, options, alone)
    except OSError as error:
        raise OutputError(f"output {folder.url} cannot be read: {error.strerror}") from None


def _prepare(folder: Folder, options: Options, alone: bool) -> dict[str, Any] | None:
    names = _own_names(folder)
    if options.run.overwrite:
        if not alone:
            raise UsageError(
                f"another run writes to output {folder.url} now; wait for its end to --overwrite it"
            )
        if MANIFEST in names:
            with suppress(ValueError):  # a damaged manifest may be ours
                _check_ours(folder, json.loads(folder.read(MANIFEST)))
        _remove_all(folder, names)
        names = set()
    manifest = find_manifest(folder) if MANIFEST in names else None
    if manifest is not None:
        _check_same(folder, manifest["options"], options)
        if UNFINISHED in names:  # the run stopped after writing the manifest
            finish_output(folder)
        folder.remove_partial()  # left by a run that stopped after another completed
        return manifest
    begun, refused = Begun.read(folder), folder.exists(REFUSAL)
    if begun is not None and not _is_same(begun, options):
        if not alone:
            raise _in_use(folder)
        _take_up(folder, names, begun, options, refused)
    folder.remove_partial()
    if refused:
        folder.remove(CARD)  # the page about the refusal
        folder.remove(REFUSAL)
    _begin(folder, options)
    folder.write(RESERVE, os.urandom(_RESERVE_BYTES))
    return None


def check_begun(folder: Folder, options: Options) -> None:
    """Check that no other run has changed the record of this run's preparation.

    Raises:
        UsageError: a concurrent run has begun the directory with other options or code.
        OutputError: the folder cannot be read.
        StoreError: the store fails.
    """
    begun = Begun.read(folder)
    if begun is not None and not _is_same(begun, options):
        raise _in_use(folder)


def _begin(folder: Folder, options: Options) -> None:
    """Record program and options; raise a UsageError if a run with others just did."""
    now = Begun.now(options)
    if not now.add(folder):
        check_begun(folder, options)
    now.write(folder)


def _is_same(begun: Begun, options: Options) -> bool:
    """Return whether this program and these options match the record."""
    return (
        begun.options is not None
        and begun.is_by(Begun.now(options))
        and not options.differing(begun.options)
    )


def _in_use(folder: Folder) -> UsageError:
    return UsageError(
        f"another run writes to output {folder.url} now, with other options or another version; "
        "choose another folder"
    )


def _own_names(folder: Folder) -> set[str]:
    """Return the names in the folder; raise a UsageError for a foreign file."""
    entries = folder.entries()
    foreign = sorted(entry for entry in entries if not _is_own(entry))
    if foreign:
        raise UsageError(
            f"output {folder.url} holds something else ({foreign[0].removesuffix('@')}); choose "
            "another folder"
        )
    return {entry.rstrip("/") for entry in entries}


def _is_own(entry: str) -> bool:
    """Return whether the pipeline writes this name: `UNFINISHED` or a file of the contract."""
    name = partial_target(entry) or entry
    return entry == f"{UNFINISHED}/" or name in _OWN_FILES or _is_shard(name)


def _is_shard(name: str) -> bool:
    try:
        return bool(ShardFile.parse(name))
    except ValueError:
        return False


def _remove_all(folder: Folder, names: Iterable[str]) -> None:
    for name in sorted(names, key=lambda name: name != MANIFEST):  # the manifest first
        folder.remove(name)


def _take_up(
    folder: Folder, names: set[str], begun: Begun, options: Options, refused: bool
) -> None:
    """Keep the tables of an earlier run that this run would write again; remove all else.

    After a refusal, other options are accepted until a shard exists.
    """
    has_shards = any(map(_is_shard, names)) or bool(Unfinished(folder).names("written"))
    if begun.options is not None and (has_shards or not refused):
        _check_same(folder, begun.options, options)
    differing = [] if begun.options is None else options.differing(begun.options)
    if begun.options is not None and begun.is_by(Begun.now(options)):
        if Options.are_after_headers(differing):
            _remove_all_unfinished_but(folder, ("listing", "inventory"))
            return
    elif not refused and folder.exists(JOB):
        raise UsageError(
            f"output {folder.url} was begun by {begun.described()}, and a job of it may still run; "
            "let that version end it, or choose another folder, or --overwrite it"
        )
    else:
        _logger.warning(
            "%s was begun by %s: all of it is done again", folder.url, begun.described()
        )
    _remove_all(folder, names)


def _remove_all_unfinished_but(folder: Folder, kept: Iterable[str]) -> None:
    for name in Folder(f"{folder.url}/{UNFINISHED}", folder.patience).names().difference(kept):
        folder.remove(f"{UNFINISHED}/{name}")


def _check_same(folder: Folder, earlier: dict[str, Any], options: Options) -> None:
    """Raise a UsageError unless an earlier run's options give the same bytes."""
    differing = options.differing(earlier)
    if not differing:
        return
    name, before, now = differing[0], fill_in(earlier), options.recorded()
    what = f"--{name} {_show(before.get(name))}, now it is {_show(now.get(name))}"
    if name == "identifier_key_check":
        what = "another identifier key"
    raise UsageError(
        f"output {folder.url} was begun with {what}; choose another folder, or --overwrite it"
    )


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def write_refusal(folder: Folder, exit_code: int, message: str) -> None:
    """Record why the run ended without a manifest."""
    folder.remove_partial()
    folder.remove(RESERVE)
    folder.write(
        REFUSAL, json.dumps({"exit_code": exit_code, "message": show_line(message)}).encode()
    )


def read_refusal(folder: Folder) -> Refusal | None:
    """Return why a run ended without a manifest, or None."""
    if not folder.exists(REFUSAL):
        return None
    with suppress(ValueError, LookupError, TypeError, FileNotFoundError):  # damaged or removed
        refusal = json.loads(folder.read(REFUSAL))
        return Refusal(str(refusal["message"]), int(refusal["exit_code"]))
    return None


def finish_output(folder: Folder) -> None:
    """Remove the tables of the unfinished directory."""
    folder.remove(UNFINISHED)
