"""Object stores: S3, Google Cloud Storage, Azure, and what speaks their protocols."""

import errno
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

import obstore
from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import GCSStore, HTTPStore, S3Store, from_url

from beam_pipeline.errors import StoreError
from beam_pipeline.storage.protocol import FileInfo
from beam_pipeline.storage.retries import Patience, Transient

if TYPE_CHECKING:  # these are not there at run time
    from obstore.store import ClientConfig, RetryConfig

T = TypeVar("T")

REMOTE_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "http", "https")

_PAGE = 1000  # objects a request lists
_SILENCE = 20.0  # seconds without a byte after which an answer is no longer waited for
_LONGEST_REQUEST = 300.0  # seconds
# Larger files are uploaded in parts, several at a time; of others nothing is left by a kill.
_SINGLE_PUT = 1 << 26
_PART = 1 << 24
_SPOOLED = 1 << 22  # bytes that are staged in memory

_STATUS = re.compile(r"status code: (\d{3} ?[A-Za-z ]*)")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_CAUSE = re.compile(r'message: "([^"]+)"')
# Time-outs, "too early" and "slow down" pass; other answers of 400 to 499 would be the same again.
_PASSING = frozenset({408, 425, 429})
_PASSING_CODES = ("RequestTimeout", "OperationAborted", "ConditionalRequestConflict")
_REDIRECT = "redirect"  # to another region or endpoint than the one that is set
_MISSING_BUCKETS = ("NoSuchBucket", "bucket does not exist", "ContainerNotFound")
_RANGE_NOT_SATISFIABLE = 416


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
        pages = _Pages(self._reading, folder)
        last = b""
        while found := self._request(pages.next):
            for item in found:
                source = item["path"][start:]
                hidden = any(part.startswith(".") for part in source.split("/"))
                if not source or hidden or self._is_marker(item):
                    continue
                if source.encode() <= last:
                    raise StoreError(self._url, "does not list objects in the order of their keys")
                last = source.encode()
                yield FileInfo(source, item["size"], _version(item))

    def _is_marker(self, item: Any) -> bool:
        """Whether an object is what browsers of buckets make of an empty folder.

        Its key ends in a slash, which the library does not show: no object has the key shown.
        """
        return item["size"] == 0 and self.info(item["path"]) is None

    def info(self, path: str) -> FileInfo | None:
        """See Store."""
        try:
            found = self._request(lambda: obstore.head(self._reading, path))
        except FileNotFoundError:
            return None
        return FileInfo(path, found["size"], _version(found))

    def is_folder(self, path: str) -> bool:
        """See Store."""
        return bool(self._request(_Pages(self._reading, path).next)) or not path

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
                if not start and _status(error) == _RANGE_NOT_SATISFIABLE:
                    return b""  # an object without content has no range at all
                raise

        if length == 0:  # the library refuses to ask for nothing
            return b""
        return self._request(whole if length is None and not start else part)

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

    def remove_partial(self, folder: str) -> None:
        """See Store. An object is there when it is whole."""

    def remove(self, path: str) -> None:
        """See Store."""
        self._delete([path])
        while found := self._request(_Pages(self._reading, path).next):
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

    def _request(self, action: Callable[[], T]) -> T:
        return self._patience.request(lambda: self._attempt(action))

    def _attempt(self, action: Callable[[], T]) -> T:
        """Do a request; what the library raises becomes an OSError, Transient or a StoreError."""
        try:
            return action()
        except InvalidPathError as error:
            raise StoreError(self._url, f"an object has no usable key: {_cause(error)}") from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise StoreError(self._url, f"access denied ({_cause(error)})") from None
        except (NotFoundError, FileNotFoundError) as error:
            if _says(error, _MISSING_BUCKETS):
                raise StoreError(self._url, "there is no such bucket") from None
            if "<html" in str(error).lower():  # of what stands before the store
                raise Transient(_cause(error)) from None
            raise FileNotFoundError(errno.ENOENT, "No such object") from None
        except (BaseError, OSError) as error:
            status = _status(error)
            if status == _RANGE_NOT_SATISFIABLE:
                raise OSError(errno.EINVAL, "Shorter than it was listed") from None
            refused = 400 <= status < 500 and status not in _PASSING
            if (refused and not _says(error, _PASSING_CODES)) or _REDIRECT in str(error):
                raise StoreError(self._url, _cause(error)) from None
            raise Transient(_cause(error)) from None


