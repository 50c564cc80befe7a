"""The pipeline on a Flink cluster of two task managers, whose parts fail one after the other."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engines.conftest import ARGUMENTS, BAD, SLICES
from tests.engines.engines import Engine, finish, kill, marked, wait_for
from tests.engines.flink_cluster import (
    LocalFlink,
    Ports,
    Unavailable,
    find_job_server,
    flink_cluster,
    flink_jars,
)
from tests.engines.test_runs import (
    RUN,
    assert_nothing_left,
    assert_quiet,
    assert_right,
    has_written,
)


@dataclass(frozen=True)
class Flink:
    """A cluster.

    Attributes:
        cluster: its parts.
        submitting: runs the pipeline by a job server that the pipeline's command starts.
        service: runs it by the job server that is part of the cluster.
    """

    cluster: LocalFlink
    submitting: Engine
    service: Engine


@pytest.fixture(scope="session", autouse=True)  # before the local runs: it may be all in vain
def job_server() -> Path:
    try:
        found = find_job_server()
        flink_jars()
    except Unavailable as error:
        pytest.skip(f"no Flink to test with: {error}")
    return found


@pytest.fixture(scope="module")
def started(
    job_server: Path, tmp_path_factory: pytest.TempPathFactory, decoders: dict[str, str]
) -> Iterator[Flink]:
    variables = marked(decoders)
    folder = tmp_path_factory.mktemp("flink")
    with flink_cluster(folder, job_server, variables, Ports.free()) as cluster:
        engines = [
            Engine("flink", tuple(arguments), variables, "SdkHarness")
            for arguments in (cluster.submitting_arguments, cluster.service_arguments)
        ]
        yield Flink(cluster, *engines)
    wait_for(lambda: not engines[0].processes())


@pytest.fixture
def flink(started: Flink) -> Flink:
    """The cluster, with all its task managers, whatever an earlier test did to them."""
    started.cluster.start_task_managers()
    return started


@pytest.mark.parametrize("parallelism", [1, 2, 4])
def test_a_run_gives_the_bytes_of_a_local_one(
    flink: Flink, folder: Path, reference: dict[str, str], parallelism: int
) -> None:
    done = flink.submitting.run(folder, *RUN, "--parallelism", str(parallelism))
    assert done.returncode == 0, done.stderr
    assert_quiet(done, SLICES)
    assert_right(folder, reference)
    assert_nothing_left(flink.submitting)


def test_decoders_that_crash_or_hang_cost_their_slice_and_nothing_else(
    flink: Flink, folder: Path, references: dict[str, dict[str, str]]
) -> None:
    done = flink.service.run(folder, "--input", "spoiled", *ARGUMENTS, "--parallelism", "2")
    assert done.returncode == 0, done.stderr
    assert_quiet(done, SLICES + len(BAD))
    assert_right(folder, references["spoiled"])
    rows = map(json.loads, (folder / "out" / "rejects.jsonl").read_text().splitlines())
    assert {row["image_id"]: row["reason"] for row in rows} == {
        name: reason for name, (_, reason) in BAD.items()
    }
    assert_nothing_left(flink.service)


@pytest.mark.parametrize("victim", ["worker", "task manager"])
def test_a_job_goes_on_without_what_was_killed(
    flink: Flink, folder: Path, reference: dict[str, str], victim: str
) -> None:
    run = flink.service.start(folder, *RUN, "--parallelism", "2")
    wait_for(lambda: has_written(folder, 2))
    if victim == "worker":
        kill(flink.service.processes("SdkHarness")[0])
    else:
        flink.cluster.kill_task_manager(0)
    done = finish(run)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert_right(folder, reference)
    assert_nothing_left(flink.service)
