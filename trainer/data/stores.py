"""Object stores that shards are read from: S3, Google Cloud Storage, Azure, web servers.

Credentials and endpoints are those that each store's own tools use. What may pass (5xx, 429, a
connection that breaks, an answer that is cut or stops) is tried again until patience is at an
end: by the obstore library within a request, and around it with the credentials valid then.

Requests are asynchronous, so that Ctrl-C ends a program that waits for a store that is silent.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
import tenacity
from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import GCSStore, HTTPStore, S3Store, from_url

from headct.errors import HeadctError, StorageError

if TYPE_CHECKING:  # these are not there at run time
    from obstore.store import ClientConfig, RetryConfig

T = TypeVar("T")

# Seconds.
_SILENCE = 20.0  # without a byte, after which an answer is no longer waited for
_LONGEST_REQUEST = 300.0
_LONGEST_WAIT = 15.0  # between two attempts
_FOREIGN = 20.0  # for which answers of another service are waited out
_WITHIN = 10.0  # for which obstore repeats a request, with the same credentials
_DROPPING = 0.2  # for requests that are under way

_STATUS = re.compile(r"status code: (\d{3} ?[A-Za-z ]*)")
_CODE = re.compile(r"<Code>([\w.]+)</Code>")
# Time-outs, "too early" and "slow down" pass; other answers of 400 to 499 would be the same again.
PASSING = frozenset({408, 425, 429})
_MISSING_BUCKETS = ("NoSuchBucket", "bucket does not exist", "ContainerNotFound")
_REDIRECT = "Received redirect"  # to another region or endpoint than the one that is set
_RANGE_NOT_SATISFIABLE = 416
# Signs of an answer about one object, and of one that no store gives; and what to call them.
_KEPT_BACK = {
    "InvalidObjectState": "archived",
    "BlobArchived": "archived",
    "BlobBeingRehydrated": "archived",
    "a form of Server Side Encryption": "encrypted with a key of the customer",
    "CustomerEncryptionKey": "encrypted with a key of the customer",
    "BlobUsesCustomerSpecifiedEncryption": "encrypted with a key of the customer",
    "KMS.": "encrypted with a key that cannot be used",
}
_NO_ANSWER = {
    "NotPartial": "the answer is not the part of a file that was asked for",
    "MissingContentLength": "the answer does not tell its length",
    "InvalidCertificate": "the server's TLS certificate is not valid",
    "InvalidMessage": "the server does not speak TLS",
    "UnexpectedMessage": "the server does not speak HTTP",
    "Parse(": "the server does not speak HTTP",
    "Name or service not known": "the server's name is not known",
}

_READABLE = "must name an account that may read it"
_AZURE = f"AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY {_READABLE}"
_ADVICE = {
    "s3": f"AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, {_READABLE}",
    "s3a": f"AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, {_READABLE}",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`, "
    f"{_READABLE}",
    "http": "the server must let everybody read it",
    "https": "the server must let everybody read it",
}


def run_requests(requests: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that asks buckets, and returns what it returns.

    What was under way when it ended early, for instance by Ctrl-C, is dropped in threads of the
    obstore library, which complain on stderr if Python has ended by then.
    """
    try:
        return asyncio.run(requests)
    except (KeyboardInterrupt, HeadctError):
        time.sleep(_DROPPING)
        raise


class Transient(Exception):
    """A request failed in a way that may pass; the message says how, in a few words."""


class Foreign(Transient):
    """The answer is none of a store: a web page, another service. It may pass, and soon."""


