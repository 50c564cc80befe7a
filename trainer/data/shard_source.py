"""Sources of shards: a local folder, or a bucket with a local cache."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headct.errors import UsageError
from headct.stores import REMOTE_SCHEMES, is_local
from trainer.data.shards import ShardDirectory, Split, check_files, is_folder, read_shard_directory
from trainer.display import Display
from trainer.options import ShardAccess

_ONE_SLASH = re.compile(rf"({'|'.join(REMOTE_SCHEMES)}):/([^/].*)")


class ShardSource(Protocol):
    """A shard directory, local or in a bucket."""

    def open(self) -> ShardDirectory:
        """Read the current manifest.

        Raises:
            UsageError: there is no manifest, or it is wrong.
            StorageError: the store fails, or refuses access.
        """
        ...

    def provide(self, shards: ShardDirectory, splits: tuple[Split, ...]) -> None:
        """Make the files of some splits, and the index, available in the folder of `shards`.

        Raises:
            UsageError: a file is missing, differs from the manifest, or does not fit on the disk.
            StorageError: the store fails, or refuses access.
        """
        ...


@dataclass(frozen=True)
class LocalShards:
    """A local folder."""

    path: Path

    def open(self) -> ShardDirectory:
        """Read the manifest; raise UsageError if there is no valid one."""
        if not is_folder(self.path) and (url := _ONE_SLASH.fullmatch(str(self.path))):
            raise UsageError(f"{self.path}: no such folder; a URL is {url[1]}://{url[2]}")
        return read_shard_directory(self.path)

    def provide(self, shards: ShardDirectory, splits: tuple[Split, ...]) -> None:
        """Compare the sizes of the files; `make verify` reads them all."""
        check_files(splits)


def find_shards(
    location: str | os.PathLike[str], access: ShardAccess, display: Display
) -> ShardSource:
    """Return the source that a path or URL names.

    Raises:
        UsageError: the URL names no bucket.
        StoreError: the settings of the bucket's client cannot be used.
    """
    text = os.fspath(location)
    if is_local(text):
        return LocalShards(Path(text.removeprefix("file://")))
    from trainer.data.remote_shards import RemoteShards  # not needed for local shards

    return RemoteShards(text, access, display)
