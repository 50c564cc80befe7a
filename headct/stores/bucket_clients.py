"""Clients of object stores, with the settings of the stores' own tools, and their failures."""

import errno
import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import GCSStore, HTTPStore, S3Store, from_url

from headct.errors import RESUMES, ObjectRefused, StoreError
from headct.reasons import ObjectFault, Reason
from headct.stores.protocol import Transient

_READ_TIMEOUT = 20.0  # seconds
_LONGEST_REQUEST = 300.0  # seconds
_OBSTORE_RETRIES = 10.0  # seconds during which obstore repeats a request, with the same credentials
_ASK_AGAIN = timedelta(minutes=30)  # as in obstore's own provider, which wants boto3
_GOOGLE = "https://storage.googleapis.com"
_READ_ONLY = "https://www.googleapis.com/auth/devstorage.read_only"
_UNLISTED_KEY = "an object's key has '//', '.', '..' or a control character"
# Objects, each with path, size, and e_tag, version or last_modified, as in obstore.
Page = list[dict[str, Any]]


def open_client(url: str, patience: float, *, writing: bool = False) -> Any:
    """Return obstore's store of a bucket.

    Args:
        url: of the bucket.
        patience: time limit of a request with its retries, seconds.
        writing: whether to upload: the server is silent until all bytes have arrived.

    Raises:
        StoreError: the settings cannot be used.
    """
    scheme, _, bucket = url.partition("://")
    timeout = min(_LONGEST_REQUEST, max(patience, 1.0))
    read_timeout = timeout if writing else min(_READ_TIMEOUT, max(patience / 4, 1.0))
    client: dict[str, Any] = {
        "timeout": timedelta(seconds=timeout),
        "read_timeout": timedelta(seconds=read_timeout),
        "allow_http": scheme != "https",  # where an endpoint is set; the defaults are https
    }
    seconds = min(patience / 2, _OBSTORE_RETRIES)
    retries = {"max_retries": 10, "retry_timeout": timedelta(seconds=seconds)}
    options: Any = {"client_options": client, "retry_config": retries}
    try:
        if scheme in ("s3", "s3a"):
            return S3Store(bucket, **options, **_aws_credentials())
        if scheme == "gs":
            client["default_headers"] = _google_headers()
            return GCSStore(bucket, **options, **_google_emulator())
        if scheme in ("http", "https"):
            return HTTPStore.from_url(url, **options)
        return from_url(url, **options)
    except (BaseError, ValueError, OSError) as error:
        what = f"cannot be opened: {describe(error)}"
        raise StoreError(url, what, "check the settings of its client") from None


def _google_headers() -> dict[str, str]:
    """Return a header with the project that pays, for requester-pays buckets."""
    project = os.environ.get("GOOGLE_CLOUD_QUOTA_PROJECT")
    return {"x-goog-user-project": project} if project else {}


def _google_emulator() -> dict[str, Any]:
    url = _google_emulator_url()
    if not url:
        return {}
    key = {"client_email": "", "private_key": "", "private_key_id": ""}
    return {"service_account_key": json.dumps(key | {"gcs_base_url": url, "disable_oauth": True})}


def _google_emulator_url() -> str:
    host = os.environ.get("STORAGE_EMULATOR_HOST", "")
    return (host if not host or "://" in host else f"http://{host}").rstrip("/")


def _aws_credentials() -> dict[str, Any]:
    """Return the options of a profile, single sign-on or a role; obstore finds all others."""
    if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_SKIP_SIGNATURE"):
        return {}
    from botocore.session import Session  # takes half a second to import

    session = Session()
    credentials = session.get_credentials()
    if credentials is None:  # obstore asks the machine's metadata service
        return {}

    def provide() -> dict[str, Any]:
        found = credentials.get_frozen_credentials()  # renewed, if they expire
        return {
            "access_key_id": found.access_key,
            "secret_access_key": found.secret_key,
            "token": found.token,
            "expires_at": datetime.now(UTC) + _ASK_AGAIN,
        }

    region = session.get_config_variable("region")
    return {"credential_provider": provide, **({"region": region} if region else {})}


# Any keys: obstore reads keys as paths. Google Cloud Storage speaks S3's protocol, too.


