"""The output folder's state: empty, another's, unfinished, or complete."""

import json
import os
from contextlib import suppress
from typing import Any

from beam_pipeline.errors import Refusal, UsageError
from beam_pipeline.layout import (
    CARD,
    FILES,
    MANIFEST,
    OPTIONS,
    REFUSAL,
    RESERVE,
    UNFINISHED,
    ShardFile,
)
from beam_pipeline.options import Options
from beam_pipeline.storage import Folder
from beam_pipeline.storage.local import partial_target

_RESERVE_BYTES = 1 << 16  # random: zeros may take no room
_OWN_FILES = {*FILES, CARD}


def find_manifest(folder: Folder) -> dict[str, Any] | None:
    """The manifest of a complete shard directory, or None.

    Raises:
        UsageError: there is one, but it is not ours.
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
        manifest["schema_version"], manifest["options"]
    except (KeyError, TypeError):
        raise UsageError(f"{folder.url}/{MANIFEST} is not a shard directory's manifest") from None
    return dict(manifest)


def prepare_output(folder: Folder, options: Options) -> dict[str, Any] | None:
    """Make the folder ready to be written, or find that there is nothing to do.

    Returns:
        The manifest, if an earlier run with the same options completed the folder.

    Raises:
        UsageError: the folder holds something else, or the work of other options.
    """
    entries = folder.entries()
    foreign = sorted(entry for entry in entries if not _is_own(entry))
    if foreign:
        raise UsageError(
            f"output {folder.url} holds something else ({foreign[0].removesuffix('@')}); choose "
            "another folder"
        )
    names = {entry.rstrip("/") for entry in entries}
    if options.run.overwrite:
        if MANIFEST in names:
            with suppress(ValueError):  # a damaged manifest may be ours
                _check_ours(folder, json.loads(folder.read(MANIFEST)))
        for name in sorted(names, key=lambda name: name != MANIFEST):  # the manifest first
            folder.remove(name)
        names = set()
    manifest = find_manifest(folder) if MANIFEST in names else None
    if manifest is not None:
        _check_same(folder, manifest["options"], options)
        if UNFINISHED in names:  # the run that wrote the manifest was stopped, or its store failed
            finish_output(folder)
        folder.remove_partial()  # of a run that was stopped after another had completed the folder
        return manifest
    if folder.exists(OPTIONS):
        _check_same(folder, json.loads(folder.read(OPTIONS)), options)
    folder.remove_partial()
    folder.remove(REFUSAL)
    folder.write(OPTIONS, json.dumps(options.recorded()).encode())
    folder.write(RESERVE, os.urandom(_RESERVE_BYTES))
    return None


def _is_own(entry: str) -> bool:
    """Whether the pipeline makes what has this name: `UNFINISHED`, or a file of the contract."""
    if entry == f"{UNFINISHED}/":
        return True
    name = partial_target(entry) or entry
    with suppress(ValueError):
        return name in _OWN_FILES or bool(ShardFile.parse(name))
    return False


def _check_same(folder: Folder, earlier: dict[str, Any], options: Options) -> None:
    """Raise unless an earlier run's options give the same bytes as these."""
    now = options.recorded()
    differing = sorted(
        name for name in earlier.keys() | now.keys() if earlier.get(name) != now.get(name)
    )
    if differing:
        name = differing[0]
        if name == "identifier_key_check":
            raise UsageError(
                f"output {folder.url} was begun with another identifier key; choose another "
                "folder, or --overwrite it"
            )
        raise UsageError(
            f"output {folder.url} was begun with --{name} {_show(earlier.get(name))}, now it is "
            f"{_show(now.get(name))}; choose another folder, or --overwrite it"
        )


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def write_refusal(folder: Folder, exit_code: int, message: str) -> None:
    """Leave word of why the run ended without a manifest, wherever it ran."""
    folder.remove_partial()
    folder.remove(RESERVE)
    folder.write(REFUSAL, json.dumps({"exit_code": exit_code, "message": message}).encode())


def read_refusal(folder: Folder) -> Refusal | None:
    """Why a run ended without a manifest, wherever that was."""
    if not folder.exists(REFUSAL):
        return None
    refusal = json.loads(folder.read(REFUSAL))
    return Refusal(str(refusal["message"]), int(refusal["exit_code"]))


def finish_output(folder: Folder) -> None:
    """Remove what only an unfinished directory needs."""
    folder.remove(UNFINISHED)
