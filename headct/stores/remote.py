"""Object stores: S3, Google Cloud Storage, Azure, and what speaks their protocols."""

import io
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError

from headct.errors import StoreError
from headct.reasons import ObjectFault, Reason
from headct.stores.answers import RANGE_NOT_SATISFIABLE, cause, failure_of, status
from headct.stores.clients import open_store
from headct.stores.listing import Pages
from headct.stores.object_keys import is_usable, why_unusable
from headct.stores.protocol import FileInfo
from headct.stores.retries import Patience, run_in_daemon_thread

if TYPE_CHECKING:  # these are not there at run time
    from obstore.store import ClientConfig, RetryConfig

T = TypeVar("T")

_SILENCE = 20.0  # seconds without a byte after which an answer is no longer waited for
_LONGEST_REQUEST = 300.0  # seconds
_WITHIN = 10.0  # seconds that the library repeats a request itself, with the same credentials
# Larger files are uploaded in parts, several at a time; of others nothing is left by a kill.
_SINGLE_PUT = 1 << 26
_PART = 1 << 24
_NOT_IMPLEMENTED = 501  # a store without conditional requests
_NO_RANGES = "Range request not supported"  # as the library says of a web server
_SPOOLED = 1 << 22  # bytes that are staged in memory


class ObjectStore:
    """A bucket, or a container.

    The obstore library repeats what fails within a request; `Patience` begins again with what is
    left, with credentials that are valid then.

    Args:
        url: of the bucket, for messages.
        reading: the library's store for requests that are answered soon.
        writing: the same for uploads, in which the server is silent until all has arrived.
        patience: seconds after which a request that fails is given up.
    """

    # The way there and back takes as long as converting a few dozen slices.
    readers = 32
    read_together = 1
    ranged_readers = 128

    def __init__(self, url: str, reading: Any, writing: Any, patience: float) -> None:
        self._url = url
        self._reading = reading
        self._writing = writing
        self._patience = Patience(url, patience)

    def list(self, folder: str) -> Iterator[FileInfo]:
        """See Store. Markers of folders, which have no content, are no files."""
        start = len(folder) + 1 if folder else 0
        pages = Pages(self._reading, folder, self._url)
        last = b""
        while found := self._request(pages.next):
            for item in found:
                source = item["path"][start:]
                if not source or _is_hidden(source) or self._is_marker(item):
                    continue
                if source.encode() <= last:
                    what = "does not list objects in the order of their keys"
                    raise StoreError(self._url, what, "copy the input elsewhere")
                last = source.encode()
                yield FileInfo(source, item["size"], _version(item))

    def _is_marker(self, item: Any) -> bool:
        """Whether an object is what browsers of buckets make of an empty folder.

        Its key ends in a slash, which the library does not show: no object has the key shown.
        """
        if item["size"] or not is_usable(item["path"]):
            return not item["size"] and str(item["path"]).endswith("/")
        return self.info(item["path"]) is None

    def info(self, path: str) -> FileInfo | None:
        """See Store."""
        if not is_usable(path):
            return None
        try:
            found = self._request(lambda: obstore.head(self._reading, path))
        except FileNotFoundError:
            return None
        return FileInfo(path, found["size"], _version(found))

    def check_reachable(self, path: str) -> None:
        """See Store. A bucket that is gone is answered in another way than an object."""

    def is_folder(self, path: str) -> bool:
        """See Store."""
        return bool(self._request(Pages(self._reading, path, self._url).next)) or not path

    def entries(self, folder: str) -> set[str]:
        """See Store."""
        found = self._request(lambda: obstore.list_with_delimiter(self._reading, folder or None))
        folders = {f"{path.rpartition('/')[2]}/" for path in found["common_prefixes"]}
        return folders | {item["path"].rpartition("/")[2] for item in found["objects"]}

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """See Store."""

        def whole() -> bytes:
            return bytes(obstore.get(self._reading, path).bytes())

        def part() -> bytes:
            try:
                return bytes(obstore.get_range(self._reading, path, start=start, length=length))
            except BaseError as error:
                if not start and status(error) == RANGE_NOT_SATISFIABLE:
                    return b""  # an object without content has no range at all
                if _NO_RANGES in str(error) and self._url.startswith("http"):
                    return whole()[start:][:length]  # a web server need not know of ranges
                raise

        if not is_usable(path):
            raise ObjectFault(Reason.UNUSABLE_KEY, why_unusable(path))
        if length == 0:  # the library refuses to ask for nothing
            return b""
        try:
            return self._request(whole if length is None and not start else part, reading=True)
        except FileNotFoundError:
            if self._url.startswith("http"):  # a web server lists nothing
                raise
            markers = self._request(Pages(self._reading, path, self._url).next)
            if any(item["path"].rstrip("/") == path for item in markers):
                raise ObjectFault(Reason.UNUSABLE_KEY, why_unusable(f"{path}/")) from None
            raise

    def open(self, path: str) -> BinaryIO:
        """See Store."""
        return io.BytesIO(self.read(path))

    @contextmanager
    def create(self, path: str, *, durable: bool) -> Iterator[BinaryIO]:
        """See Store. It is staged in a temporary file that no kill leaves behind, and uploaded."""
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
        """See Store."""

        def attempt() -> bool:
            try:
                obstore.put(self._writing, path, data, mode="create")
            except AlreadyExistsError:
                return False
            except (NotSupportedError, NotImplementedError):
                return unconditionally()
            except BaseError as error:
                if status(error) != _NOT_IMPLEMENTED:
                    raise
                return unconditionally()
            return True

        def unconditionally() -> bool:
            obstore.put(self._writing, path, data)
            return True

        return self._request(attempt)

    def remove_partial(self, folder: str) -> None:
        """See Store. An object is there when it is whole."""

    def remove(self, path: str) -> None:
        """See Store."""
        self._delete([path])
        while found := self._request(Pages(self._reading, path, self._url).next):
            self._delete([item["path"] for item in found])

    def _delete(self, paths: Sequence[str]) -> None:
        def attempt() -> None:
            try:
                obstore.delete(self._writing, paths)
            except FileNotFoundError:
                if len(paths) > 1:  # an attempt before this one had begun
                    for path in paths:
                        self._delete([path])

        self._request(attempt)

    def _request(self, action: Callable[[], T], *, reading: bool = False) -> T:
        """The result of a request; what the library raises becomes what `failure_of` makes of it.

        Args:
            action: the request.
            reading: whether it is for an object's bytes.
        """

        def attempt() -> T:
            try:
                if threading.current_thread() is threading.main_thread():
                    return run_in_daemon_thread(action).result()
                return action()
            except (BaseError, OSError) as error:
                raise failure_of(error, self._url, reading=reading) from None

        return self._patience.request(attempt)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") and part.strip(".") for part in path.split("/"))


def _version(item: Any) -> str:
    return str(item.get("version") or item.get("e_tag") or item.get("last_modified") or "")


@lru_cache(maxsize=32)
def find_bucket(url: str, patience: float) -> ObjectStore:
    """A bucket, with the credentials and settings that its own tools would use.

    Raises:
        StoreError: the settings cannot be used.
    """
    silence = min(_SILENCE, max(patience / 4, 1.0))
    longest = min(_LONGEST_REQUEST, max(patience, 1.0))
    within = timedelta(seconds=min(patience / 2, _WITHIN))
    retries: RetryConfig = {"max_retries": 10, "retry_timeout": within}
    clients: list[ClientConfig] = [
        {"timeout": timedelta(seconds=longest), "read_timeout": timedelta(seconds=seconds)}
        for seconds in (silence, longest)
    ]
    try:
        reading, writing = (open_store(url, client, retries) for client in clients)
    except (BaseError, ValueError, OSError) as error:
        what = f"cannot be opened: {cause(error)}"
        raise StoreError(url, what, "check the settings of its client") from None
    return ObjectStore(url, reading, writing, patience)
