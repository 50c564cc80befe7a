"""The pipeline on Flink and Spark with two hosts each, whose parts fail one after the other."""

import json
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engines import flink_cluster, spark_cluster
from tests.engines.cluster import running
from tests.engines.conftest import ARGUMENTS, BAD, SLICES
from tests.engines.engines import Engine, finish, kill, marked, wait_for
from tests.engines.flink_cluster import LocalFlink
from tests.engines.jars import Unavailable, flink_jars, job_server, spark_jars
from tests.engines.spark_cluster import LocalSpark
from tests.engines.test_runs import (
    RUN,
    assert_nothing_left,
    assert_quiet,
    assert_right,
    has_written,
)


@dataclass(frozen=True)
class Cluster:
    """A cluster.

    Attributes:
        parts: of it.
        engine: runs the pipeline by a job server that the pipeline's command starts.
        service: runs it by a job server that is part of the cluster; Flink alone has one.
    """

    parts: LocalFlink | LocalSpark
    engine: Engine
    service: Engine | None = None


def start(name: str, folder: Path, decoders: dict[str, str]) -> Iterator[Cluster]:
    variables = marked(decoders)
    try:
        jar = job_server(name)
        if name == "flink":
            flink_jars()
            ports = flink_cluster.Ports.free()
            with running(LocalFlink(folder, variables, jar, ports)) as flink:
                engine, service = (
                    Engine(name, tuple(arguments), variables, "SdkHarness")
                    for arguments in (flink.submitting_arguments, flink.service_arguments)
                )
                yield Cluster(flink, engine, service)
        else:
            spark_jars()
            ports = spark_cluster.Ports.free()
            with running(LocalSpark(folder, variables, jar, ports)) as spark:
                engine = Engine(name, tuple(spark.submitting_arguments), variables, "SdkHarness")
                yield Cluster(spark, engine)
    except Unavailable as error:
        pytest.skip(f"no {name} to test with: {error}")
    wait_for(lambda: not engine.processes())


@pytest.fixture(scope="module", params=["flink", "spark"])
def started(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    decoders: dict[str, str],
) -> Iterator[Cluster]:
    yield from start(request.param, tmp_path_factory.mktemp(request.param), decoders)


@pytest.fixture
def cluster(started: Cluster) -> Cluster:
    """The cluster with both hosts, whatever an earlier test did to them."""
    started.parts.restore()
    return started


def parallel(cluster: Cluster, tasks: int) -> tuple[str, ...]:
    """How many tasks a run has; Spark's job server decides it there."""
    return ("--parallelism", str(tasks)) if cluster.engine.name == "flink" else ()


@pytest.mark.parametrize(
    "tasks",
    [2, pytest.param(1, marks=pytest.mark.full), pytest.param(4, marks=pytest.mark.full)],
)
def test_a_run_gives_the_bytes_of_a_local_one(
    cluster: Cluster, folder: Path, references: dict[str, dict[str, str]], tasks: int
) -> None:
    """Decoders that crash or hang cost their slice, and nothing else."""
    run = ("--input", "spoiled", *ARGUMENTS, *parallel(cluster, tasks))
    done = cluster.engine.run(folder, *run)
    assert done.returncode == 0, done.stderr
    assert_quiet(done, SLICES + len(BAD))
    assert_right(folder, references["spoiled"])
    rows = map(json.loads, (folder / "out" / "rejects.jsonl").read_text().splitlines())
    assert {row["image_id"]: row["reason"] for row in rows} == {
        name: reason for name, (_, reason) in BAD.items()
    }
    assert_nothing_left(cluster.engine)


@pytest.mark.parametrize(
    "started", ["flink", pytest.param("spark", marks=pytest.mark.full)], indirect=True
)
def test_a_refusal_of_a_worker_fails_the_job_and_arrives_with_its_exit_code(
    cluster: Cluster, folder: Path
) -> None:
    (folder / "labels.csv").unlink()
    (folder / "labels.csv").write_text("id,bleeds\nID_0,1\nID_1,0\n")
    done = cluster.engine.run(folder, *RUN)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"beam_pipeline: error: {SLICES - 2} of {SLICES} files were rejected (")
    flink = cluster.parts
    if isinstance(flink, LocalFlink):
        (name,) = re.findall(r"Job (headct-\w+) was submitted", done.stdout)
        # This cluster repeats what fails, ten times: the command does not wait for all of them.
        wait_for(lambda: flink.job_states()[name] in ("FAILED", "CANCELED"))
    assert_nothing_left(cluster.engine)


# A job of Spark ends with its job server.
FLINK_ALONE = pytest.mark.parametrize("started", ["flink"], indirect=True)


@FLINK_ALONE
@pytest.mark.parametrize("knows_cluster", [True, False])
def test_canceled_is_what_flink_says_is_canceled(
    cluster: Cluster, folder: Path, knows_cluster: bool
) -> None:
    parts, engine = cluster.parts, cluster.service
    assert isinstance(parts, LocalFlink)
    assert engine
    master = ("--flink_master", parts.rest) if knows_cluster else ()
    run = engine.start(folder, *RUN, *master, "--parallelism", "1", "--cancel_on_interrupt")
    wait_for(lambda: has_written(folder, 2))
    run.send_signal(signal.SIGINT)
    done = finish(run)
    assert done.returncode == 130
    (line,) = done.stderr.splitlines()
    (job,) = [state for name, state in parts.job_states().items() if name in line] or [None]
    if knows_cluster:
        assert line.endswith(" was canceled; the same command resumes")
        assert job == "CANCELED"
    else:  # Beam's job server does not pass it on
        assert "the job service was asked to cancel" in line
        assert line.endswith("; the cluster may go on to the end; the same command resumes")
        assert job in ("RUNNING", "FINISHED")
        wait_for(lambda: (folder / "out" / "manifest.json").exists())


@FLINK_ALONE
def test_a_job_server_that_dies_leaves_flinks_job_to_watch(
    cluster: Cluster, folder: Path, reference: dict[str, str]
) -> None:
    engine = cluster.engine
    run = engine.start(folder, *RUN, "--parallelism", "1")
    wait_for(lambda: has_written(folder, 2))
    (server,) = [p for p in engine.processes("job-server") if p.ppid() == run.pid]
    kill(server)
    done = finish(run)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "the cluster may still run job headct-" in line
    assert "; the same command resumes; its log is " in line
    Path(line.rpartition("its log is ")[2]).unlink()
    again = engine.run(folder, *RUN, "--parallelism", "1")
    assert again.returncode == 0, again.stderr
    assert " is still running, at http" in again.stdout or "is complete" in again.stdout
    assert_right(folder, reference)


@pytest.mark.parametrize("victim", [pytest.param("worker", marks=pytest.mark.full), "host"])
def test_a_job_goes_on_without_what_was_killed(
    cluster: Cluster, folder: Path, reference: dict[str, str], victim: str
) -> None:
    engine = cluster.service or cluster.engine
    run = engine.start(folder, *RUN, *parallel(cluster, 2))
    wait_for(lambda: has_written(folder, 2))
    if victim == "worker":
        kill(engine.processes("SdkHarness")[0])
    else:
        cluster.parts.kill_host()
    done = finish(run)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert_right(folder, reference)
    # Flink may leave an idle worker to the host that goes on: this test is the last.
    wait_for(lambda: not engine.processes("beam_pipeline --"))
