"""Beam's portable job service and a pool of SDK workers, each a process, as a cluster has them.

    python -m tests.engines.portable_service --workers 2 --port_file FILE

serves jobs on a runner with as many SDK workers; Beam's own command takes one, whatever it is told.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.headct.ports import free_port

_STARTED_WITHIN = 240.0  # seconds


@contextmanager
def portable_engine(
    folder: Path, workers: int = 2, environment: Mapping[str, str] | None = None
) -> Iterator[list[str]]:
    """The arguments that send a pipeline to a job service with a worker pool, while they run.

    Args:
        folder: an empty one: it is the working directory of the workers, and keeps their output.
        workers: how many SDK workers a job gets.
        environment: of the service and the workers, beside this process's.
    """
    root = str(Path(__file__).parents[2])
    python = str(Path(sys.executable).parent)  # a pool starts plain `python`
    path = os.pathsep.join(filter(None, [(environment or {}).get("PYTHONPATH"), root]))
    variables = {**os.environ, **(environment or {}), "PYTHONPATH": path}
    variables["PATH"] = os.pathsep.join([python, variables["PATH"]])
    pool_port, port_file = free_port(), folder / "port"
    service = ["tests.engines.portable_service", "--workers", str(workers)]
    service += ["--port_file", str(port_file)]
    pool = ["apache_beam.runners.worker.worker_pool_main", "--service_port", str(pool_port)]
    started = [_start(module, folder, variables) for module in (service, pool)]
    try:
        port = _wait_for(port_file)
        _wait_until_open(pool_port)
        yield [
            *("--runner", "PortableRunner", "--job_endpoint", f"localhost:{port}"),
            *("--environment_type", "EXTERNAL", "--environment_config", f"localhost:{pool_port}"),
        ]
    finally:
        for process in started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _start(module: list[str], folder: Path, variables: Mapping[str, str]) -> subprocess.Popen[str]:
    with (folder / f"{module[0].rpartition('.')[2]}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *module],
            cwd=folder,
            env=dict(variables),
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )


def _wait_for(file: Path) -> int:
    end = time.monotonic() + _STARTED_WITHIN
    while time.monotonic() < end:
        if file.exists() and (text := file.read_text().strip()):
            return int(text)
        time.sleep(0.1)
    raise TimeoutError(f"{file} was not written")


def _wait_until_open(port: int) -> None:
    import grpc

    with grpc.insecure_channel(f"localhost:{port}") as channel:
        grpc.channel_ready_future(channel).result(timeout=_STARTED_WITHIN)


def _serve(argv: list[str]) -> None:
    """Beam's command, with a runner that has as many workers as asked for."""
    from apache_beam.runners.portability import local_job_service_main
    from apache_beam.runners.portability.fn_api_runner import fn_runner

    workers = int(argv.pop(argv.index("--workers") + 1))
    argv.remove("--workers")

    class Runner(fn_runner.FnApiRunner):  # type: ignore[misc]
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            self._num_workers = workers

    fn_runner.FnApiRunner = Runner
    local_job_service_main.run(argv)


if __name__ == "__main__":
    _serve(sys.argv[1:])
