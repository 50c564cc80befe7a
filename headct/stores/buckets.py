"""Buckets of S3, Google Cloud Storage and Azure, compatible stores, and web servers."""

import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
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
from headct.stores.bucket_clients import (
    Page,
    failure_of,
    list_any_keys,
    open_client,
    status_of,
)
from headct.stores.protocol import (
    FileInfo,
    Patience,
    Range,
    Store,
    run_in_daemon_thread,
    why_unusable,
)

T = TypeVar("T")

# Larger files: multipart upload, in parallel. A kill leaves nothing of smaller files.
_SINGLE_PUT = 1 << 26
_PART = 1 << 24
_IMPORTED_BY = os.getpid()
_SPOOLED = 1 << 22  # bytes that are staged in memory
_PAGE = 1000  # objects per request of a listing
_RANGE_NOT_SATISFIABLE = 416
_NOT_IMPLEMENTED = 501  # a store without conditional requests
_BY_BOTOCORE = ("s3://", "s3a://", "gs://")  # listed by botocore if obstore cannot
_NO_RANGES = "Range request not supported"  # obstore, of a web server


class ObjectStore(Store):
    """A bucket or container.

    obstore retries a failed request for a short time; `Patience` then retries with current
    credentials.

    Args:
        url: of the bucket.
        patience: time limit of a request with its retries, seconds.
        clients: obstore's stores to read and to write, if not those of the URL.

    Raises:
        StoreError: the settings of the clients cannot be used.
    """

    # a round trip takes as long as converting a few dozen slices
    readers = 32
    ranged_readers = 128

    def __init__(self, url: str, patience: float, clients: tuple[Any, Any] | None = None) -> None:
        self._url = url
        self._seconds = patience
        self._patience = Patience(url, patience)
        self._reading, self._writing = clients or (
            open_client(url, patience),
            open_client(url, patience, writing=True),
        )

    def list(self, folder: str) -> Iterator[FileInfo]:
        """List files, without the empty marker objects of folders."""
        start = len(folder) + 1 if folder else 0
        last = b""
        for page in self._pages(folder):
            for item in page:
                source = item["path"][start:]
                if not source or _is_hidden(source):
                    continue
                if source.encode() <= last:
                    source += "/"  # obstore drops it
                path = item["path"][:start] + source
                if source.encode() == last or (not item["size"] and self._is_marker(path)):
                    continue
                if source.encode() < last:
                    what = "does not list objects in the order of their keys, or a key begins with"
                    raise StoreError(self._url, f"{what} a slash", "copy the input elsewhere")
                last = source.encode()
                yield FileInfo(source, item["size"], _version(item))

    def _pages(self, folder: str) -> Iterator[Page]:
        """Yield a listing in pages; after a failure, it continues after the last object.

        obstore reads keys as paths: it fails for a page with another key (`a//b`, `a/./b`, control
        characters), and drops slashes at both ends of a key. botocore lists such buckets.
        """
        stream: Any = None
        last = ""
        any_keys = False

        def next_page() -> Page:
            nonlocal stream, any_keys
            pages, stream = stream, None  # stays None if the request fails
            if pages is None and any_keys:
                pages = list_any_keys(self._url, folder, last)
            try:
                if pages is None:
                    if not (folder or last) and self._url.startswith(_BY_BOTOCORE):
                        _check_leading_slashes(self._reading)
                    pages = obstore.list(
                        self._reading, folder or None, offset=last or None, chunk_size=_PAGE
                    )
                page = list(next(pages, []))
            except InvalidPathError:
                if not self._url.startswith(_BY_BOTOCORE):
                    raise
                any_keys = True
                return next_page()
            stream = pages
            return page

        while page := self._request(next_page):
            # max, not last: folder markers are sorted by their full key
            last = max([last, *(item["path"] for item in page)], key=str.encode)
            yield page

    def _is_marker(self, path: str) -> bool:
        """Return whether an empty object marks a folder, as bucket browsers create.

        Its key ends with a slash, which obstore drops: no object has the key in the listing.
        """
        return path.endswith("/") if why_unusable(path) else self.info(path) is None

    def info(self, path: str) -> FileInfo | None:
        if why_unusable(path):
            return None
        try:
            item = self._request(lambda: obstore.head(self._reading, path))
        except FileNotFoundError:
            return None
        return FileInfo(path, item["size"], _version(item))

    def is_folder(self, path: str) -> bool:
        return next(self._pages(path), None) is not None or not path

    def entries(self, folder: str) -> set[str]:
        listing = self._request(lambda: obstore.list_with_delimiter(self._reading, folder or None))
        folders = {f"{path.rpartition('/')[2]}/" for path in listing["common_prefixes"]}
        return folders | {item["path"].rpartition("/")[2] for item in listing["objects"]}

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        def request() -> bytes:
            try:
                if length is not None:
                    return bytes(obstore.get_range(self._reading, path, start=start, length=length))
            except BaseError as error:
                if status_of(error) == _RANGE_NOT_SATISFIABLE:
                    return b""  # beyond the end
                if _NO_RANGES not in str(error):  # which a web server need not support
                    raise
            return bytes(obstore.get(self._reading, path).bytes())[start:][:length]

        if why := why_unusable(path):
            raise ObjectFault(Reason.UNUSABLE_KEY, why)
        if length == 0:  # obstore refuses empty ranges
            return b""
        try:
            return self._request(request, reading=True)
        except FileNotFoundError:
            if self._url.startswith("http"):  # web servers have no listing
                raise
            for item in next(self._pages(path), []):
                if item["path"].rstrip("/") == path:
                    raise ObjectFault(Reason.UNUSABLE_KEY, why_unusable(f"{path}/")) from None
            raise

    def read_ranges(self, ranges: Sequence[Range]) -> Sequence[bytes]:
        if os.getpid() != _IMPORTED_BY:
            return _ask_helper(self._url, self._seconds, ranges)
        if len(ranges) == 1:
            return [self.read(*ranges[0])]
        with ThreadPoolExecutor(min(self.ranged_readers, len(ranges) or 1)) as threads:
            return list(threads.map(lambda wanted: self.read(*wanted), ranges))

    @contextmanager
    def create(self, path: str, *, durable: bool) -> Iterator[BinaryIO]:
        """Stage a file in an unnamed temporary file, safe from kills, and upload it."""
        with tempfile.SpooledTemporaryFile(max_size=_SPOOLED) as staged:
            file = cast(BinaryIO, staged)
            yield file
            is_large = file.seek(0, os.SEEK_END) > _SINGLE_PUT

            def upload() -> None:
                file.seek(0)
                data = file if is_large else file.read()
                obstore.put(self._writing, path, data, use_multipart=is_large, chunk_size=_PART)

            self._request(upload)

    def add(self, path: str, data: bytes) -> bool:
        def attempt() -> bool:
            try:
                obstore.put(self._writing, path, data, mode="create")
            except AlreadyExistsError:
                return False
            except (BaseError, NotImplementedError) as error:
                unsupported = isinstance(error, NotSupportedError | NotImplementedError)
                if not unsupported and status_of(error) != _NOT_IMPLEMENTED:
                    raise
                obstore.put(self._writing, path, data)
            return True

        return self._request(attempt)

    def remove(self, path: str) -> None:
        paths = [path]
        while paths:
            with suppress(FileNotFoundError):  # an earlier attempt deleted some
                self._request(partial(obstore.delete, self._writing, paths))
            paths = [item["path"] for item in next(self._pages(path), [])]

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


