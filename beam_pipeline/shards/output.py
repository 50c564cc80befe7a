"""Life of an output folder: lock, preparation, record of its runs, refusal, end.

A folder is empty, foreign, unfinished or complete. An unfinished folder records the program and the
options that began it, the starts of its run, and why the run was refused.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter

import beam_pipeline
import headct
from beam_pipeline.errors import Refusal
from beam_pipeline.options import Options, fill_in
from beam_pipeline.shards.unfinished import Unfinished
from headct.errors import OutputError, UsageError
from headct.layout import (
    CARD,
    DESCRIPTIONS,
    FILES,
    JOB,
    MANIFEST,
    OPTIONS,
    REFUSAL,
    RESERVE,
    STARTS,
    UNFINISHED,
    ShardFile,
)
from headct.locks import Lock
from headct.printable import show_line
from headct.stores import Folder, find_store, is_local
from headct.stores.local import partial_target

_logger = logging.getLogger(__name__)

_RESERVE_BYTES = 1 << 16  # random, since file systems may compress zeros
_OWN_FILES = {*FILES, CARD}
# Code that determines the content of tables and shards.
_DECIDING = (
    *("dicom", "images", "planning", "shards/formats.py", "shards/unfinished.py"),
    *("shards/writer.py", "keys.py", "options.py"),
)
_DECIDING_BELOW = ("layout.py", "printable.py", "tfrecord.py", "stores/protocol.py")  # of headct


# Lock of a local output, to detect concurrent runs


@contextmanager
def lock_output(url: str) -> Iterator[tuple[bool, Callable[[], None]]]:
    """Keep other runs from preparing an output while the block runs.

    The folder itself is locked, to leave no lock file. If another run prepares it, wait until that
    run shares the lock. On file systems without locks, and in buckets, concurrent runs are not
    detected.

    Args:
        url: path or URL of the output.

    Yields:
        Whether no other run writes to the output; a function that lets other runs with the same
        options write, too.
    """
    alone, lock = True, None
    if is_local(url):
        folder = Path(find_store(url)[1])
        with suppress(OSError):  # the first write reports the error
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock = Lock(folder)
            except BlockingIOError:
                alone, lock = False, Lock(folder, shared=True, wait=True)
    with lock or nullcontext():
        yield alone, lock.share if lock else lambda: None


# Records of an unfinished folder


@dataclass(frozen=True)
class Begun:
    """Program and options that began an unfinished directory.

    Attributes:
        version: version of the program; empty if not recorded, or damaged.
        code: digest of the code that determines the output; distinguishes builds of a version.
        options: recorded options, as JSON values; None if damaged.
    """

    version: str = ""
    code: str = ""
    options: dict[str, Any] | None = None

    @classmethod
    def now(cls, options: Options) -> Self:
        """Return the record of this program with some options."""
        return cls(beam_pipeline.__version__, code_digest(), options.recorded())

    @classmethod
    def read(cls, folder: Folder) -> "Begun | None":
        """Return the record of a directory, or None.

        Raises:
            StoreError: the folder's store fails.
            OSError: the record cannot be read.
        """
        if not folder.exists(OPTIONS):
            return None
        data = folder.read(OPTIONS)
        with suppress(ValueError):
            recorded = _JSON_OBJECT.validate_json(data)
            if "input" in recorded:  # version 0.1.0 recorded only the options
                return cls(options=recorded)
            return _BEGUN.validate_python(recorded)
        return cls()

    def encode(self) -> bytes:
        """Return the record as JSON."""
        return json.dumps(asdict(self)).encode()

    @property
    def is_current(self) -> bool:
        """Whether this program made the record."""
        return (self.version, self.code) == (beam_pipeline.__version__, code_digest())

    def is_same(self, options: Options) -> bool:
        """Whether this program with these options made the record."""
        return self.is_current and self.options is not None and not options.differing(self.options)


@dataclass(frozen=True)
class _Start:
    at: str
    runner: str


_JSON_OBJECT = TypeAdapter(dict[str, Any])
_BEGUN = TypeAdapter(Begun)
_STARTS = TypeAdapter(list[_Start])


@cache
def code_digest() -> str:
    """Return the SHA-256 of the code that determines the output, in hexadecimal.

    During development, code changes without a new version number or schema; outputs of old and new
    code must not be mixed.
    """
    digest = hashlib.sha256()
    roots = Path(beam_pipeline.__file__).parent, Path(headct.__file__).parent
    for root, names in zip(roots, (_DECIDING, _DECIDING_BELOW), strict=True):
        for module in (root / name for name in names):
            for path in [module] if module.suffix else sorted(module.rglob("*.py")):
                digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def record_start(folder: Folder, runner: str) -> None:
    """Record the start of a run in an unfinished directory; raises what Folder.write raises."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    starts = [*_read_starts(folder), _Start(now, runner)]
    folder.write(STARTS, _STARTS.dump_json(starts), durable=False)