@dataclass(frozen=True)
class Bucket:
    """A bucket or container.

    Attributes:
        url: of the bucket, for messages.
        store: obstore's.
        patience: seconds after which a request that fails is given up.
        tell: shows a line, at every attempt that fails.
    """

    url: str
    store: Any
    patience: float
    tell: Callable[[str], None]

    async def read_part(self, key: str, start: int, length: int) -> bytes:
        """Bytes of an object; fewer than `length` where it ends.

        Raises:
            FileNotFoundError: there is no such object.
            StorageError: the store fails, or refuses access.
        """

        async def attempt() -> bytes:
            try:
                found = await obstore.get_range_async(self.store, key, start=start, length=length)
                return bytes(found)
            except BaseError as error:
                if status(error) == _RANGE_NOT_SATISFIABLE:
                    return b""
                raise

        return await self.request(attempt)

    async def version(self, key: str) -> tuple[int, str]:
        """An object's bytes, and a text that is another one whenever its content changes.

        Raises:
            FileNotFoundError: there is no such object.
            StorageError: the store fails, or refuses access.
        """
        found = await self.request(lambda: obstore.head_async(self.store, key))
        named = found.get("version") or found.get("e_tag") or found.get("last_modified")
        return found["size"], str(named or "")

    async def request(self, action: Callable[[], Awaitable[T]]) -> T:
        """The result of an action, tried again while it fails in ways that may pass.

        The waits grow, and are random, so that many readers do not come back all at once.
        """
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Transient),
            wait=tenacity.wait_random_exponential(multiplier=0.25, max=_LONGEST_WAIT),
            stop=self.is_over,
            before_sleep=self.say_why,
            reraise=True,
        )
        try:
            return await retrying(self.attempt, action)
        except Foreign as failure:
            raise StorageError(
                f"{self.url}: {failure}; check the endpoint and what stands between it and this"
                " machine"
            ) from None
        except Transient as failure:
            raise StorageError(
                f"{self.url}: no answer for {self.patience:g} s ({failure}); the same command"
                " resumes"
            ) from None

    def is_over(self, state: tenacity.RetryCallState) -> bool:
        """Whether a request that failed is given up."""
        return (state.seconds_since_start or 0.0) >= self.longest(_failure(state))

    def longest(self, failure: BaseException | None) -> float:
        """Seconds for which requests are repeated that fail so."""
        return min(self.patience, _FOREIGN) if isinstance(failure, Foreign) else self.patience

    def say_why(self, state: tenacity.RetryCallState) -> None:
        """Shows what failed."""
        failure = _failure(state)
        self.tell(f"{self.url}: {failure}; trying again for up to {self.longest(failure):g} s")

    async def attempt(self, action: Callable[[], Awaitable[T]]) -> T:
        """Does a request; what the library raises becomes one of three kinds of error.

        Raises:
            FileNotFoundError: there is no such object.
            Transient: it may pass.
            StorageError: it would be the same again.
        """
        try:
            return await action()
        except (InvalidPathError, ValueError):
            raise StorageError(
                f"{self.url}: the path in it cannot be the key of an object"
            ) from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            _refuse_kept_back(self.url, error)
            raise StorageError(
                f"{self.url}: access denied ({cause(error)}); {self.advice}"
            ) from None
        except (NotFoundError, FileNotFoundError) as error:
            if says(error, _MISSING_BUCKETS):
                raise StorageError(
                    f"{self.url}: there is no such bucket; --shards must name one that exists"
                ) from None
            if "<html" in str(error).lower():  # of what stands before the store
                raise Foreign(f"a web page instead of an answer ({cause(error)})") from None
            raise FileNotFoundError from None
        except (BaseError, OSError) as error:
            _refuse_kept_back(self.url, error)
            if not status(error) and (known := meaning(error, _NO_ANSWER)):
                raise Foreign(known) from None
            refused = 400 <= status(error) < 500 and status(error) not in PASSING
            if refused or _REDIRECT in str(error):
                raise StorageError(f"{self.url}: {cause(error)}; {self.advice}") from None
            raise Transient(cause(error)) from None

    @property
    def advice(self) -> str:
        """What to do where access is denied."""
        return _ADVICE.get(self.url.partition("://")[0], _AZURE)


def status(error: BaseException) -> int:
    """The HTTP status of an answer, 0 where there was none."""
    found = _STATUS.search(str(error))
    return int(found[1][:3]) if found else 0


def says(error: BaseException, signs: tuple[str, ...]) -> bool:
    """Whether a message contains one of some texts."""
    return any(sign in str(error) for sign in signs)


def meaning(error: BaseException, signs: dict[str, str]) -> str:
    """What the first sign in a message means; empty if there is none."""
    return next((known for sign, known in signs.items() if sign in str(error)), "")


