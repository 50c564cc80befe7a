"""Clients of object stores, with the credentials and settings that each store's own tools use."""

import json
import os
from typing import TYPE_CHECKING, Any

from obstore.store import GCSStore, HTTPStore, S3Store, from_url

if TYPE_CHECKING:  # these are not there at run time
    from obstore.store import ClientConfig, RetryConfig


def s3_endpoint() -> str | None:
    """The address of a store that is not Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def google_emulator() -> str | None:
    """The address of a store that is not Google's."""
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if not emulator:
        return None
    return (emulator if "://" in emulator else f"http://{emulator}").rstrip("/")


def google_headers() -> dict[str, str]:
    """What a request tells of the project that pays for it, where the bucket's owner does not."""
    project = os.environ.get("GOOGLE_CLOUD_QUOTA_PROJECT")
    return {"x-goog-user-project": project} if project else {}


def open_store(url: str, client: "ClientConfig", retries: "RetryConfig") -> Any:
    """The obstore library's store of a bucket.

    Args:
        url: of the bucket.
        client: settings of its connections.
        retries: how often it repeats a request itself.

    Raises:
        BaseError, ValueError, OSError: the settings cannot be used.
    """
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
    endpoint = s3_endpoint()
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
    client["default_headers"] = google_headers()
    emulator = google_emulator()
    if emulator:
        client["allow_http"] = emulator.startswith("http://")
        key = {"gcs_base_url": emulator, "disable_oauth": True}
        empty = {"client_email": "", "private_key": "", "private_key_id": ""}
        config["service_account_key"] = json.dumps(key | empty)
    return GCSStore(bucket, client_options=client, retry_config=retries, **config)
