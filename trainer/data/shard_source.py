"""Where shards are: a folder of this machine, or a bucket that they are copied from."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headct.errors import UsageError
from trainer.data.shards import ShardDirectory, Split, check_files, is_folder, read_shard_directory
from trainer.options import ShardAccess
from trainer.progress import Display

REMOTE_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "http", "https")
_CONTROL_CHARACTER = re.compile(r"[\0-\x1f\x7f]")
_ONE_SLASH = re.compile(rf"({'|'.join(REMOTE_SCHEMES)}):/([^/].*)")


class ShardSource(Protocol):
    """A place that has a shard directory."""

    def open(self) -> ShardDirectory:
        """Reads the manifest as it is now.

        Raises:
            UsageError: there is none, or a wrong one.
            StorageError: the store fails, or refuses access.
        """
        ...

    def provide(self, shards: ShardDirectory, splits: tuple[Split, ...]) -> None:
        """Sees to it that the files of some splits, and the index, lie where `shards` says.

        Raises:
            UsageError: a file is missing or not what the manifest says, or has no room.
            StorageError: the store fails, or refuses access.
        """
        ...


@dataclass(frozen=True)
class LocalShards:
    """A folder of this machine."""

    path: Path

    def open(self) -> ShardDirectory:
        """See ShardSource."""
        if not is_folder(self.path) and (found := _ONE_SLASH.fullmatch(str(self.path))):
            raise UsageError(f"{self.path}: no such folder; a URL is {found[1]}://{found[2]}")
        return read_shard_directory(self.path)

    def provide(self, shards: ShardDirectory, splits: tuple[Split, ...]) -> None:
        """See ShardSource. Sizes are compared; `make verify` reads all."""
        check_files(splits)


def find_shards(
    location: str | os.PathLike[str], access: ShardAccess, display: Display
) -> ShardSource:
    """The source that a path or URL names.

    Raises:
        UsageError: no such kind of store is known.
    """
    text = os.fspath(location).removeprefix("file://")
    if "://" not in text:
        return LocalShards(Path(text))
    scheme, _, rest = text.partition("://")
    if scheme not in REMOTE_SCHEMES:
        known = ", ".join(f"{each}://" for each in REMOTE_SCHEMES)
        raise UsageError(f"--shards {text}: no known store; must be a path or start with {known}")
    names = rest.strip("/").split("/")
    if not {"", ".", ".."}.isdisjoint(names) or _CONTROL_CHARACTER.search(rest):
        raise UsageError(f"--shards {text}: must name a bucket and a folder in it")
    from trainer.data.remote_shards import RemoteShards  # a local run needs nothing of it

    return RemoteShards(text.rstrip("/"), access, display)
