"""The interface of stores, retries of their requests, and encoding of file paths."""

import io
import logging
import random
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from headct.errors import StoreError
from headct.printable import escape_controls

DEFAULT_PATIENCE = 600.0  # seconds
_FIRST_WAIT = 0.25  # seconds, at most, before the third attempt; doubled before each further one
_LONGEST_WAIT = 15.0  # seconds between two attempts
_SECONDS_BETWEEN_WARNINGS = 30.0
_FOREIGN_SECONDS = 20.0  # enough for a restarting proxy; a wrong address stays wrong
_CONTROL_CHARACTER = re.compile(r"[\0-\x1f\x7f]")

T = TypeVar("T")
Range = tuple[str, int, int | None]  # a file's path, first byte, number of bytes


def encode_source(path: str) -> bytes:
    """Encode a path for tables: file names need not be UTF-8."""
    return path.encode("utf-8", "surrogateescape")


def decode_source(stored: bytes) -> str:
    """Decode a path from a table, to open the file."""
    return stored.decode("utf-8", "surrogateescape")


def show_source(path: str) -> str:
    """Return a path to print: control characters and invalid UTF-8 are escaped."""
    return escape_controls(encode_source(path).decode("utf-8", "backslashreplace"))


def why_unusable(key: str) -> str:
    """Return why obstore, which reads keys as paths, cannot request an object; empty if it can."""
    if _CONTROL_CHARACTER.search(key):
        return "its key has a control character"
    if key.startswith("/") or key.endswith("/"):
        return f"its key {'begins' if key.startswith('/') else 'ends'} with a slash"
    if "//" in key:
        return "its key has '//'"
    return "" if {".", ".."}.isdisjoint(key.split("/")) else "its key has the part '.' or '..'"


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file in a listing.

    Attributes:
        path: relative to the folder that was listed.
        size: bytes.
        version: changes whenever the content changes: modification time or ETag.
    """

    path: str
    size: int
    version: str


class ReadableStore(ABC):
    """Files under paths with slashes, to read.

    An OSError concerns the requested file, a StoreError the whole store.

    Attributes:
        readers: recommended number of requests in flight.
        ranged_readers: like `readers`, for short ranges of files; 0 to read them without threads.
    """

    readers: int
    ranged_readers: int

    @abstractmethod
    def list(self, folder: str) -> Iterator[FileInfo]:
        """List the files below a folder, without hidden ones, ordered by the bytes of their paths.

        All stores order by the UTF-8 bytes of the whole path.
        """

    @abstractmethod
    def info(self, path: str) -> FileInfo | None:
        """Return size and version of a file, or None if there is no file."""

    def check_reachable(self, path: str) -> None:  # noqa: B027 - most stores have other errors
        """Raise Transient unless the folder of a file is reachable; the file may be missing.

        An unmounted disk or a moved folder does not mean that the file is missing.
        """

    @abstractmethod
    def is_folder(self, path: str) -> bool:
        """Return whether a folder exists; in a bucket, whether there are files below the path."""

    @abstractmethod
    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Return a file's bytes, or a range of them; a range ends with the file."""

    def read_ranges(self, ranges: Sequence[Range]) -> Sequence[bytes]:
        """Return several ranges, also in forked processes."""
        return [self.read(*wanted) for wanted in ranges]

    def open(self, path: str) -> BinaryIO:
        """Open a file to read it from start to end."""
        return io.BytesIO(self.read(path))


class Store(ReadableStore):
    """A store to read and write."""

    @abstractmethod
    def entries(self, folder: str) -> set[str]:
        """Return the names in a folder; empty if there is no folder.

        Names of folders end with `/`; names of other entries than files (links to folders,
        broken links, pipes) end with `/@`.
        """

    @abstractmethod
    def create(self, path: str, *, durable: bool) -> AbstractContextManager[BinaryIO]:
        """Open a new file to write and read; the file appears if the block succeeds.

        Args:
            path: of the file.
            durable: whether to wait until a local file would survive a power failure.
        """

    @abstractmethod
    def add(self, path: str, data: bytes) -> bool:
        """Write a file unless it exists; return whether it was written.

        If several processes try at once, only one writes the file, except in stores without links
        or conditional requests.
        """

    def remove_partial(self, folder: str) -> None:
        """Remove unfinished files of killed processes from a folder."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file, or a folder with its content, if it exists."""


class Transient(Exception):
    """A failure of a request that may pass.

    Args:
        what: the failure, in a few words.
        remedy: what to do if it persists; empty unless another service than the store responded,
            for example with a web page.
    """

    def __init__(self, what: str | None, remedy: str = "") -> None:
        super().__init__(what)
        self.remedy = remedy


class Patience:
    """Repeats failed requests to a store.

    Args:
        store: its URL or path, for messages.
        seconds: time limit of the retries of a request.
    """

    def __init__(self, store: str, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._warned_at = float("-inf")

    def request(self, attempt: Callable[[], T]) -> T:
        """Return the result of the first attempt that does not raise Transient.

        The waits between attempts grow, with jitter: many workers must not hit a recovering store
        at once.

        Raises:
            StoreError: all attempts failed; the message names the store and the last failure.
        """
        failed_at = longest_wait = 0.0
        while True:
            try:
                return attempt()
            except Transient as failure:
                limit = min(self._seconds, _FOREIGN_SECONDS) if failure.remedy else self._seconds
                failed_at = failed_at or time.monotonic()
                if time.monotonic() - failed_at >= limit:
                    if failure.remedy:
                        raise StoreError(self._store, str(failure), failure.remedy) from None
                    what = f"no answer for {self._seconds:g} s ({failure})"
                    raise StoreError(self._store, what) from None
                self._warn(failure, limit)
            if longest_wait:  # the second attempt follows at once
                time.sleep(random.uniform(0, longest_wait))
            longest_wait = min(2 * longest_wait or _FIRST_WAIT, _LONGEST_WAIT)

    def _warn(self, failure: Transient, limit: float) -> None:
        now = time.monotonic()
        if now - self._warned_at >= _SECONDS_BETWEEN_WARNINGS:
            self._warned_at = now
            logging.getLogger(__name__).warning(
                "%s: %s; trying again for up to %g s.", self._store, failure, limit
            )


def run_in_daemon_thread(request: Callable[[], T]) -> "Future[T]":
    """Start a request; Ctrl-C can end the program while it waits for a silent store."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(request())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result
