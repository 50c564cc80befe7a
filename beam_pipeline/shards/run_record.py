"""Records of an unfinished directory: program and options that began it, starts of its run."""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Self

import beam_pipeline
import headct
from beam_pipeline.options import Options
from headct.layout import OPTIONS, STARTS
from headct.stores import Folder

# Code that determines the content of tables and shards.
_DECIDING = (
    *("dicom", "images", "planning", "shards/formats.py", "shards/unfinished.py"),
    *("shards/writer.py", "keys.py", "options.py"),
)
_DECIDING_BELOW = ("layout.py", "printable.py", "tfrecord.py", "stores/protocol.py")  # of headct


@dataclass(frozen=True)
class Begun:
    """Program and options that began an unfinished directory.

    Attributes:
        version: version of the program; empty if not recorded.
        code: digest of the code that determines the output; distinguishes builds of a version.
        options: recorded options, as JSON values; None if damaged.
    """

    version: str
    code: str
    options: dict[str, Any] | None

    @classmethod
    def now(cls, options: Options) -> Self:
        """Return the record of this program with some options."""
        return cls(beam_pipeline.__version__, code_digest(), options.recorded())

    @classmethod
    def read(cls, folder: Folder) -> "Begun | None":
        """Return the record of a directory, or None.

        Raises:
            StoreError: the folder's store fails.
            OutputError: the record cannot be read.
        """
        if not folder.exists(OPTIONS):
            return None
        try:
            recorded = json.loads(folder.read(OPTIONS))
        except ValueError:
            return cls("", "", None)
        if not isinstance(recorded, dict):
            return cls("", "", None)
        if "input" in recorded:  # version 0.1.0 recorded only the options
            return cls("", "", recorded)
        options = recorded.get("options")
        return cls(
            str(recorded.get("version", "")),
            str(recorded.get("code", "")),
            options if isinstance(options, dict) else None,
        )

    def write(self, folder: Folder) -> None:
        """Write the record to an unfinished directory; raises as `Folder.write` does."""
        folder.write(OPTIONS, json.dumps(asdict(self)).encode())

    def add(self, folder: Folder) -> bool:
        """Write the record if none exists, and return whether it was written; raises as `write`."""
        return folder.add(OPTIONS, json.dumps(asdict(self)).encode())

    def described(self) -> str:
        """Return a description of the program, which differs from this program."""
        if self.options is None:
            return "a run whose record is damaged"
        if self.version == beam_pipeline.__version__:
            return f"another build of version {self.version}"
        return f"version {self.version}" if self.version else "an earlier version"

    def is_by(self, other: "Begun") -> bool:
        """Whether both records are of the same program."""
        return (self.version, self.code) == (other.version, other.code)


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
    starts = [*_read_starts(folder), {"at": now, "runner": runner}]
    folder.write(STARTS, json.dumps(starts).encode(), durable=False)


def describe_run(folder: Folder) -> dict[str, Any] | None:
    """Return the manifest's `run` for a run that ends now; None if no start was recorded.

    `runner` is the last runner; `started` is the first start; `starts` is above 1 if the run was
    resumed; `seconds` is the time since the first start, pauses included.
    """
    starts = _read_starts(folder)
    with suppress(LookupError, TypeError, ValueError):
        began = datetime.fromisoformat(starts[0]["at"])
        seconds = (datetime.now(UTC) - began).total_seconds()
        return {
            "runner": starts[-1]["runner"],
            "started": starts[0]["at"],
            "starts": len(starts),
            "seconds": round(max(seconds, 0.0), 1),  # the clocks of two hosts may differ
        }
    return None


def _read_starts(folder: Folder) -> list[dict[str, str]]:
    if not folder.exists(STARTS):
        return []
    with suppress(ValueError, FileNotFoundError):  # cut by a power failure, or removed
        starts = json.loads(folder.read(STARTS))
        if isinstance(starts, list):
            return [
                start
                for start in starts
                if isinstance(start, dict) and {"at", "runner"} <= start.keys()
            ]
    return []
