"""Beam's portable job service and a pool of SDK workers, each a process, as a cluster has them.

    python -m tests.engines.portable_service --workers 2 --port_file FILE

serves jobs on a runner with as many SDK workers; Beam's own command takes one, whatever it is told.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.engines.cluster import LocalCluster
from tests.headct.ports import free_port


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
    cluster = LocalCluster(folder, environment or {})
    pool_port, port_file = free_port(), folder / "port"
    service = ("-m", "tests.engines.portable_service", "--workers", str(workers))
    pool = ("-m", "apache_beam.runners.worker.worker_pool_main", "--service_port", str(pool_port))
    try:
        cluster.start_process("service", sys.executable, *service, "--port_file", str(port_file))
        cluster.start_process("pool", sys.executable, *pool)
        cluster.wait_until(lambda: port_file.read_text() != "", f"{port_file} was not written")
        cluster.wait_until_open("localhost", pool_port)
        yield [
            *("--runner", "PortableRunner"),
            *("--job_endpoint", f"localhost:{port_file.read_text().strip()}"),
            *("--environment_type", "EXTERNAL", "--environment_config", f"localhost:{pool_port}"),
        ]
    finally:
        cluster.stop()


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
