"""Classification of failed requests: fault of an object or the store, transient or not."""

import errno
import re

from obstore.exceptions import (
    InvalidPathError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)

from headct.errors import RESUMES, ObjectRefused, StoreError
from headct.reasons import ObjectFault, Reason
from headct.stores.retries import Foreign, Transient

RANGE_NOT_SATISFIABLE = 416

_STATUS = re.compile(r"status code: (\d{3} ?[A-Za-z ]*)")
_CODE = re.compile(r"<Code>([\w.]+)</Code>")
_CAUSE = re.compile(r'message: "([^"]+)"')
# Timeouts, "too early" and "slow down"; retrying does not help for other statuses from 400 to 499.
_RETRIED = frozenset({408, 425, 429})
_RETRIED_CODES = ("RequestTimeout", "OperationAborted", "ConditionalRequestConflict")
_REDIRECT = "Received redirect"  # to another region or endpoint than the configured one
_MISSING_BUCKETS = ("NoSuchBucket", "bucket does not exist", "ContainerNotFound")

# Codes of S3, Google Cloud Storage and Azure that concern one object, with their meaning.
_OBJECT_FAULTS = {
    "InvalidObjectState": "archived",
    "BlobArchived": "archived",
    "BlobBeingRehydrated": "archived",
    "a form of Server Side Encryption": "encrypted with a key of the customer",
    "ResourceIsEncryptedWithCustomerEncryptionKey": "encrypted with a key of the customer",
    "BlobUsesCustomerSpecifiedEncryption": "encrypted with a key of the customer",
    "KMS.": "encrypted with a key that cannot be used",
}
# Codes that concern the credentials.
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
_WEB_PAGE = "<html"
_WHO_HAS_ACCESS = {
    "s3": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, must name an account with"
    " access",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`, must name an"
    " account with access",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY must name an account with"
    " access",
    "http": "the server must let everybody read it",
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
    text, code = str(error), status(error)
    answer = _answer(text)  # without the object's key: a key may be any text
    if isinstance(error, InvalidPathError):
        return StoreError(url, "an object's key is not a path", "rename it")
    if any(sign in answer for sign in _MISSING_BUCKETS):
        return StoreError(url, "there is no such bucket", "check its name and the endpoint")
    if reading and (fault := _meaning(answer, _OBJECT_FAULTS)):
        return ObjectFault(Reason.OBJECT_UNAVAILABLE, f"{fault} ({describe(error)})")
    if code == 404 and _WEB_PAGE in answer.lower():
        return Foreign(f"a web page instead of an answer ({describe(error)})", _CHECK_ENDPOINT)
    if isinstance(error, NotFoundError | FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "No such object")
    if code == RANGE_NOT_SATISFIABLE:
        return OSError(errno.EINVAL, "Shorter than it was listed")
    if code in (401, 403) or isinstance(error, PermissionDeniedError | UnauthenticatedError):
        by_credentials = code == 401 or any(sign in answer for sign in _CREDENTIALS)
        kind = ObjectRefused if reading and not by_credentials else StoreError
        return kind(url, f"access denied ({describe(error)})", f"{_advice(url)}; {RESUMES}")
    if _REDIRECT in text:
        return StoreError(url, describe(error), _CHECK_ENDPOINT)
    if not code and (foreign := _meaning(text, _FOREIGN)):
        gzipped = _AS_WITH_GZIP in foreign
        remedy = f"store it without, or {_CHECK_ENDPOINT}" if gzipped else _CHECK_ENDPOINT
        if reading:
            return ObjectRefused(url, foreign, remedy, is_foreign=True)
        return Foreign(foreign, remedy)
    if (
        400 <= code < 500
        and code not in _RETRIED
        and not any(sign in answer for sign in _RETRIED_CODES)
    ):
        return (ObjectRefused if reading else StoreError)(url, describe(error))
    return Transient(describe(error))


def _advice(url: str) -> str:
    """Return advice on access to a bucket."""
    scheme = url.partition("://")[0].replace("https", "http").replace("s3a", "s3")
    return _WHO_HAS_ACCESS.get(scheme, _WHO_HAS_ACCESS["az"])


def _answer(text: str) -> str:
    """Return the status and body of the response from obstore's message."""
    found = _STATUS.search(text)
    return text[found.start() :].partition("\n\nDebug source")[0] if found else ""


def _meaning(text: str, signs: dict[str, str]) -> str:
    return next((meaning for sign, meaning in signs.items() if sign in text), "")


def status(error: BaseException) -> int:
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
