"""A stand-in for Dataflow's HTTP interface: it records the jobs that it is given.

It answers the requests that Beam's client makes: create a job, ask for its state, its messages and
its metrics, cancel it. It schedules nothing; what becomes of a job is up to the test.
"""

import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.headct.ports import serving

# Beam speaks HTTP with an endpoint that has `sandbox` in its name, and gRPC with others; it takes
# none with a port, but for `localhost`, which it asks for other workers than the service.
_URL = "http://dataflow.sandbox.test"
_JOBS = re.compile(
    rf"{_URL}/v1b3/projects/(?P<project>[^/]+)/locations/(?P<region>[^/]+)/jobs"
    r"(/(?P<id>[^/?]+)(?P<part>/messages|/metrics)?)?(\?.*)?"
)
_TOKEN = "/token"
_KEY_BITS = 2048
_STATES = {"JOB_STATE_DONE": 3, "JOB_STATE_CANCELLED": 5}  # Beam sends enumerations as numbers


@dataclass
class DataflowJob:
    """A job, and what the service says of it.

    Attributes:
        id: the service's.
        project: in whose name it was created.
        region: in which it was created.
        request: the body of the request that created it, in JSON's names.
        state: one of the API's.
        errors: what the job's log says when it failed.
        asked: how often its state was asked for.
    """

    id: str
    project: str
    region: str
    request: dict[str, Any]
    state: str = "JOB_STATE_RUNNING"
    errors: list[str] = field(default_factory=list)
    asked: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """The options of Beam, as workers get them."""
        found: dict[str, Any] = self.request["environment"]["sdkPipelineOptions"]["options"]
        return found

    @property
    def pool(self) -> dict[str, Any]:
        """The workers that are asked for."""
        (found,) = self.request["environment"]["workerPools"]
        assert isinstance(found, dict)
        return found

    def fail(self, error: str) -> None:
        """End with an error message."""
        self.errors.append(error)
        self.state = "JOB_STATE_FAILED"

    def described(self) -> dict[str, Any]:
        """The job as the API returns it."""
        return {
            "id": self.id,
            "name": self.request["name"],
            "projectId": self.project,
            "location": self.region,
            "clientRequestId": self.request["clientRequestId"],
            "currentState": self.state,
        }


class DataflowService:
    """The service, which is found by way of an HTTP proxy.

    Attributes:
        url: what `--dataflow_endpoint` takes.
        jobs: all that were created, in order.
        run: what is done with a job, in a thread of its own; None to leave it running.
    """

    def __init__(self, port: int) -> None:
        self.url = _URL
        self.jobs: list[DataflowJob] = []
        self.run: Callable[[DataflowJob], None] | None = None
        self._address = f"http://127.0.0.1:{port}"

    def environment(self, folder: Path) -> dict[str, str]:
        """The environment in which the service is found, and takes the credentials.

        Args:
            folder: where the credentials are written to.
        """
        account = {
            "type": "service_account",
            "project_id": "my-project",
            "private_key_id": "1",
            "private_key": _make_private_key(),
            "client_email": "launcher@my-project.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": f"{self._address}{_TOKEN}",
        }
        path = folder / "service-account.json"
        path.write_text(json.dumps(account))
        return {
            "http_proxy": self._address,
            "no_proxy": "127.0.0.1,localhost",
            "GOOGLE_APPLICATION_CREDENTIALS": str(path),
        }

    def create(self, project: str, region: str, request: dict[str, Any]) -> DataflowJob:
        """Take a job."""
        job = DataflowJob(f"job-{len(self.jobs)}", project, region, request)
        self.jobs.append(job)
        if self.run is not None:
            threading.Thread(target=self.run, args=[job], daemon=True).start()
        return job

    def find(self, job_id: str) -> DataflowJob | None:
        """The job with an id."""
        return next((job for job in self.jobs if job.id == job_id), None)


@contextmanager
def serve_dataflow() -> Iterator[DataflowService]:
    """The service while the block lasts."""
    server = _Server(("127.0.0.1", 0), _Handler)
    service = DataflowService(server.server_port)
    server.service = service  # type: ignore[attr-defined]
    with serving(server):
        yield service


def _make_private_key() -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    return (
        rsa.generate_private_key(65537, _KEY_BITS)
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        .decode()
    )


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Nothing: clients that are interrupted break their connections."""
        if not isinstance(sys.exception(), ConnectionError):
            raise


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        if self.path == _TOKEN:
            self._read_body()
            self._send(200, {"access_token": "token", "token_type": "Bearer", "expires_in": 3600})
        else:
            self._answer(self._create)

    def do_GET(self) -> None:
        self._answer(self._describe)

    def do_PUT(self) -> None:
        self._answer(self._update)

    def log_message(self, *_: object) -> None:
        """Nothing: tests look at the jobs."""

    @property
    def _service(self) -> DataflowService:
        found = self.server.service  # type: ignore[attr-defined]
        assert isinstance(found, DataflowService)
        return found

    def _answer(self, act: Callable[[re.Match[str], bytes], dict[str, Any] | None]) -> None:
        body = self._read_body()
        place = _JOBS.fullmatch(self.path)
        found = act(place, body) if place else None
        if found is None:
            self._send(404, {"error": {"code": 404}})
        else:
            self._send(200, found)

    def _read_body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _create(self, place: re.Match[str], body: bytes) -> dict[str, Any] | None:
        if place["id"]:
            return None
        return self._service.create(place["project"], place["region"], json.loads(body)).described()

    def _describe(self, place: re.Match[str], _: bytes) -> dict[str, Any] | None:
        job = self._service.find(place["id"] or "")
        if job is None:
            return None
        if place["part"] == "/messages":
            now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
            return {
                "jobMessages": [_message(number, now, job) for number in range(len(job.errors))]
            }
        if place["part"] == "/metrics":
            return {"metricTime": datetime.now(UTC).isoformat().replace("+00:00", "Z")}
        job.asked += 1
        return job.described()

    def _update(self, place: re.Match[str], body: bytes) -> dict[str, Any] | None:
        job = self._service.find(place["id"] or "")
        if job is None or place["part"]:
            return None
        wanted = json.loads(body)["requestedState"]
        names = {number: name for name, number in _STATES.items()}
        job.state = names.get(wanted, wanted)
        return job.described()


def _message(number: int, time: str, job: DataflowJob) -> dict[str, Any]:
    return {
        "id": str(number),
        "time": time,
        "messageText": job.errors[number],
        "messageImportance": "JOB_MESSAGE_ERROR",
    }