def _refuse_kept_back(url: str, error: BaseException) -> None:
    """Raise StorageError if the store has the file, and will not hand it out."""
    answer = _STATUS.search(str(error))
    known = meaning(error, _KEPT_BACK)
    if answer and known:
        raise StorageError(
            f"{url}: a file of the shards is {known} ({cause(error)}); restore it first"
        ) from None


def _failure(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None


def cause(error: BaseException) -> str:
    """What happened, in a few words; the library's message is of many lines."""
    text = str(error)
    if found := _STATUS.search(text):
        code = _CODE.search(text)
        return f"{found[1].strip()}, {code[1]}" if code else found[1].strip()
    if "timed out" in text or "TimedOut" in text:
        return "time-out"
    first = text.partition("\n")[0]
    return first.rpartition(" - ")[2].rpartition(": ")[2] or type(error).__name__


def open_bucket(url: str, patience: float, tell: Callable[[str], None]) -> Bucket:
    """Opens a bucket, with the credentials and settings that its own tools would use.

    Raises:
        StorageError: the settings cannot be used.
    """
    silence = min(_SILENCE, max(patience / 4, 1.0))
    longest = min(_LONGEST_REQUEST, max(patience, 1.0))
    client: ClientConfig = {
        "timeout": timedelta(seconds=longest),
        "read_timeout": timedelta(seconds=silence),
    }
    within = timedelta(seconds=min(patience / 2, _WITHIN))
    retries: RetryConfig = {"max_retries": 10, "retry_timeout": within}
    try:
        store = _make_store(url, client, retries)
    except (BaseError, ValueError, OSError) as error:
        raise StorageError(f"{url}: cannot be opened ({cause(error)})") from None
    return Bucket(url, store, patience, tell)


def _make_store(url: str, client: ClientConfig, retries: RetryConfig) -> Any:
    """Makes obstore's store of a bucket's URL."""
    scheme, _, bucket = url.partition("://")
    if scheme in ("s3", "s3a"):
        return _make_s3(bucket, client, retries)
    if scheme == "gs":
        return _make_gcs(bucket, client, retries)
    if scheme in ("http", "https"):
        client["allow_http"] = scheme == "http"
        return HTTPStore.from_url(url, client_options=client, retry_config=retries)
    return from_url(url, client_options=client, retry_config=retries)


def _make_s3(bucket: str, client: ClientConfig, retries: RetryConfig) -> S3Store:
    """Makes a store of S3; obstore reads AWS_* itself, but neither profiles nor some endpoints."""
    config: dict[str, Any] = {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        config["endpoint"] = endpoint
        client["allow_http"] = endpoint.startswith("http://")
    if not os.environ.get("AWS_ACCESS_KEY_ID") and not os.environ.get("AWS_SKIP_SIGNATURE"):
        config |= _find_s3_profile()
    return S3Store(bucket, client_options=client, retry_config=retries, **config)


def _find_s3_profile() -> dict[str, Any]:
    """The credentials of a profile, of single sign-on, or of a role, as boto3 finds them."""
    from obstore.auth.boto3 import Boto3CredentialProvider  # loads for half a second

    try:
        provider = Boto3CredentialProvider()
    except ValueError:  # there are none: obstore looks for those of a machine of AWS
        return {}
    return {"credential_provider": provider, **provider.config}


def _make_gcs(bucket: str, client: ClientConfig, retries: RetryConfig) -> GCSStore:
    """Makes a store of Google Cloud Storage, or of its emulator (STORAGE_EMULATOR_HOST)."""
    config: dict[str, Any] = {}
    project = os.environ.get("GOOGLE_CLOUD_QUOTA_PROJECT")  # that pays, where requesters do
    client["default_headers"] = {"x-goog-user-project": project} if project else {}
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if emulator:
        base = emulator if "://" in emulator else f"http://{emulator}"
        client["allow_http"] = base.startswith("http://")
        key = {"gcs_base_url": base.rstrip("/"), "disable_oauth": True}
        empty = {"client_email": "", "private_key": "", "private_key_id": ""}
        config["service_account_key"] = json.dumps(key | empty)
    return GCSStore(bucket, client_options=client, retry_config=retries, **config)