def describe_run(folder: Folder) -> dict[str, Any] | None:
    """Return the manifest's `run` for a run that ends now; None if no start was recorded.

    `runner` is the last runner; `started` is the first start; `starts` is above 1 if the run was
    resumed; `seconds` is the time since the first start, pauses included.
    """
    starts = _read_starts(folder)
    if not starts:
        return None
    seconds = (datetime.now(UTC) - datetime.fromisoformat(starts[0].at)).total_seconds()
    return {
        "runner": starts[-1].runner,
        "started": starts[0].at,
        "starts": len(starts),
        "seconds": round(max(seconds, 0.0), 1),  # the clocks of two hosts may differ
    }


def _read_starts(folder: Folder) -> list[_Start]:
    with suppress(ValueError, FileNotFoundError):  # cut by a power failure, or missing
        return _STARTS.validate_json(folder.read(STARTS))
    return []


def write_refusal(folder: Folder, exit_code: int, message: str) -> None:
    """Record why the run ended without a manifest."""
    folder.remove_partial()
    folder.remove(RESERVE)
    refusal = {"exit_code": exit_code, "message": show_line(message)}
    folder.write(REFUSAL, json.dumps(refusal).encode())


def read_refusal(folder: Folder) -> Refusal | None:
    """Return why a run ended without a manifest, or None."""
    with suppress(ValueError, LookupError, TypeError, FileNotFoundError):  # damaged or missing
        refusal = json.loads(folder.read(REFUSAL))
        return Refusal(str(refusal["message"]), int(refusal["exit_code"]))
    return None


# Preparation and end


def find_manifest(folder: Folder) -> dict[str, Any] | None:
    """Return the manifest of a complete shard directory, or None.

    Raises:
        UsageError: the manifest is not a shard directory's.
    """
    if not folder.exists(MANIFEST):
        return None
    manifest: Any = None
    with suppress(ValueError):
        manifest = json.loads(folder.read(MANIFEST))
    return _check_ours(folder, manifest)


def _check_ours(folder: Folder, manifest: Any) -> dict[str, Any]:
    known = manifest if isinstance(manifest, dict) else {}
    if isinstance(known.get("options"), dict) and known.get("schema_version"):
        return known
    raise UsageError(f"{folder.url}/{MANIFEST} is not a shard directory's manifest")


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
        names = _own_names(folder)
        if options.run.overwrite:
            if not alone:
                raise UsageError(
                    f"another run writes to output {folder.url} now; wait for its end to "
                    "--overwrite it"
                )
            if MANIFEST in names:
                with suppress(ValueError):  # a damaged manifest may be ours
                    _check_ours(folder, json.loads(folder.read(MANIFEST)))
            _remove_all(folder, names)
            names = set()
        if MANIFEST in names and (manifest := find_manifest(folder)) is not None:
            _check_same(folder, manifest["options"], options)
            if UNFINISHED in names:  # the run stopped after writing the manifest
                finish_output(folder)
            folder.remove_partial()  # left by a run that stopped after another completed
            return manifest
        _resume(folder, names, options, alone)
    except OSError as error:
        raise OutputError(f"output {folder.url} cannot be read: {error.strerror}") from None
    return None


