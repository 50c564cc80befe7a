"""Clients of object stores, with the credentials and settings of the stores' own tools."""

import json
import os
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from obstore.exceptions import BaseError
from obstore.store import GCSStore, HTTPStore, S3Store, from_url

from headct.errors import StoreError
from headct.stores.bucket_errors import describe
from headct.stores.retries import Foreign, Transient

if TYPE_CHECKING:  # exist only for type checkers
    from obstore.store import ClientConfig, RetryConfig

_READ_TIMEOUT = 20.0  # seconds
_LONGEST_REQUEST = 300.0  # seconds
_OBSTORE_RETRIES = 10.0  # seconds during which obstore repeats a request, with the same credentials
_GOOGLE = "https://storage.googleapis.com"
_READ_ONLY = "https://www.googleapis.com/auth/devstorage.read_only"
_RETRIED = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
UNLISTED_KEY = "an object's key has '//', '.', '..' or a control character"


def open_clients(url: str, patience: float) -> tuple[Any, Any]:
    """Return obstore's stores of a bucket, to read and to write.

    During an upload, the server is silent until all bytes have arrived.

    Args:
        url: of the bucket.
        patience: time limit of a request with its retries, seconds.

    Raises:
        StoreError: the settings cannot be used.
    """
    read_timeout = min(_READ_TIMEOUT, max(patience / 4, 1.0))
    timeout = min(_LONGEST_REQUEST, max(patience, 1.0))
    retry_timeout = timedelta(seconds=min(patience / 2, _OBSTORE_RETRIES))
    retries: RetryConfig = {"max_retries": 10, "retry_timeout": retry_timeout}
    clients: list[ClientConfig] = [
        {"timeout": timedelta(seconds=timeout), "read_timeout": timedelta(seconds=seconds)}
        for seconds in (read_timeout, timeout)
    ]
    try:
        reading, writing = (open_client(url, client, retries) for client in clients)
    except (BaseError, ValueError, OSError) as error:
        what = f"cannot be opened: {describe(error)}"
        raise StoreError(url, what, "check the settings of its client") from None
    return reading, writing


def open_client(url: str, client: "ClientConfig", retries: "RetryConfig") -> Any:
    """Return obstore's store of a bucket.

    Args:
        url: of the bucket.
        client: settings of its connections.
        retries: obstore's own retries.

    Raises:
        BaseError, ValueError, OSError: the settings cannot be used.
    """
    scheme, _, bucket = url.partition("://")
    if scheme in ("s3", "s3a"):
        config = _s3_config(client)
        return S3Store(bucket, client_options=client, retry_config=retries, **config)
    if scheme == "gs":
        config = _google_config(client)
        return GCSStore(bucket, client_options=client, retry_config=retries, **config)
    if scheme in ("http", "https"):
        client["allow_http"] = scheme == "http"
        return HTTPStore.from_url(url, client_options=client, retry_config=retries)
    return from_url(url, client_options=client, retry_config=retries)


def _s3_config(client: "ClientConfig") -> dict[str, Any]:
    config: dict[str, Any] = {}
    if endpoint := _s3_endpoint():
        config["endpoint"] = endpoint
        client["allow_http"] = endpoint.startswith("http://")
    if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_SKIP_SIGNATURE"):
        return config
    from obstore.auth.boto3 import Boto3CredentialProvider  # takes half a second to import

    try:  # a profile, single sign-on or a role
        provider = Boto3CredentialProvider()
    except ValueError:  # none: obstore asks the machine's metadata service
        return config
    return config | {"credential_provider": provider, **provider.config}


def _google_config(client: "ClientConfig") -> dict[str, Any]:
    client["default_headers"] = _google_headers()
    emulator = _google_emulator()
    if not emulator:
        return {}
    client["allow_http"] = emulator.startswith("http://")
    key = {"gcs_base_url": emulator, "disable_oauth": True}
    empty = {"client_email": "", "private_key": "", "private_key_id": ""}
    return {"service_account_key": json.dumps(key | empty)}


def _s3_endpoint() -> str | None:
    """Return the endpoint of an S3-compatible store; None for Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _google_emulator() -> str | None:
    """Return the endpoint of an emulator; None for Google's store."""
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if not emulator:
        return None
    return (emulator if "://" in emulator else f"http://{emulator}").rstrip("/")


def _google_headers() -> dict[str, str]:
    """Return a header with the billing project, for requester-pays buckets."""
    project = os.environ.get("GOOGLE_CLOUD_QUOTA_PROJECT")
    return {"x-goog-user-project": project} if project else {}


# boto3 lists keys that obstore cannot; Google Cloud Storage speaks S3's protocol, too.


def open_lister(url: str) -> Any:
    """Return a boto3 client that lists a bucket of S3 or Google Cloud Storage."""
    from botocore import UNSIGNED

    if url.startswith("gs://"):
        return _google_lister(url)
    region = os.environ.get("AWS_REGION")  # boto3 only reads AWS_DEFAULT_REGION
    settings: dict[str, Any] = {"region_name": region} if region else {}
    if os.environ.get("AWS_SKIP_SIGNATURE"):
        settings["signature_version"] = UNSIGNED
    return _boto3_client(_s3_endpoint(), **settings)


def _google_lister(url: str) -> Any:
    from botocore import UNSIGNED

    emulator = _google_emulator()
    lister = _boto3_client(emulator or _GOOGLE, signature_version=UNSIGNED, region_name="auto")
    headers = _google_headers() | ({} if emulator else _google_token(url))

    def add_headers(request: Any, **_: Any) -> None:
        for name, value in headers.items():
            request.headers[name] = value

    lister.meta.events.register("before-send.s3", add_headers)
    return lister


def _google_token(url: str) -> dict[str, str]:
    try:
        from google.auth import default
        from google.auth.transport.requests import Request
    except ImportError:
        remedy = "rename it, or install google-auth and requests to have it left out"
        raise StoreError(url, UNLISTED_KEY, remedy) from None
    credentials, _ = default(scopes=[_READ_ONLY])
    credentials.refresh(Request())
    return {"Authorization": f"Bearer {credentials.token}"}


def _boto3_client(endpoint: str | None, **settings: Any) -> Any:
    import boto3  # takes half a second to import
    from botocore.config import Config

    if endpoint:
        settings["s3"] = {"addressing_style": "path"}
    config = Config(connect_timeout=_READ_TIMEOUT, read_timeout=_READ_TIMEOUT, **settings)
    return boto3.client("s3", endpoint_url=endpoint, config=config)


def list_page(lister: Any, url: str, **parameters: Any) -> dict[str, Any]:
    """Return one page of a listing, as boto3's response.

    Args:
        lister: from `open_lister`.
        url: of the bucket.
        parameters: of S3's ListObjectsV2.

    Raises:
        StoreError: the store refuses the request.
        Transient: a retry may succeed.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    parameters["Bucket"] = url.partition("://")[2]
    if os.environ.get("AWS_REQUEST_PAYER"):
        parameters["RequestPayer"] = "requester"
    try:
        page: dict[str, Any] = lister.list_objects_v2(**parameters)
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        what = f"{status}, {error.response['Error']['Code']}"
        if 400 <= status < 500 and status not in _RETRIED:
            raise StoreError(url, what) from None
        raise Transient(what) from None
    except ResponseParserError:
        raise Foreign("the answer is not a list of objects", "check the endpoint") from None
    except BotoCoreError as error:
        raise Transient(type(error).__name__) from None
    return page