class _Pages:
    """A listing, a page at a time; after a failure it continues behind the last object seen."""

    def __init__(self, store: Any, folder: str) -> None:
        self._store, self._folder = store, folder
        self._pages: Any = None
        self._last: str | None = None

    def next(self) -> list[Any]:
        """The next objects; none at the end."""
        if self._pages is None:
            prefix = self._folder or None
            pages = obstore.list(self._store, prefix, offset=self._last, chunk_size=_PAGE)
            self._pages = iter(pages)
        pages, self._pages = self._pages, None  # which stays so if the request fails
        found = list(next(pages, []))
        self._pages = pages
        # The greatest, not the last: a folder's marker comes in the place of its whole key.
        self._last = max([self._last or "", *(item["path"] for item in found)], key=str.encode)
        return found


def _version(item: Any) -> str:
    return str(item.get("version") or item.get("e_tag") or item.get("last_modified") or "")


def _says(error: BaseException, signs: Sequence[str]) -> bool:
    return any(sign in str(error) for sign in signs)


def _status(error: BaseException) -> int:
    """The HTTP status of an answer, 0 where there was none."""
    found = _STATUS.search(str(error))
    return int(found[1][:3]) if found else 0


def _cause(error: BaseException) -> str:
    """What happened, in a few words; the library's message quotes the object's whole address."""
    text = str(error)
    if found := _STATUS.search(text):
        code = _CODE.search(text)
        return f"{found[1].strip()}, {code[1]}" if code else found[1].strip()
    if found := _CAUSE.search(text):
        return found[1]
    if "timed out" in text or "TimedOut" in text:
        return "time-out"
    return text.partition("\n")[0].rpartition(" - ")[2].rpartition(": ")[2] or type(error).__name__


@lru_cache(maxsize=32)
def find_bucket(url: str, patience: float) -> ObjectStore:
    """A bucket, with the credentials and settings that its own tools would use.

    Raises:
        StoreError: the settings cannot be used.
    """
    silence = min(_SILENCE, max(patience / 4, 1.0))
    longest = min(_LONGEST_REQUEST, max(patience, 1.0))
    within = timedelta(seconds=min(patience / 2, 60.0))  # then with fresh credentials
    retries: RetryConfig = {"max_retries": 10, "retry_timeout": within}
    clients: list[ClientConfig] = [
        {"timeout": timedelta(seconds=longest), "read_timeout": timedelta(seconds=seconds)}
        for seconds in (silence, longest)
    ]
    try:
        reading, writing = (_open(url, client, retries) for client in clients)
    except (BaseError, ValueError, OSError) as error:
        raise StoreError(url, f"cannot be opened: {_cause(error)}") from None
    return ObjectStore(url, reading, writing, patience)


def _open(url: str, client: "ClientConfig", retries: "RetryConfig") -> Any:
    scheme, _, bucket = url.partition("://")
    if scheme in ("s3", "s3a"):
        return _open_s3(bucket, client, retries)
    if scheme == "gs":
        return _open_gcs(bucket, client, retries)
    if scheme in ("http", "https"):
        client["allow_http"] = scheme == "http"
        return HTTPStore.from_url(url, client_options=client, retry_config=retries)
    return from_url(url, client_options=client, retry_config=retries)


def _open_s3(bucket: str, client: "ClientConfig", retries: "RetryConfig") -> S3Store:
    config: dict[str, Any] = {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        config["endpoint"] = endpoint
        client["allow_http"] = endpoint.startswith("http://")
    if not os.environ.get("AWS_ACCESS_KEY_ID") and not os.environ.get("AWS_SKIP_SIGNATURE"):
        config |= _s3_profile()
    return S3Store(bucket, client_options=client, retry_config=retries, **config)


def _s3_profile() -> dict[str, Any]:
    """The credentials of a profile, of single sign-on, or of a role, as boto3 finds them."""
    from obstore.auth.boto3 import Boto3CredentialProvider  # loads for half a second

    try:
        provider = Boto3CredentialProvider()
    except ValueError:  # there are none: the library looks for those of a machine of AWS
        return {}
    return {"credential_provider": provider, **provider.config}


def _open_gcs(bucket: str, client: "ClientConfig", retries: "RetryConfig") -> GCSStore:
    config: dict[str, Any] = {}
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if emulator:
        base = emulator if "://" in emulator else f"http://{emulator}"
        client["allow_http"] = base.startswith("http://")
        key = {"gcs_base_url": base.rstrip("/"), "disable_oauth": True}
        empty = {"client_email": "", "private_key": "", "private_key_id": ""}
        config["service_account_key"] = json.dumps(key | empty)
    return GCSStore(bucket, client_options=client, retry_config=retries, **config)