def _check_leading_slashes(store: Any) -> None:
    """Raise InvalidPathError if keys begin with a slash, which obstore drops.

    Such keys lie between those that begin with "." and those that begin with "0".
    """

    def first_page(offset: str) -> list[str]:
        return [item["path"] for item in next(obstore.list(store, offset=offset), [])]

    found, after = first_page(".\U0010ffff"), first_page("0")
    if found[:1] == ["0"]:
        with suppress(FileNotFoundError):
            obstore.head(store, "0")
            del found[0]
    if len(found) > len(after) or found != after[: len(found)]:
        raise InvalidPathError("a key begins with a slash")


def _is_hidden(path: str) -> bool:
    return any(name.startswith(".") and name.strip(".") for name in path.split("/"))


def _version(item: Any) -> str:
    return str(item.get("version") or item.get("e_tag") or item.get("last_modified") or "")


@lru_cache(maxsize=32)
def find_bucket(url: str, patience: float) -> ObjectStore:
    """Return a bucket, with the credentials and settings of the store's own tools.

    Raises:
        StoreError: the settings cannot be used.
    """
    return ObjectStore(url, patience)


# Forked processes: obstore's threads do not survive a fork, so another process reads for them.


@lru_cache(maxsize=1)
def _helper(pid: int) -> "tuple[subprocess.Popen[bytes], threading.Lock]":
    """Return the process that reads for a forked one, and a lock to talk to it."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import _serve; _serve()"
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe)
    return process, threading.Lock()


def _ask_helper(url: str, patience: float, ranges: Sequence[Range]) -> list[bytes]:
    """Return ranges of a bucket's objects, or raise the helper's exception."""
    process, lock = _helper(os.getpid())
    assert process.stdin is not None
    assert process.stdout is not None
    with lock:
        pickle.dump((url, patience, list(ranges)), process.stdin)
        process.stdin.flush()
        result: list[bytes] | Exception = pickle.load(process.stdout)
    if isinstance(result, Exception):
        raise result
    return result


def _serve() -> None:
    """Answer requests of one process until the process ends."""
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    while True:
        try:
            url, patience, ranges = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        result: Any
        try:
            result = find_bucket(url, patience).read_ranges(ranges)
        except Exception as error:  # raised again in the calling process
            result = error
        pickle.dump(result, answers)
        answers.flush()
