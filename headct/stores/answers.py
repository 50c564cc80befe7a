"""What a failed request means: whose fault it is, and whether it may pass."""

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
# Timeouts, "too early" and "slow down" pass; other answers of 400 to 499 would be the same again.
_PASSING = frozenset({408, 425, 429})
_PASSING_CODES = ("RequestTimeout", "OperationAborted", "ConditionalRequestConflict")
_REDIRECT = "Received redirect"  # to another region or endpoint than the one that is set
_MISSING_BUCKETS = ("NoSuchBucket", "bucket does not exist", "ContainerNotFound")

# Answers about one object, whatever becomes of the others: S3, Google Cloud Storage, Azure.
_OBJECT_FAULTS = {
    "InvalidObjectState": "archived",
    "BlobArchived": "archived",
    "BlobBeingRehydrated": "archived",
    "a form of Server Side Encryption": "encrypted with a key of the customer",
    "ResourceIsEncryptedWithCustomerEncryptionKey": "encrypted with a key of the customer",
    "BlobUsesCustomerSpecifiedEncryption": "encrypted with a key of the customer",
    "KMS.": "encrypted with a key that cannot be used",
}
# Answers about who asks, whatever is asked for.
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
# Google Cloud Storage decompresses such objects on the way.
_AS_WITH_GZIP = ", as of an object that is stored with Content-Encoding: gzip"
# Signs in the library's messages of an answer that no store gives, and what to call it.
_FOREIGN = {
    "InvalidListResponse": "the answer is no list of objects",
    "NotPartial": f"the answer is not the part of an object that was asked for{_AS_WITH_GZIP}",
    "MissingContentLength": f"the answer does not tell its length{_AS_WITH_GZIP}",
    "InvalidCertificate": "the server's TLS certificate is not valid",
    "InvalidMessage": "the server does not speak TLS",
    "UnexpectedMessage": "the server does not speak HTTP",
    "Parse(": "the server does not speak HTTP",
    "Name or service not known": "the server's name is not known",
}
_ENDPOINT = "check the endpoint and what stands between it and this machine"
_PAGE = "<html"
_S3_ACCESS = "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,"
_ACCESS = {
    "s3": f"{_S3_ACCESS} must name an account with access",
    "s3a": f"{_S3_ACCESS} must name an account with access",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`, must name an"
    " account with access",
    "http": "the server must let everybody read it",
    "https": "the server must let everybody read it",
}
_AZURE_ACCESS = (
    "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY must name an account with access"
)


def failure_of(error: BaseException, url: str, *, reading: bool = False) -> Exception:
    """What a failed request is to be raised as.

    Args:
        error: of the library.
        url: of the bucket, for messages.
        reading: whether an object was to be read: then the fault may be that object's.

    Returns:
        FileNotFoundError: there is no such object.
        ObjectFault: the store keeps this one object back.
        ObjectRefused: it was refused; others will tell whether that is the object's fault.
        Transient: it may pass.
        StoreError: it would be the same again.
    """
    text, found = str(error), status(error)
    answer = _answer(text)  # without the object's key, which may be any text
    if isinstance(error, InvalidPathError):
        return StoreError(url, "an object's key is no path", "rename it")
    if any(sign in answer for sign in _MISSING_BUCKETS):
        return StoreError(url, "there is no such bucket", "check its name and the endpoint")
    if reading and (known := _first(answer, _OBJECT_FAULTS)):
        return ObjectFault(Reason.OBJECT_UNAVAILABLE, f"{known} ({cause(error)})")
    if found == 404 and _PAGE in answer.lower():
        return Foreign(f"a web page instead of an answer ({cause(error)})", _ENDPOINT)
    if isinstance(error, NotFoundError | FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "No such object")
    if found == RANGE_NOT_SATISFIABLE:
        return OSError(errno.EINVAL, "Shorter than it was listed")
    if found in (401, 403) or isinstance(error, PermissionDeniedError | UnauthenticatedError):
        what = f"access denied ({cause(error)})"
        ours = found == 401 or any(sign in answer for sign in _CREDENTIALS)
        kind = ObjectRefused if reading and not ours else StoreError
        return kind(url, what, f"{_advice(url)}; then {RESUMES}")
    if _REDIRECT in text:
        return StoreError(url, cause(error), _ENDPOINT)
    if not found and (known := _first(text, _FOREIGN)):
        remedy = f"store it without, or {_ENDPOINT}" if _AS_WITH_GZIP in known else _ENDPOINT
        if not reading:
            return Foreign(known, remedy)
        refused = ObjectRefused(url, known, remedy)
        refused.is_foreign = True
        return refused
    if not 400 <= found < 500 or found in _PASSING or any(c in answer for c in _PASSING_CODES):
        return Transient(cause(error))
    return ObjectRefused(url, cause(error)) if reading else StoreError(url, cause(error))


def _advice(url: str) -> str:
    """Return how access to a bucket is gained."""
    return _ACCESS.get(url.partition("://")[0], _AZURE_ACCESS)


def _answer(text: str) -> str:
    """The status and body of an answer, as the library's message quotes them."""
    found = _STATUS.search(text)
    return text[found.start() :].partition("\n\nDebug source")[0] if found else ""


def _first(text: str, signs: dict[str, str]) -> str:
    return next((meaning for sign, meaning in signs.items() if sign in text), "")


def status(error: BaseException) -> int:
    """The HTTP status of an answer, 0 where there was none."""
    found = _STATUS.search(str(error))
    return int(found[1][:3]) if found else 0


def cause(error: BaseException) -> str:
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
