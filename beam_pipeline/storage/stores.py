"""The store of a path or URL."""

import io
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from beam_pipeline.errors import UsageError
from beam_pipeline.storage.protocol import Store
from beam_pipeline.storage.retries import DEFAULT_PATIENCE


def is_local(url: str) -> bool:
    """Whether this is a path of the machine that asks, and not a URL of a store elsewhere."""
    return "://" not in url or url.startswith("file://")


@lru_cache(maxsize=32)  # a store keeps its connections
def find_store(url: str, patience: float = DEFAULT_PATIENCE) -> tuple[Store, str]:
    """The store of a path or URL, and the path in it.

    Args:
        url: a path; or a URL of S3 (`s3://`), Google Cloud Storage (`gs://`), Azure (`az://`,
            `abfs://`, `abfss://`) or a web server (`http://`, `https://`).
        patience: seconds after which a request that fails is given up.

    Raises:
        UsageError: there is no such kind of store.
        StoreError: its credentials cannot be used.
    """
    if is_local(url):
        from beam_pipeline.storage.local import LocalStore

        path = url.removeprefix("file://") or "."
        return LocalStore(patience), str(Path(path).absolute())
    from beam_pipeline.storage.remote import REMOTE_SCHEMES, find_bucket

    scheme, _, rest = url.partition("://")
    if scheme not in REMOTE_SCHEMES:
        known = ", ".join(f"{name}://" for name in REMOTE_SCHEMES)
        raise UsageError(f"{scheme}:// is no store that is known here; these are: {known}")
    bucket, _, path = rest.partition("/")
    return find_bucket(f"{scheme}://{bucket}", patience), path.strip("/")


def open_file(url: str, patience: float = DEFAULT_PATIENCE) -> BinaryIO:
    """A file to read; one of another machine is fetched whole.

    Raises:
        OSError: there is no such file, or it cannot be read.
        StoreError: its store fails.
    """
    store, path = find_store(url, patience)
    return store.open(path) if is_local(url) else io.BytesIO(store.read(path))
