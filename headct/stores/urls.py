"""Lookup of the store of a path or URL."""

import io
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from headct.errors import HeadctError, ObjectRefused, StoreError, UsageError
from headct.stores.protocol import ReadableStore, Store, is_usable, why_unusable
from headct.stores.retries import DEFAULT_PATIENCE

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
        from headct.stores.local import LocalStore

        return LocalStore(patience), _absolute(url)
    from headct.stores.buckets import find_bucket

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
    if path and not is_usable(path):
        what = why_unusable(path).replace("its key", "it")
        raise UsageError(f"{url} cannot be read from a store: {what}; want names between slashes")
    return find_bucket(f"{scheme}://{bucket}", patience), path


@lru_cache(maxsize=32)
def find_input_store(url: str, patience: float = DEFAULT_PATIENCE) -> tuple[ReadableStore, str]:
    """Return the store to read a path or URL from, and the path in it.

    A path may lead into a ZIP archive (`rsna.zip/stage_2_train`).
    """
    archive = _find_archive(url)
    if archive is None:
        return find_store(url, patience)
    from headct.stores.archives import ArchiveStore

    return ArchiveStore(archive[0], patience), archive[1]


def _find_archive(url: str) -> tuple[str, str] | None:
    if not is_local(url) or ".zip" not in url.lower():
        return None
    from headct.stores.archives import split_archive

    return split_archive(_absolute(url))


def _absolute(url: str) -> str:
    return str(Path(url.removeprefix("file://") or ".").absolute())


def load_archive(url: str) -> None:
    """Read the directory of the ZIP archive that a path leads into, for processes that fork later.

    Errors are reported when files of the archive are read.
    """
    if _find_archive(url) is not None:
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
        return store.open(path) if is_local(url) else io.BytesIO(store.read(path))
    except ObjectRefused as refusal:  # name the file, not just its bucket
        raise StoreError(url, refusal.what, refusal.remedy) from None
