"""Processes of a cluster on this machine, and pools of SDK workers on addresses of their own.

    python -m tests.engines.cluster --pool 127.0.0.2:50000

Each host of a cluster has a pool, at 127.0.0.2 and 127.0.0.3: workers of two hosts have the same
ids, so that they cannot share one. Both hosts are told to use `worker-pool`, a name that means
another address to each, as `localhost` would on two machines. Linux only: elsewhere 127.0.0.2 is no
address of a machine unless it is made one.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.headct.ports import free_port

POOL_HOSTS = ("127.0.0.2", "127.0.0.3")  # of each host's pool

# What the scripts of Flink and Spark add for Java 17.
_OPENED = (
    *("java.base/java.lang", "java.base/java.lang.invoke", "java.base/java.lang.reflect"),
    *("java.base/java.net", "java.base/java.io", "java.base/java.nio", "java.base/java.text"),
    *("java.base/java.time", "java.base/java.util", "java.base/java.util.concurrent"),
    *("java.base/java.util.concurrent.atomic", "java.base/java.util.concurrent.locks"),
    *("java.base/sun.nio.ch", "java.base/sun.net.util", "java.base/sun.nio.cs"),
    *("java.base/sun.security.action", "java.base/sun.util.calendar"),
)
JAVA = (
    *("java", "-Xmx512m", "-Dorg.apache.logging.log4j.level=INFO"),
    *(f"--add-opens={package}=ALL-UNNAMED" for package in _OPENED),
)

_ROOT = Path(__file__).parents[2]
_STARTED_WITHIN = 240.0  # seconds: JVMs start slowly on a busy machine
_ANSWER_SECONDS = 20.0


@dataclass(frozen=True)
class Ports:
    """Ports that the parts of a cluster listen at, with those of the documentation as defaults."""

    pool: int = 50000

    @classmethod
    def free(cls) -> Self:
        """Return ports that nobody listens at."""
        return cls(*(free_port() for _ in fields(cls)))


@dataclass
class LocalCluster:
    """Processes that are started and ended together.

    Attributes:
        folder: of their logs and settings; the working directory of the workers.
        environment: of all processes, beside this process's.
    """

    folder: Path
    environment: Mapping[str, str]
    _processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict, kw_only=True)

    def start_process(self, name: str, *command: str, **variables: str) -> None:
        """Start a process, whose output goes to a log of its name."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._variables() | variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_pools(self, port: int) -> None:
        """Start a pool of SDK workers for each host."""
        for number, host in enumerate(POOL_HOSTS):
            own = f"127.0.0.1 localhost\n127.0.0.1 {socket.gethostname()}\n"
            (self.folder / f"hosts-{number}").write_text(f"{own}{host} worker-pool\n")
            pool = ("-m", "tests.engines.cluster", "--pool", f"{host}:{port}")
            self.start_process(f"pool-{number}", sys.executable, *pool)

    def hosts_argument(self, number: int) -> str:
        """The argument of Java that makes a process know its own pool."""
        return f"-Djdk.net.hosts.file={self.folder / f'hosts-{number}'}"

    def is_running(self, name: str) -> bool:
        """Whether a process was started and has not ended."""
        return name in self._processes and self._processes[name].poll() is None

    def kill_process(self, name: str) -> None:
        """Kill a process, and none of those that it started."""
        self._processes[name].kill()
        self._processes[name].wait()

    def stop(self) -> None:
        """Kill all of it, with the workers."""
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def wait_until_open(self, host: str, port: int) -> None:
        """Wait until something answers at an address."""

        def is_open() -> bool:
            socket.create_connection((host, port), 1).close()
            return True

        self.wait_until(is_open, f"nothing answers at {host}:{port}")

    def wait_until(self, condition: Callable[[], bool], otherwise: str) -> None:
        """Wait until a function returns true; OSError counts as false.

        Raises:
            TimeoutError: it does not.
            RuntimeError: a process has ended.
        """
        end = time.monotonic() + _STARTED_WITHIN
        while time.monotonic() < end:
            with suppress(OSError):
                if condition():
                    return
            self._check_alive()
            time.sleep(0.1)
        raise TimeoutError(f"{otherwise}: see {self.folder}")

    def _variables(self) -> dict[str, str]:
        path = [self.environment.get("PYTHONPATH", ""), str(_ROOT)]
        python = Path(sys.executable).parent  # a pool starts plain `python`
        return {
            **os.environ,
            **self.environment,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PATH": os.pathsep.join([str(python), os.environ["PATH"]]),
        }

    def _check_alive(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                log = (self.folder / f"{name}.log").read_text().splitlines()
                raise RuntimeError("\n".join([f"{name} ended:", *log[-20:]]))


@dataclass
class LocalEngine(LocalCluster, ABC):
    """A cluster of Flink or Spark on this machine.

    Attributes:
        job_server: Beam's jar.
    """

    job_server: Path

    @property
    @abstractmethod
    def commands(self) -> Sequence[Sequence[str]]:
        """Return the pipeline's arguments, per way to submit a job."""

    @abstractmethod
    def start(self) -> None:
        """Start all processes.

        Raises:
            Unavailable: a package cannot be had.
            TimeoutError: something did not start.
        """


Engine = TypeVar("Engine", bound=LocalEngine)


@contextmanager
def running(cluster: Engine) -> Iterator[Engine]:
    """Run a cluster while the block lasts; raises as `start` does."""
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def run_until_interrupted(engine: type[LocalEngine], *parts: object) -> None:
    """Run a cluster until Ctrl-C, in the folder that the command names; print how to use it."""
    home = Path(sys.argv[1]).absolute()
    home.mkdir(parents=True, exist_ok=True)
    with running(engine(home, {}, *parts)) as cluster:  # type: ignore[arg-type]
        for arguments in cluster.commands:
            print("python -m beam_pipeline ... " + " ".join(arguments), flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()


def ask(url: str) -> Any:
    """The JSON document at a URL."""
    with urllib.request.urlopen(url, timeout=_ANSWER_SECONDS) as answer:
        return json.load(answer)


def serve_pool(address: str) -> None:
    """Start SDK workers on demand, as Beam's own command does, but at a given address."""
    import grpc
    from apache_beam.portability.api import beam_fn_api_pb2_grpc
    from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
    from apache_beam.utils import thread_pool_executor

    server = grpc.server(thread_pool_executor.shared_unbounded_instance())
    server.add_insecure_port(address)
    pool = BeamFnExternalWorkerPoolServicer(use_process=True)
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    serve_pool(sys.argv[2])
