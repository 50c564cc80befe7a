"""How an unfinished directory was begun: by which program, and with which options."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import beam_pipeline
from beam_pipeline.options import Options
from headct.layout import OPTIONS
from headct.stores import Folder

# The code that decides what the tables of an unfinished directory and its shards hold.
_DECIDING = (
    *("dicom", "directory", "images", "planning", "writing/shards.py", "storage/sources.py"),
    *("keys.py", "layout.py", "options.py", "shown.py"),
)


@dataclass(frozen=True)
class Begun:
    """How an unfinished directory was begun.

    Attributes:
        version: of the program; empty for one that did not record it.
        code: digest of the code that decides what is written; tells builds of a version apart.
        options: those recorded, as JSON values; None if they are damaged.
    """

    version: str
    code: str
    options: dict[str, Any] | None

    @classmethod
    def now(cls, options: Options) -> Self:
        """Return how this program begins a directory."""
        return cls(beam_pipeline.__version__, code_digest(), options.recorded())

    @classmethod
    def read(cls, folder: Folder) -> "Begun | None":
        """Return how a directory was begun; None for one that was not.

        Raises:
            StoreError: the folder's store fails.
            OutputError: there is a record that cannot be read.
        """
        if not folder.exists(OPTIONS):
            return None
        try:
            recorded = json.loads(folder.read(OPTIONS))
        except ValueError:
            return cls("", "", None)
        if not isinstance(recorded, dict):
            return cls("", "", None)
        if "input" in recorded:  # the options alone: version 0.1.0
            return cls("", "", recorded)
        options = recorded.get("options")
        return cls(
            str(recorded.get("version", "")),
            str(recorded.get("code", "")),
            options if isinstance(options, dict) else None,
        )

    def write(self, folder: Folder) -> None:
        """Record it in an unfinished directory; raises as `Folder.write` does."""
        folder.write(OPTIONS, json.dumps(asdict(self)).encode())

    def add(self, folder: Folder) -> bool:
        """Record it unless there is a record, and return whether it was; raises as `write`."""
        return folder.add(OPTIONS, json.dumps(asdict(self)).encode())

    def described(self) -> str:
        """Return what to call the program, which is another than this one."""
        if self.options is None:
            return "a run whose record is damaged"
        if self.version == beam_pipeline.__version__:
            return f"another build of version {self.version}"
        return f"version {self.version}" if self.version else "an earlier version"

    def is_by(self, other: "Begun") -> bool:
        """Whether the same program begins both."""
        return (self.version, self.code) == (other.version, other.code)


@cache
def code_digest() -> str:
    """Return the SHA-256 of the code that decides what is written, in hexadecimal.

    A changed verdict or decoder changes no version number and no table's schema while it is
    developed, and must not be mixed with what was written before.
    """
    root = Path(beam_pipeline.__file__).parent
    digest = hashlib.sha256()
    for name in _DECIDING:
        place = root / name
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
