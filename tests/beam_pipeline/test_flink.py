"""What is asked of a Flink cluster, by a server that answers as Flink 1.19 does."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from beam_pipeline.runners.flink import FlinkCluster


class Cluster(ThreadingHTTPServer):
    """Jobs and settings, and which jobs were canceled."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs: list[dict[str, Any]] = []
        self.settings: dict[str, str] = {}
        self.canceled: list[str] = []

    def add_job(self, jid: str, name: str, state: str, start: int) -> None:
        self.jobs.append({"jid": jid, "name": name, "state": state, "start-time": start})


class Handler(BaseHTTPRequestHandler):
    server: Cluster

    def do_GET(self) -> None:
        answers: dict[str, Any] = {
            "/jobs/overview": {"jobs": self.server.jobs},
            "/config": {"flink-version": "1.19.3", "flink-commit": "0000000"},
            "/jobmanager/config": [
                {"key": key, "value": value} for key, value in self.server.settings.items()
            ],
        }
        self._answer(200, answers[self.path])

    def do_PATCH(self) -> None:
        path, _, query = self.path.partition("?")
        assert query == "mode=cancel"
        self.server.canceled.append(path.removeprefix("/jobs/"))
        self._answer(202, {})

    def _answer(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster() as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def flink(cluster: Cluster) -> FlinkCluster:
    return FlinkCluster(f"http://127.0.0.1:{cluster.server_port}/")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("CREATED", "RUNNING"),
        ("RUNNING", "RUNNING"),
        ("RESTARTING", "RUNNING"),
        ("CANCELLING", "RUNNING"),
        ("FINISHED", "DONE"),
        ("CANCELED", "CANCELLED"),
        ("FAILED", "FAILED"),
    ],
)
def test_the_newest_job_of_a_name_has_a_state(
    cluster: Cluster, flink: FlinkCluster, state: str, expected: str
) -> None:
    assert flink.state("headct-1") == "UNKNOWN"
    cluster.add_job("a", "headct-1", "FAILED" if state != "FAILED" else "RUNNING", 5)
    cluster.add_job("b", "headct-1", state, 7)
    cluster.add_job("c", "headct-2", "INITIALIZING", 9)
    assert flink.state("headct-1") == expected


def test_a_job_is_canceled_by_its_name(cluster: Cluster, flink: FlinkCluster) -> None:
    flink.cancel("headct-1")
    assert cluster.canceled == []
    cluster.add_job("a", "headct-1", "RUNNING", 5)
    cluster.add_job("b", "headct-2", "RUNNING", 6)
    flink.cancel("headct-1")
    assert cluster.canceled == ["a"]


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({}, ["restart-strategy", "evenly-spread-out-slots"]),
        ({"restart-strategy": "none"}, ["restart-strategy", "evenly-spread-out-slots"]),
        ({"restart-strategy": "fixed-delay"}, ["evenly-spread-out-slots"]),
        (
            {"restart-strategy.type": "fixed-delay", "cluster.evenly-spread-out-slots": "true"},
            [],
        ),
        ({"cluster.evenly-spread-out-slots": "true"}, ["restart-strategy"]),
    ],
)
def test_settings_that_a_long_job_needs_are_named(
    cluster: Cluster, flink: FlinkCluster, settings: dict[str, str], advice: list[str]
) -> None:
    cluster.settings = settings
    found = flink.advice()
    assert len(found) == len(advice)
    assert all(word in line for word, line in zip(advice, found, strict=True))


def test_a_cluster_has_a_version(flink: FlinkCluster) -> None:
    assert flink.version() == "1.19"


def test_no_cluster() -> None:
    with pytest.raises(OSError, match="refused"):
        FlinkCluster("http://127.0.0.1:1").state("headct-1")
