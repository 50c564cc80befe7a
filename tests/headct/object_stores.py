"""Object stores on this machine: servers of S3 and Google Cloud Storage that keep data in memory.

Their binaries are found on PATH, or built once with Go and kept in the user's cache. Without Go,
moto serves S3.
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import obstore
import pytest
from obstore.store import GCSStore, S3Store

from tests.cache import SERVERS
from tests.headct.faulty_proxy import FaultyProxy
from tests.headct.ports import free_port

_GOFAKES3 = "github.com/johannesboyne/gofakes3/cmd/gofakes3@v1.2.0"
_FAKE_GCS_SERVER = "github.com/fsouza/fake-gcs-server@v1.56.1"
_BUILD_SECONDS = 240
_START_SECONDS = 20
_UPLOADS = 16  # in flight at once

S3_BUCKET = "data"
GCS_BUCKET = "data-bucket"  # a bucket's name has three characters or more
# The servers check no signature, but clients look for credentials until they find some.
S3_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
}


@dataclass(frozen=True)
class ObjectServer:
    """A server that runs.

    Attributes:
        bucket: the only one it has.
        url: of the bucket, as the pipeline is told it.
        is_slow: whether it needs seconds to list thousands of objects.
    """

    bucket: Any
    url: str
    is_slow: bool = False

    def put(self, objects: dict[str, bytes]) -> None:
        """Store objects, by their keys."""
        with ThreadPoolExecutor(_UPLOADS) as threads:
            list(threads.map(lambda item: obstore.put(self.bucket, *item), objects.items()))

    def get(self, folder: str) -> dict[str, bytes]:
        """All objects of a folder, by their keys behind it."""
        found = [item["path"] for page in obstore.list(self.bucket, folder) for item in page]
        return {
            key.removeprefix(f"{folder}/"): bytes(obstore.get(self.bucket, key).bytes())
            for key in found
        }

    def delete(self, key: str) -> None:
        """Delete an object."""
        obstore.delete(self.bucket, key)


@contextmanager
def serve_s3(proxy: FaultyProxy) -> Iterator[ObjectServer]:
    """Run gofakes3 or moto behind a proxy while the block lasts; skip the test without both."""
    port = free_port()
    command = _s3_command(port)
    with _running(command, port):
        # moto lets only public buckets be written without a signature.
        public = {"x-amz-acl": "public-read-write"}
        _request(f"http://127.0.0.1:{port}/{S3_BUCKET}", b"", "PUT", public)
        proxy.pass_on_to(port)
        bucket = S3Store(
            S3_BUCKET,
            endpoint=f"http://127.0.0.1:{port}",  # not by the proxy, which may be failing
            access_key_id="test",
            secret_access_key="test",
            region="us-east-1",
            client_options={"allow_http": True},
        )
        yield ObjectServer(bucket, f"s3://{S3_BUCKET}", is_slow="moto.server" in command)


@contextmanager
def serve_gcs(proxy: FaultyProxy) -> Iterator[ObjectServer]:
    """Runs fake-gcs-server behind a proxy while the block lasts; skips where there is none."""
    port, public = free_port(), f"127.0.0.1:{proxy.port}"
    command = [find_binary(_FAKE_GCS_SERVER), "-scheme", "http", "-backend", "memory"]
    command += ["-host", "127.0.0.1", "-port", str(port), "-log-level", "error"]
    # It takes the first part of a path for a bucket only where it is asked by this name.
    command += ["-public-host", public, "-external-url", f"http://{public}"]
    with _running(command, port):
        proxy.pass_on_to(port, _sign_upload, _add_etag)
        _make_gcs_bucket(public)
        account = {"client_email": "", "private_key": "", "private_key_id": ""}
        account |= {"gcs_base_url": f"http://{public}", "disable_oauth": True}
        bucket = GCSStore(
            GCS_BUCKET,
            service_account_key=json.dumps(account),
            client_options={"allow_http": True},
        )
        yield ObjectServer(bucket, f"gs://{GCS_BUCKET}")


def _s3_command(port: int) -> list[str]:
    try:
        binary = find_binary(_GOFAKES3)
    except pytest.skip.Exception:
        if not all(map(importlib.util.find_spec, ("moto", "flask", "flask_cors"))):
            raise
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    return [binary, "-host", f"127.0.0.1:{port}", "-backend", "memory", "-quiet"]


def _sign_upload(head: str) -> str:
    """fake-gcs-server lets clients upload to an object's own address only by a signed URL."""
    return head.replace(" HTTP/1.1", "?X-Goog-Algorithm=x HTTP/1.1", 1) if _is_put(head) else head


def _add_etag(head: str, answer: bytes) -> bytes:
    """Google's own server sends the ETag of what was uploaded as a header, too."""
    return (
        answer.replace(b"\r\n", b'\r\nETag: "made-by-the-proxy"\r\n', 1)
        if _is_put(head)
        else answer
    )


def _is_put(head: str) -> bool:
    return head.startswith("PUT ") and not head.startswith("PUT /upload/")  # a resumable upload


def _make_gcs_bucket(host: str) -> None:
    body = json.dumps({"name": GCS_BUCKET}).encode()
    json_type = {"Content-Type": "application/json"}
    _request(f"http://{host}/storage/v1/b?project=test", body, "POST", json_type)


def _request(url: str, body: bytes, method: str, headers: dict[str, str]) -> None:
    request = urllib.request.Request(url, body, headers, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        answer.read()


def find_binary(package: str) -> str:
    """The path of a Go program, which is built if it is not there."""
    path, _, version = package.partition("@")
    name, folder = path.rpartition("/")[2], SERVERS / version
    found = shutil.which(name) or shutil.which(name, path=str(folder))
    if found:
        return found
    if not shutil.which("go"):
        pytest.skip(f"neither {name} nor Go is installed: no object store to test with")
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"GOBIN": str(folder)}
    try:
        built = subprocess.run(
            ["go", "install", package],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_BUILD_SECONDS,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"{name} could not be built in {_BUILD_SECONDS} s")
    if built.returncode:
        pytest.skip(f"{name} cannot be built: {built.stderr.strip()[-300:]}")
    return str(folder / name)


@contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(process, port)
        yield
    finally:
        process.kill()
        process.wait()


def _wait_for(process: "subprocess.Popen[bytes]", port: int) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"{process.args!r} does not answer at port {port}")
