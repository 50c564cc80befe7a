"""Buckets of S3, Google Cloud Storage and Azure, compatible stores, and web servers."""

import io
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, BinaryIO, TypeVar, cast

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    NotSupportedError,
)

from headct.errors import StoreError
from headct.reasons import ObjectFault, Reason
from headct.stores.bucket_clients import UNLISTED_KEY, list_page, open_clients, open_lister
from headct.stores.bucket_errors import RANGE_NOT_SATISFIABLE, failure_of, status
from headct.stores.protocol import FileInfo, Store, is_usable, why_unusable
from headct.stores.retries import Patience, run_in_daemon_thread

T = TypeVar("T")
Item = dict[str, Any]  # path, size, and e_tag, version or last_modified of an object, as in obstore

# Larger files: multipart upload, in parallel. A kill leaves nothing of smaller files.
_SINGLE_PUT = 1 << 26
_PART = 1 << 24
_NOT_IMPLEMENTED = 501  # a store without conditional requests
_NO_RANGES = "Range request not supported"  # obstore, of a web server
_SPOOLED = 1 << 22  # bytes that are staged in memory
_PAGE = 1000  # objects per request of a listing
_BEFORE_SLASH = ".\U0010ffff"  # no usable key lies between this and keys that begin with a slash
_AFTER_SLASH = "0"
_LISTED_BY_BOTO3 = ("s3://", "s3a://", "gs://")


class ObjectStore(Store):
    """A bucket or container.

    obstore retries a failed request for a short time; `Patience` then retries with current
    credentials.

    Args:
        url: of the bucket, for messages.
        reading: obstore's store for requests with a short timeout.
        writing: obstore's store for uploads, during which the server is silent.
        patience: time limit of a request with its retries, seconds.
    """

    # a round trip takes as long as converting a few dozen slices
    readers = 32
    read_together = 1
    ranged_readers = 128

    def __init__(self, url: str, reading: Any, writing: Any, patience: float) -> None:
        self._url = url
        self._reading = reading
        self._writing = writing
        self._patience = Patience(url, patience)

    def list(self, folder: str) -> Iterator[FileInfo]:
        """List files, without the empty marker objects of folders."""
        start = len(folder) + 1 if folder else 0
        last = b""
        for item in self._items(folder):
            source = item["path"][start:]
            if not source or _is_hidden(source) or self._is_marker(item):
                continue
            if source.encode() <= last:
                what = "does not list objects in the order of their keys"
                raise StoreError(self._url, what, "copy the input elsewhere")
            last = source.encode()
            yield FileInfo(source, item["size"], _version(item))

    def _items(self, folder: str) -> Iterator[Item]:
        pages = Pages(self._reading, folder, self._url)
        while page := self._request(pages.next):
            yield from page

    def _is_marker(self, item: Item) -> bool:
        """Return whether an object marks an empty folder, as bucket browsers create.

        Its key ends with a slash, which obstore drops: no object has the key in the listing.
        """
        if item["size"] or not is_usable(item["path"]):
            return not item["size"] and str(item["path"]).endswith("/")
        return self.info(item["path"]) is None

    def info(self, path: str) -> FileInfo | None:
        if not is_usable(path):
            return None
        try:
            item = self._request(lambda: obstore.head(self._reading, path))
        except FileNotFoundError:
            return None
        return FileInfo(path, item["size"], _version(item))

    def check_reachable(self, path: str) -> None:
        """Do nothing: missing buckets and missing objects have different responses."""

    def is_folder(self, path: str) -> bool:
        return bool(self._request(Pages(self._reading, path, self._url).next)) or not path

    def entries(self, folder: str) -> set[str]:
        listing = self._request(lambda: obstore.list_with_delimiter(self._reading, folder or None))
        folders = {f"{path.rpartition('/')[2]}/" for path in listing["common_prefixes"]}
        return folders | {item["path"].rpartition("/")[2] for item in listing["objects"]}

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        def read_whole() -> bytes:
            return bytes(obstore.get(self._reading, path).bytes())

        def read_range() -> bytes:
            try:
                return bytes(obstore.get_range(self._reading, path, start=start, length=length))
            except BaseError as error:
                if not start and status(error) == RANGE_NOT_SATISFIABLE:
                    return b""  # an empty object has no ranges
                if _NO_RANGES in str(error) and self._url.startswith("http"):
                    return read_whole()[start:][:length]  # web servers need not support ranges
                raise

        if not is_usable(path):
            raise ObjectFault(Reason.UNUSABLE_KEY, why_unusable(path))
        if length == 0:  # obstore refuses empty ranges
            return b""
        whole = length is None and not start
        try:
            return self._request(read_whole if whole else read_range, reading=True)
        except FileNotFoundError:
            if self._url.startswith("http"):  # web servers have no listing
                raise
            markers = self._request(Pages(self._reading, path, self._url).next)
            if any(item["path"].rstrip("/") == path for item in markers):
                raise ObjectFault(Reason.UNUSABLE_KEY, why_unusable(f"{path}/")) from None
            raise

    def open(self, path: str) -> BinaryIO:
        return io.BytesIO(self.read(path))

    @contextmanager
    def create(self, path: str, *, durable: bool) -> Iterator[BinaryIO]:
        """Stage a file in an unnamed temporary file, safe from kills, and upload it."""
        with tempfile.SpooledTemporaryFile(max_size=_SPOOLED) as staged:
            file = cast(BinaryIO, staged)
            yield file
            size = file.seek(0, os.SEEK_END)
            self._request(lambda: self._upload(path, file, size))

    def _upload(self, path: str, file: BinaryIO, size: int) -> None:
        file.seek(0)
        if size <= _SINGLE_PUT:
            obstore.put(self._writing, path, file.read(), use_multipart=False)
        else:
            obstore.put(self._writing, path, file, use_multipart=True, chunk_size=_PART)

    def add(self, path: str, data: bytes) -> bool:
        def attempt() -> bool:
            try:
                obstore.put(self._writing, path, data, mode="create")
            except AlreadyExistsError:
                return False
            except (BaseError, NotImplementedError) as error:
                unsupported = isinstance(error, NotSupportedError | NotImplementedError)
                if not unsupported and status(error) != _NOT_IMPLEMENTED:
                    raise
                obstore.put(self._writing, path, data)
            return True

        return self._request(attempt)

    def remove_partial(self, folder: str) -> None:
        """Do nothing: objects appear when they are complete."""

    def remove(self, path: str) -> None:
        self._delete([path])
        while page := self._request(Pages(self._reading, path, self._url).next):
            self._delete([item["path"] for item in page])

    def _delete(self, paths: Sequence[str]) -> None:
        def attempt() -> None:
            try:
                obstore.delete(self._writing, paths)
            except FileNotFoundError:
                if len(paths) > 1:  # an earlier attempt deleted some
                    for path in paths:
                        self._delete([path])

        self._request(attempt)

    def _request(self, action: Callable[[], T], *, reading: bool = False) -> T:
        """Return the result of a request; raise the failures of `failure_of`.

        Args:
            action: the request.
            reading: whether it reads an object.
        """

        def attempt() -> T:
            try:
                if threading.current_thread() is threading.main_thread():  # gets Ctrl-C
                    return run_in_daemon_thread(action).result()
                return action()
            except (BaseError, OSError) as error:
                raise failure_of(error, self._url, reading=reading) from None

        return self._patience.request(attempt)