def list_any_keys(url: str, folder: str, last: str) -> Iterator[Page]:
    """Yield the objects of S3 or Google Cloud Storage behind the last one, in pages, by botocore.

    Raises:
        StoreError: the store refuses the listing, or its credentials are not found.
        Transient: a retry may succeed.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # takes half a second to import

    wanted = {"Bucket": url.partition("://")[2], "StartAfter": last}
    if folder:
        wanted["Prefix"] = f"{folder}/"
    if os.environ.get("AWS_REQUEST_PAYER"):
        wanted["RequestPayer"] = "requester"
    try:
        lister = _google_lister(url) if url.startswith("gs://") else _aws_lister()
        for answer in lister.get_paginator("list_objects_v2").paginate(**wanted):
            page = [
                {"path": entry["Key"], "size": entry["Size"], "e_tag": entry.get("ETag")}
                for entry in answer.get("Contents", ())
            ]
            if page:
                yield page
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        what = f"{status}, {error.response['Error']['Code']}"
        if _is_permanent(status):
            raise StoreError(url, what) from None
        raise Transient(what) from None
    except BotoCoreError as error:
        raise Transient(type(error).__name__) from None


def _lister(*, signed: bool, region: str | None, endpoint: str | None = None) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.session import Session

    config = Config(
        connect_timeout=_READ_TIMEOUT,
        read_timeout=_READ_TIMEOUT,
        region_name=region,
        signature_version=None if signed else UNSIGNED,
        s3={"addressing_style": "path"},
    )
    return Session().create_client("s3", endpoint_url=endpoint, config=config)


def _aws_lister() -> Any:
    region = os.environ.get("AWS_REGION")  # botocore only reads AWS_DEFAULT_REGION
    return _lister(signed=not os.environ.get("AWS_SKIP_SIGNATURE"), region=region)


def _google_lister(url: str) -> Any:
    emulator = _google_emulator_url()
    is_anonymous = emulator or os.environ.get("GOOGLE_SKIP_SIGNATURE")
    credentials = None if is_anonymous else _google_credentials(url)

    def add_headers(request: Any, **_: Any) -> None:
        request.headers.update(_google_headers())
        if credentials:
            _authorize(credentials, request)

    lister = _lister(signed=False, region="auto", endpoint=emulator or _GOOGLE)
    lister.meta.events.register("before-send.s3", add_headers)
    return lister


def _google_credentials(url: str) -> Any:
    """Return the credentials that obstore finds."""
    try:
        from google.auth import default
        from google.auth.exceptions import GoogleAuthError
        from google.oauth2.service_account import Credentials
    except ImportError:
        remedy = "rename it, or install google-auth to have it rejected"
        raise StoreError(url, _UNLISTED_KEY, remedy) from None
    key = os.environ.get("GOOGLE_SERVICE_ACCOUNT_KEY")
    path = os.environ.get("GOOGLE_SERVICE_ACCOUNT") or os.environ.get("GOOGLE_SERVICE_ACCOUNT_PATH")
    try:
        if key:
            return Credentials.from_service_account_info(json.loads(key), scopes=[_READ_ONLY])
        if path:
            return Credentials.from_service_account_file(path, scopes=[_READ_ONLY])
        return default(scopes=[_READ_ONLY])[0]
    except (GoogleAuthError, OSError, ValueError):
        raise StoreError(url, "no credentials to list any keys", _WHO_HAS_ACCESS["gs"]) from None


def _authorize(credentials: Any, request: Any) -> None:
    """Add a valid token to a request."""
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.requests import Request

    try:
        credentials.before_request(Request(), request.method, request.url, request.headers)
    except GoogleAuthError as error:
        raise Transient(f"no token: {type(error).__name__}") from None


# Failures

_STATUS = re.compile(r"status code: (\d{3} ?[A-Za-z ]*)")
_CODE = re.compile(r"<Code>([\w.]+)</Code>")
_CAUSE = re.compile(r'message: "([^"]+)"')
_REDIRECT = "Received redirect"  # to another region or endpoint than the configured one
# Codes of S3, Google Cloud Storage and Azure.
_RETRIED_CODES = ("RequestTimeout", "OperationAborted", "ConditionalRequestConflict")
_MISSING_BUCKETS = ("NoSuchBucket", "bucket does not exist", "ContainerNotFound")
_CREDENTIALS = (
    "ExpiredToken",
    "InvalidToken",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "RequestTimeTooSkewed",
    "AuthenticationFailed",
    "UserProjectMissing",
    "Requester Pays",
)
# Codes that concern one object, with their meaning.
_OBJECT_FAULTS = {
    "InvalidObjectState": "archived",
    "BlobArchived": "archived",
    "BlobBeingRehydrated": "archived",
    "a form of Server Side Encryption": "encrypted with a key of the customer",
    "ResourceIsEncryptedWithCustomerEncryptionKey": "encrypted with a key of the customer",
    "BlobUsesCustomerSpecifiedEncryption": "encrypted with a key of the customer",
    "KMS.": "encrypted with a key that cannot be used",
}
# Google Cloud Storage decompresses these objects in transit.
_AS_WITH_GZIP = ", as of an object that is stored with Content-Encoding: gzip"
# Texts in obstore's messages about responses of other services, with their meaning.
_FOREIGN = {
    "InvalidListResponse": "the answer is not a list of objects",
    "NotPartial": f"the answer is not the requested range of an object{_AS_WITH_GZIP}",
    "MissingContentLength": f"the answer has no Content-Length{_AS_WITH_GZIP}",
    "InvalidCertificate": "the server's TLS certificate is not valid",
    "InvalidMessage": "the server does not speak TLS",
    "UnexpectedMessage": "the server does not speak HTTP",
    "Parse(": "the server does not speak HTTP",
    "Name or service not known": "the server's name is not known",
}
_CHECK_ENDPOINT = "check the endpoint, and proxies between it and this machine"
_WHO_HAS_ACCESS = {
    "s3": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, must name an account with"
    " access",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`, must name an"
    " account with access",
    "ht": "the server must let everybody read it",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY must name an account with"
    " access",
}


def failure_of(error: BaseException, url: str, *, reading: bool = False) -> Exception:
    """Return the exception to raise for a failed request.

    Args:
        error: raised by obstore.
        url: of the bucket, for messages.
        reading: whether the request reads an object; the failure may be the object's fault.

    Returns:
        FileNotFoundError: there is no such object.
        ObjectFault: the store does not return this object.
        ObjectRefused: refused; whether it is the object's fault depends on other objects.
        Transient: a retry may succeed.
        StoreError: a retry would fail, too.
    """
    text, code, what = str(error), status_of(error), describe(error)
    # The status and body of the response, without the object's key: a key may be any text.
    found = _STATUS.search(text)
    answer = text[found.start() :].partition("\n\nDebug source")[0] if found else ""
    fault = _meaning(answer, _OBJECT_FAULTS)
    foreign = "" if code else _meaning(text, _FOREIGN)
    refused = ObjectRefused if reading else StoreError
    if isinstance(error, InvalidPathError):
        return StoreError(url, _UNLISTED_KEY, "rename it")
    if any(sign in answer for sign in _MISSING_BUCKETS):
        return StoreError(url, "there is no such bucket", "check its name and the endpoint")
    if reading and fault:
        return ObjectFault(Reason.OBJECT_UNAVAILABLE, f"{fault} ({what})")
    if code == 404 and "<html" in answer.lower():
        return Transient(f"a web page instead of an answer ({what})", _CHECK_ENDPOINT)
    if isinstance(error, NotFoundError | FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "No such object")
    if code in (401, 403) or isinstance(error, PermissionDeniedError | UnauthenticatedError):
        if code == 401 or any(sign in answer for sign in _CREDENTIALS):
            refused = StoreError
        advice = _WHO_HAS_ACCESS.get(url[:2], _WHO_HAS_ACCESS["az"])
        return refused(url, f"access denied ({what})", f"{advice}; {RESUMES}")
    if _REDIRECT in text:
        return StoreError(url, what, _CHECK_ENDPOINT)
    if foreign:
        gzipped = _AS_WITH_GZIP in foreign
        remedy = f"store it without, or {_CHECK_ENDPOINT}" if gzipped else _CHECK_ENDPOINT
        if reading:
            return ObjectRefused(url, foreign, remedy, is_foreign=True)
        return Transient(foreign, remedy)
    if _is_permanent(code) and not any(sign in answer for sign in _RETRIED_CODES):
        return refused(url, what)
    return Transient(what)


def _is_permanent(status: int) -> bool:
    """Return whether retrying is useless: not for timeouts, "too early" and "slow down"."""
    return 400 <= status < 500 and status not in (408, 425, 429)


def _meaning(text: str, signs: dict[str, str]) -> str:
    return next((meaning for sign, meaning in signs.items() if sign in text), "")


def status_of(error: BaseException) -> int:
    """Return the HTTP status of the response; 0 without a response."""
    found = _STATUS.search(str(error))
    return int(found[1][:3]) if found else 0


def describe(error: BaseException) -> str:
    """Describe a failure in a few words, without the object's address in obstore's message."""
    text = str(error)
    if found := _STATUS.search(text):
        code = _CODE.search(text)
        return f"{found[1].strip()}, {code[1]}" if code else found[1].strip()
    if found := _CAUSE.search(text):
        return found[1]
    if "timed out" in text or "TimedOut" in text:
        return "time-out"
    return text.partition("\n")[0].rpartition(" - ")[2].rpartition(": ")[2] or type(error).__name__
