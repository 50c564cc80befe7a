"""Lookup of the store of a path or URL."""

import posixpath
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from headct.errors import HeadctError, ObjectRefused, StoreError, UsageError
from headct.stores.local import LocalStore
from headct.stores.protocol import DEFAULT_PATIENCE, Range, ReadableStore, Store, why_unusable

REMOTE_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "http", "https")


def is_local(url: str) -> bool:
    """Return whether this is a local path."""
    return "://" not in url or url.startswith("file://")


@lru_cache(maxsize=32)  # a store keeps its connections
def find_store(url: str, patience: float = DEFAULT_PATIENCE) -> tuple[Store, str]:
    """Return the store of a path or URL, and the path in it.

    Args:
        url: a path; or a URL of S3 (`s3://`), Google Cloud Storage (`gs://`), Azure (`az://`,
            `abfs://`, `abfss://`) or a web server (`http://`, `https://`).
        patience: time limit of a request with its retries, seconds.

    Raises:
        UsageError: the kind of store is unknown, or the path cannot exist in it.
        StoreError: the settings of its client cannot be used.
    """
    if is_local(url):
        return LocalStore(patience), _absolute(url)
    from headct.stores.buckets import find_bucket  # imports obstore

    scheme, _, rest = url.partition("://")
    if scheme not in REMOTE_SCHEMES:
        known = ", ".join(f"{name}://" for name in REMOTE_SCHEMES)
        raise UsageError(f"{url}: unknown kind of store {scheme}://; want a path or one of {known}")
    bucket, _, path = rest.partition("/")
    if not bucket:
        raise UsageError(f"{url}: want the name of a bucket or server behind {scheme}://")
    if scheme in ("http", "https") and "=" in path.partition("?")[2]:  # a signature, or a token
        path, _, query = path.partition("?")
        bucket = f"{bucket}?{query}"
    path = path.strip("/")
    if path and (why := why_unusable(path)):
        what = why.replace("its key", "it")
        raise UsageError(f"{url} cannot be read from a store: {what}; want names between slashes")
    return find_bucket(f"{scheme}://{bucket}", patience), path


@lru_cache(maxsize=32)
def find_input_store(url: str, patience: float = DEFAULT_PATIENCE) -> tuple[ReadableStore, str]:
    """Return the store to read a path or URL from, and the path in it.

    A path may lead into a ZIP archive (`rsna.zip/stage_2_train`).
    """
    if is_local(url) and ".zip" in url.lower():
        from headct.stores.archives import ArchiveStore, split_archive

        if found := split_archive(_absolute(url)):
            return ArchiveStore(found[0], patience), found[1]
    return find_store(url, patience)


def _absolute(url: str) -> str:
    return str(Path(url.removeprefix("file://") or ".").absolute())


def load_archive(url: str) -> None:
    """Read the directory of the ZIP archive that a path leads into, for processes that fork later.

    Errors are reported when files of the archive are read.
    """
    if is_local(url):
        store, path = find_input_store(url)
        with suppress(HeadctError):
            store.is_folder(path)


def open_file(url: str, patience: float = DEFAULT_PATIENCE) -> BinaryIO:
    """Open a file to read, also one in a ZIP archive; a remote file is downloaded whole.

    Raises:
        OSError: the file does not exist or cannot be read.
        StoreError: its store fails.
        UsageError: the path leads into a file that is not a ZIP archive.
    """
    store, path = find_input_store(url, patience)
    if not path:  # the archive itself, for example of one compressed table
        store, path = find_store(url, patience)
    try:
        return store.open(path)
    except ObjectRefused as refusal:  # name the file, not just its bucket
        raise StoreError(url, refusal.what, refusal.remedy) from None


def read_ranges(folder: str, ranges: Sequence[Range]) -> Sequence[bytes]:
    """Return ranges of the files of a folder, in any process; a range ends with its file.

    Raises:
        OSError: a file is missing or cannot be read.
        UsageError: unknown kind of store.
        StoreError: the store fails or refuses access.
    """
    store, path = find_store(folder)
    return store.read_ranges(
        [(posixpath.join(path, name), start, length) for name, start, length in ranges]
    )