def _is_hidden(path: str) -> bool:
    return any(name.startswith(".") and name.strip(".") for name in path.split("/"))


def _version(item: Any) -> str:
    return str(item.get("version") or item.get("e_tag") or item.get("last_modified") or "")


class Pages:
    """A listing in pages; after a failure, it continues after the last object.

    obstore reads keys as paths: it fails for a page with another key (`a//b`, `a/./b`, control
    characters), and drops slashes at both ends of a key. boto3 lists such buckets.

    Args:
        store: obstore's.
        folder: to list; empty for the whole bucket.
        url: of the bucket.
    """

    def __init__(self, store: Any, folder: str, url: str) -> None:
        self._store, self._folder, self._url = store, folder, url
        self._pages: Any = None
        self._lister: Any = None  # boto3's client, once it is needed
        self._last = ""
        self._ended = False

    def next(self) -> list[Item]:
        """Return the next objects; empty at the end.

        Raises:
            StoreError: the bucket has a key that cannot be listed.
        """
        if self._lister is None:
            try:
                if self._last or self._folder or not _has_leading_slashes(self._store):
                    return self._obstore_page()
            except InvalidPathError:
                pass
            if not self._url.startswith(_LISTED_BY_BOTO3):
                raise StoreError(self._url, UNLISTED_KEY, "rename it")
            self._lister = open_lister(self._url)
        return self._boto3_page()

    def _obstore_page(self) -> list[Item]:
        if self._pages is None:
            offset, prefix = self._last or None, self._folder or None
            self._pages = iter(obstore.list(self._store, prefix, offset=offset, chunk_size=_PAGE))
        pages, self._pages = self._pages, None  # stays None if the request fails
        page = list(next(pages, []))
        self._pages = pages
        # max, not last: folder markers are sorted by their full key
        self._last = max([self._last, *(item["path"] for item in page)], key=str.encode)
        return page

    def _boto3_page(self) -> list[Item]:
        if self._ended:
            return []
        prefix = {"Prefix": f"{self._folder}/"} if self._folder else {}
        page = list_page(self._lister, self._url, MaxKeys=_PAGE, StartAfter=self._last, **prefix)
        items = [
            {"path": entry["Key"], "size": entry["Size"], "e_tag": entry.get("ETag")}
            for entry in page.get("Contents", ())
        ]
        self._last = items[-1]["path"] if items else self._last
        self._ended = not page.get("IsTruncated")
        return items


def _has_leading_slashes(store: Any) -> bool:
    """Return whether keys of a bucket begin with a slash, which obstore drops."""
    before, after = (
        [item["path"] for item in next(iter(obstore.list(store, offset=offset)), [])]
        for offset in (_BEFORE_SLASH, _AFTER_SLASH)
    )
    if before[:1] == [_AFTER_SLASH]:
        before = before[1:]
    shorter = min(len(before), len(after))
    return before[:shorter] != after[:shorter]


@lru_cache(maxsize=32)
def find_bucket(url: str, patience: float) -> ObjectStore:
    """Return a bucket, with the credentials and settings of the store's own tools.

    Raises:
        StoreError: the settings cannot be used.
    """
    return ObjectStore(url, *open_clients(url, patience), patience)
