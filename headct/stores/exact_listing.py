"""Listings with the exact keys of objects, by boto3: of S3, and of Google Cloud Storage.

Both speak the same protocol. Credentials and endpoints are those that `remote` uses.
"""

import os
from http import HTTPStatus
from typing import Any

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from headct.errors import StoreError
from headct.stores.clients import google_emulator, google_headers, s3_endpoint
from headct.stores.retries import Foreign, Transient

_PAGE = 1000  # objects a request lists
_TIMEOUT = 20.0  # seconds
_GOOGLE = "https://storage.googleapis.com"
_READ_ONLY = "https://www.googleapis.com/auth/devstorage.read_only"
_PASSING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})


class ExactListing:
    """The rest of a listing.

    Args:
        url: of the bucket.
        folder: whose objects are wanted; empty for the whole bucket.
        last: the key to begin behind; None to begin with the first.
    """

    def __init__(self, url: str, folder: str, last: str | None) -> None:
        self._url = url
        self._last = last or ""
        self._asked: dict[str, Any] = {"Bucket": url.partition("://")[2], "MaxKeys": _PAGE}
        self._asked |= {"Prefix": f"{folder}/"} if folder else {}
        if os.environ.get("AWS_REQUEST_PAYER"):
            self._asked["RequestPayer"] = "requester"
        self._client = _google(url) if url.startswith("gs://") else _amazon()
        self._ended = False

    def next(self) -> list[dict[str, Any]]:
        """The next objects, as obstore describes them; none at the end."""
        if self._ended:
            return []
        found = self._ask()
        items = [
            {"path": each["Key"], "size": each["Size"], "e_tag": each.get("ETag")}
            for each in found.get("Contents", ())
        ]
        self._last = items[-1]["path"] if items else self._last
        self._ended = not found.get("IsTruncated")
        return items

    def _ask(self) -> Any:
        try:
            return self._client.list_objects_v2(**self._asked, StartAfter=self._last)
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            what = f"{status}, {error.response['Error']['Code']}"
            if 400 <= status < 500 and status not in _PASSING:
                raise StoreError(self._url, what) from None
            raise Transient(what) from None
        except ResponseParserError:
            raise Foreign("the answer is no list of objects", "check the endpoint") from None
        except BotoCoreError as error:
            raise Transient(type(error).__name__) from None


def _client(endpoint: str | None, **settings: Any) -> Any:
    if endpoint:
        settings["s3"] = {"addressing_style": "path"}
    config = Config(connect_timeout=_TIMEOUT, read_timeout=_TIMEOUT, **settings)
    return boto3.client("s3", endpoint_url=endpoint, config=config)


def _amazon() -> Any:
    region = os.environ.get("AWS_REGION")  # boto3 reads AWS_DEFAULT_REGION alone
    settings: dict[str, Any] = {"region_name": region} if region else {}
    if os.environ.get("AWS_SKIP_SIGNATURE"):
        settings["signature_version"] = UNSIGNED
    return _client(s3_endpoint(), **settings)


def _google(url: str) -> Any:
    emulator = google_emulator()
    client = _client(emulator or _GOOGLE, signature_version=UNSIGNED, region_name="auto")
    headers = google_headers() | ({} if emulator else _google_token(url))

    def add(request: Any, **_: Any) -> None:
        for name, value in headers.items():
            request.headers[name] = value

    client.meta.events.register("before-send.s3", add)
    return client


def _google_token(url: str) -> dict[str, str]:
    try:
        from google.auth import default
        from google.auth.transport.requests import Request
    except ImportError:
        what = "an object's key has '//', '.', '..' or a control character"
        remedy = "rename it, or install google-auth and requests to have it left out"
        raise StoreError(url, what, remedy) from None
    credentials, _ = default(scopes=[_READ_ONLY])
    credentials.refresh(Request())
    return {"Authorization": f"Bearer {credentials.token}"}