def _resume(folder: Folder, names: set[str], options: Options, alone: bool) -> None:
    """Keep what an earlier run wrote and this run would write again; record this run."""
    begun, refused = Begun.read(folder), folder.exists(REFUSAL)
    if begun is not None and not begun.is_same(options):
        if not alone:
            raise _in_use(folder)
        _take_up(folder, names, begun, options, refused)
    folder.remove_partial()
    if refused:
        folder.remove(CARD)  # the page about the refusal
        folder.remove(REFUSAL)
    record = Begun.now(options).encode()
    if not folder.add(OPTIONS, record):
        check_begun(folder, options)
    folder.write(OPTIONS, record)
    folder.write(RESERVE, os.urandom(_RESERVE_BYTES))


def check_begun(folder: Folder, options: Options) -> None:
    """Check that no other run has changed the record of this run's preparation.

    Raises:
        UsageError: a concurrent run has begun the directory with other options or code.
        OSError: the folder cannot be read.
        StoreError: the store fails.
    """
    begun = Begun.read(folder)
    if begun is not None and not begun.is_same(options):
        raise _in_use(folder)


def _in_use(folder: Folder) -> UsageError:
    return UsageError(
        f"another run writes to output {folder.url} now, with other options or another version; "
        "choose another folder"
    )


def _own_names(folder: Folder) -> set[str]:
    """Return the names in the folder; raise a UsageError for a foreign file."""
    entries = folder.entries()
    own = {entry for entry in entries if entry == f"{UNFINISHED}/" or _is_own(entry)}
    if own <= {*DESCRIPTIONS}:  # a README.md alone is the user's
        own = set()
    if foreign := sorted(entries - own):
        raise UsageError(
            f"output {folder.url} holds something else ({foreign[0].removesuffix('@')}); choose "
            "another folder"
        )
    return {entry.rstrip("/") for entry in entries}


def _is_own(entry: str) -> bool:
    """Return whether the pipeline writes this file beside or as a shard, perhaps in part."""
    name = partial_target(entry) or entry
    return name in _OWN_FILES or _is_shard(name)


def _is_shard(name: str) -> bool:
    try:
        return bool(ShardFile.parse(name))
    except ValueError:
        return False


def _remove_all(folder: Folder, names: Iterable[str]) -> None:
    # The manifest first; the descriptions, which mean nothing alone, before the rest.
    first = (MANIFEST, *DESCRIPTIONS)
    for name in sorted(names, key=lambda name: (name not in first, name != MANIFEST, name)):
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
    if begun.is_current and begun.options is not None:
        if Options.are_after_headers(options.differing(begun.options)):
            tables = Folder(f"{folder.url}/{UNFINISHED}", folder.patience).names()
            for name in tables - {"listing", "inventory"}:
                folder.remove(f"{UNFINISHED}/{name}")
            return
    else:
        other = f"another build (version {begun.version or 'unknown'})"
        if not refused and folder.exists(JOB):
            raise UsageError(
                f"output {folder.url} was begun by {other}, and a job of it may still run; let it "
                "end, or choose another folder, or --overwrite it"
            )
        _logger.warning("%s was begun by %s: all of it is done again", folder.url, other)
    _remove_all(folder, names)


def _check_same(folder: Folder, earlier: dict[str, Any], options: Options) -> None:
    """Raise a UsageError unless an earlier run's options give the same bytes."""
    differing = options.differing(earlier)
    if not differing:
        return
    name = differing[0]
    before, now = (
        value if isinstance(value, str) else json.dumps(value)
        for value in (fill_in(earlier).get(name), options.recorded().get(name))
    )
    what = f"--{name} {before}, now it is {now}"
    if name == "identifier_key_check":
        what = "another identifier key"
    raise UsageError(
        f"output {folder.url} was begun with {what}; choose another folder, or --overwrite it"
    )


def remove_other_shards(folder: Folder, planned: Iterable[str]) -> None:
    """Remove shards that an interrupted run wrote and this run did not plan.

    Labels, the list of files or the input may have changed between the runs: then the plan, and
    perhaps the number of shards, which their names hold, is another.
    """
    for name in sorted(folder.names() - {*planned}):
        if _is_shard(name):
            folder.remove(name)


def finish_output(folder: Folder) -> None:
    """Remove the tables of the unfinished directory."""
    folder.remove(UNFINISHED)
