"""Flink and Spark inside the job server that the pipeline's command starts."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.cluster import POOL_HOSTS, LocalCluster
from tests.engines.conftest import SLICES
from tests.engines.engines import (
    Engine,
    embedded_arguments,
    finish,
    kill,
    marked,
    start_engine,
    wait_for,
)
from tests.engines.jars import Unavailable
from tests.engines.test_runs import RUN, assert_quiet, assert_right, has_written
from tests.headct.ports import free_port


@pytest.fixture(scope="module", params=["flink", "spark"])
def embedded(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    decoders: dict[str, str],
) -> Iterator[Engine]:
    try:
        with start_engine(request.param, tmp_path_factory.mktemp("embedded"), decoders) as engine:
            yield engine
    except Unavailable as error:
        pytest.skip(f"no {request.param} to test with: {error}")


@pytest.mark.parametrize(
    "sent", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.full)]
)
def test_a_command_that_ends_leaves_no_job_server_and_can_be_repeated(
    embedded: Engine, folder: Path, reference: dict[str, str], sent: signal.Signals
) -> None:
    run = embedded.start(folder, *RUN)
    wait_for(lambda: has_written(folder, 2))
    assert embedded.processes("job-server")
    run.send_signal(sent)
    done = finish(run)
    wait_for(lambda: not embedded.processes())
    if sent == signal.SIGINT:
        assert done.stderr == "beam_pipeline: interrupted; the same command resumes\n"
        assert done.returncode == 130
    again = embedded.run(folder, *RUN)
    assert again.returncode == 0, again.stderr
    assert_quiet(again, SLICES)
    assert_right(folder, reference)
    wait_for(lambda: not embedded.processes())


@pytest.mark.parametrize("name", ["spark", pytest.param("flink", marks=pytest.mark.full)])
def test_a_worker_that_is_killed_ends_the_run_and_the_same_command_resumes(
    name: str, folder: Path, tmp_path: Path, decoders: dict[str, str], reference: dict[str, str]
) -> None:
    variables = marked(decoders)
    pools, port = LocalCluster(tmp_path, variables), free_port()
    try:
        engine = Engine(name, embedded_arguments(name), variables, "SdkHarness")
        pools.start_pools(port)
        pools.wait_until_open(POOL_HOSTS[0], port)
        pool = ("--environment_type", "EXTERNAL", "--environment_config", f"{POOL_HOSTS[0]}:{port}")
        run = engine.start(folder, *RUN, *pool)
        wait_for(lambda: has_written(folder, 2))
        for worker in engine.processes("SdkHarness"):
            kill(worker)
        done = finish(run)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert " (a worker or the job server was lost); the same command resumes; its log" in line
        Path(line.rpartition("its log is ")[2]).unlink()
        again = engine.run(folder, *RUN, *pool)
        assert again.returncode == 0, again.stderr
        assert_right(folder, reference)
    except Unavailable as error:
        pytest.skip(f"no {name} to test with: {error}")
    finally:
        pools.stop()
