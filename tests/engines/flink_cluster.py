"""A Flink cluster on this machine: `python -m tests.engines.flink_cluster FOLDER`, until Ctrl-C.

What is started, each a process, and where it listens unless `Ports` says otherwise:

1. the job manager: its REST interface at 127.0.0.1:8081, its RPC at 127.0.0.1:6123;
2. two task managers of two slots;
3. a pool of SDK workers for each of them, at 127.0.0.2:50000 and 127.0.0.3:50000. Both are told to
   use `worker-pool:50000`, a name that means another address to each, as `localhost` would on two
   machines. They cannot share a pool: their workers would have the same ids there;
4. Beam's job server, at 127.0.0.1:8099, its artifacts at 127.0.0.1:8098.

Flink's jars come from the package `apache-flink-libraries`, which is downloaded once. The job
server's jar is the one that the environment variable FLINK_JOB_SERVER_JAR names, or Beam's own from
Maven Central. Linux only: elsewhere 127.0.0.2 is no address of a machine unless it is made one.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.beam_pipeline.ports import free_port

FLINK_VERSION = "1.19.3"
SERIES = FLINK_VERSION.rpartition(".")[0]  # what a job server is made for
SLOTS = 2  # of each task manager
POOL_HOSTS = ("127.0.0.2", "127.0.0.3")  # of each task manager's pool

_ROOT = Path(__file__).parents[2]
_DOWNLOADED = _ROOT / "out" / "test-servers"
_ANSWER_SECONDS = 20.0
_DOWNLOAD_SECONDS = 280
_STARTED_WITHIN = 90.0  # seconds

# What Flink's own scripts add for Java 17.
_OPENED = (
    *("java.base/java.lang", "java.base/java.lang.invoke", "java.base/java.lang.reflect"),
    *("java.base/java.net", "java.base/java.io", "java.base/java.nio", "java.base/java.text"),
    *("java.base/java.time", "java.base/java.util", "java.base/java.util.concurrent"),
    *("java.base/java.util.concurrent.atomic", "java.base/java.util.concurrent.locks"),
    *("java.base/sun.nio.ch", "java.base/sun.net.util"),
)
_JAVA = (
    *("java", "-Xmx512m", "-Dorg.apache.logging.log4j.level=INFO"),
    *(f"--add-opens={package}=ALL-UNNAMED" for package in _OPENED),
)
_JOB_MANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
_TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"

_SETTINGS = """\
jobmanager.rpc.address: 127.0.0.1
jobmanager.rpc.port: {rpc}
jobmanager.bind-host: 127.0.0.1
jobmanager.memory.process.size: 1g
rest.address: 127.0.0.1
rest.bind-port: {rest}
rest.port: {rest}
blob.server.port: 0
taskmanager.host: 127.0.0.1
taskmanager.bind-host: 127.0.0.1
taskmanager.numberOfTaskSlots: {slots}
taskmanager.cpu.cores: {slots}
taskmanager.memory.framework.heap.size: 128m
taskmanager.memory.framework.off-heap.size: 128m
taskmanager.memory.jvm-metaspace.size: 256m
taskmanager.memory.jvm-overhead.min: 192m
taskmanager.memory.jvm-overhead.max: 192m
taskmanager.memory.task.heap.size: 256m
taskmanager.memory.task.off-heap.size: 64m
taskmanager.memory.network.min: 64m
taskmanager.memory.network.max: 64m
taskmanager.memory.managed.size: 64m
cluster.evenly-spread-out-slots: true
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 10
restart-strategy.fixed-delay.delay: 1 s
heartbeat.interval: 1000
heartbeat.timeout: 10000
io.tmp.dirs: {folder}
"""


class Unavailable(Exception):
    """Something that a cluster needs cannot be had; the message says what, and why."""


@dataclass(frozen=True)
class Ports:
    """Where the parts of a cluster listen."""

    rest: int = 8081
    rpc: int = 6123
    pool: int = 50000
    jobs: int = 8099
    artifacts: int = 8098

    @staticmethod
    def free() -> "Ports":
        """Some that nobody listens at."""
        return Ports(*(free_port() for _ in range(5)))


@dataclass
class LocalFlink:
    """A cluster on this machine.

    Attributes:
        folder: of its logs and settings; the working directory of the workers.
        ports: where its parts listen.
        job_server: the jar of Beam's.
        environment: of all its processes, beside this process's.
    """

    folder: Path
    ports: Ports
    job_server: Path
    environment: Mapping[str, str]
    _processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    _managers: dict[int, str] = field(default_factory=dict)  # ids of those started last

    @property
    def worker_arguments(self) -> list[str]:
        """How a job's workers are started."""
        pool = f"worker-pool:{self.ports.pool}"
        return ["--environment_type", "EXTERNAL", "--environment_config", pool]

    @property
    def submitting_arguments(self) -> list[str]:
        """For a command that starts a job server itself."""
        return [
            *("--runner", "FlinkRunner", "--flink_master", f"http://127.0.0.1:{self.ports.rest}"),
            *("--flink_version", SERIES, "--flink_job_server_jar", str(self.job_server)),
            *self.worker_arguments,
        ]

    @property
    def service_arguments(self) -> list[str]:
        """For a command that gives its job to the job server that runs."""
        endpoint = f"localhost:{self.ports.jobs}"
        return ["--runner", "FlinkRunner", "--job_endpoint", endpoint, *self.worker_arguments]

    def start(self) -> None:
        """Start all of it.

        Raises:
            Unavailable: a package cannot be had.
            TimeoutError: something did not start.
        """
        self._write_settings()
        self._start_flink("job-manager", _JOB_MANAGER, "--executionMode", "cluster")
        for number, host in enumerate(POOL_HOSTS):
            pool = ("-m", "tests.engines.flink_cluster", "--pool", f"{host}:{self.ports.pool}")
            self._start(f"pool-{number}", sys.executable, *pool)
        self.start_task_managers()
        ports = self.ports
        self._start(
            "job-server",
            *(*_JAVA, "-jar", str(self.job_server), f"--flink-master=127.0.0.1:{ports.rest}"),
            *(f"--job-port={ports.jobs}", f"--artifact-port={ports.artifacts}"),
            *("--expansion-port=0", f"--artifacts-dir={self.folder / 'artifacts'}"),
        )
        for host in POOL_HOSTS:
            self._wait_until_open(host, ports.pool)
        self._wait_until_open("127.0.0.1", ports.jobs)

    def start_task_managers(self) -> None:
        """Start the task managers that do not run, and wait until all have offered their slots."""
        for number in range(len(POOL_HOSTS)):
            name = f"task-manager-{number}"
            if name not in self._processes or self._processes[name].poll() is not None:
                self._managers[number] = f"{name}-{uuid.uuid4().hex}"
                hosts = f"-Djdk.net.hosts.file={self.folder / f'hosts-{number}'}"
                own_id = ("-D", f"taskmanager.resource-id={self._managers[number]}")
                self._start_flink(name, _TASK_MANAGER, *own_id, java=[hosts])
        self._wait_for_managers()

    def kill_task_manager(self, number: int) -> None:
        """Kill a task manager, not its pool."""
        process = self._processes[f"task-manager-{number}"]
        process.kill()
        process.wait()

    def stop(self) -> None:
        """Kill all of it, with the workers."""
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _write_settings(self) -> None:
        (self.folder / "conf").mkdir()
        settings = {"rest": self.ports.rest, "rpc": self.ports.rpc, "slots": SLOTS}
        text = _SETTINGS.format(**settings, folder=self.folder)
        (self.folder / "conf" / "flink-conf.yaml").write_text(text)
        for number, host in enumerate(POOL_HOSTS):
            own = f"127.0.0.1 localhost\n127.0.0.1 {socket.gethostname()}\n"
            (self.folder / f"hosts-{number}").write_text(f"{own}{host} worker-pool\n")

    def _start_flink(self, name: str, main: str, *arguments: str, java: Sequence[str] = ()) -> None:
        jars = f"{flink_jars()}/*"
        settings = ("--configDir", str(self.folder / "conf"))
        self._start(name, *_JAVA, *java, "-cp", jars, main, *settings, *arguments)

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._variables(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _variables(self) -> dict[str, str]:
        path = [self.environment.get("PYTHONPATH", ""), str(_ROOT)]
        python = Path(sys.executable).parent  # a pool starts plain `python`
        return {
            **os.environ,
            **self.environment,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PATH": os.pathsep.join([str(python), os.environ["PATH"]]),
        }

    def _wait_for_managers(self) -> None:
        """Wait until those that run, and no others, are listed with their slots."""
        expected = dict.fromkeys(self._managers.values(), SLOTS)
        end = time.monotonic() + _STARTED_WITHIN
        while time.monotonic() < end:
            with suppress(OSError):
                managers = self._ask("/taskmanagers")["taskmanagers"]
                if {each["id"]: each["slotsNumber"] for each in managers} == expected:
                    return
            self._check_alive()
            time.sleep(0.2)
        raise TimeoutError(f"the task managers did not offer their slots: see {self.folder}")

    def _wait_until_open(self, host: str, port: int) -> None:
        end = time.monotonic() + _STARTED_WITHIN
        while time.monotonic() < end:
            with suppress(OSError):
                socket.create_connection((host, port), 1).close()
                return
            self._check_alive()
            time.sleep(0.2)
        raise TimeoutError(f"nothing answers at {host}:{port}: see {self.folder}")

    def _check_alive(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                log = (self.folder / f"{name}.log").read_text().splitlines()
                raise RuntimeError("\n".join([f"{name} ended:", *log[-20:]]))

    def _ask(self, path: str) -> Any:
        url = f"http://127.0.0.1:{self.ports.rest}{path}"
        with urllib.request.urlopen(url, timeout=_ANSWER_SECONDS) as answer:
            return json.load(answer)


@contextmanager
def flink_cluster(
    folder: Path, job_server: Path, environment: Mapping[str, str], ports: Ports
) -> Iterator[LocalFlink]:
    """A cluster while the block lasts; raises as `LocalFlink.start` does.

    Args:
        folder: an empty one.
        job_server: the jar of Beam's.
        environment: of its processes, beside this process's.
        ports: where its parts listen.
    """
    cluster = LocalFlink(folder, ports, job_server, environment)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def find_job_server() -> Path:
    """The jar of Beam's job server for Flink, downloaded if there is none.

    Raises:
        Unavailable: there is no Java, or no jar.
        FileNotFoundError: FLINK_JOB_SERVER_JAR names none.
    """
    if not shutil.which("java"):
        raise Unavailable("Java is not installed")
    given = os.environ.get("FLINK_JOB_SERVER_JAR")
    if given:
        if not Path(given).is_file():
            raise FileNotFoundError(f"FLINK_JOB_SERVER_JAR={given}")
        return Path(given).absolute()
    from apache_beam.utils.subprocess_server import JavaJarServer

    url: str = JavaJarServer.path_to_beam_jar(f"runners:flink:{SERIES}:job-server:shadowJar")
    jar = _DOWNLOADED / url.rpartition("/")[2]
    if not jar.exists():
        _download(url, jar)
    return jar


def _download(url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        answer = urllib.request.urlopen(url, timeout=_ANSWER_SECONDS)
        with answer, partial.open("wb") as file:
            shutil.copyfileobj(answer, file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise Unavailable(
            f"{path.name} is not to be had from Maven Central ({error}), and FLINK_JOB_SERVER_JAR "
            "names no other"
        ) from None
    partial.rename(path)


def flink_jars() -> Path:
    """The folder of Flink's jars, downloaded if it is not there: 230 MB.

    Raises:
        Unavailable: it cannot be downloaded.
    """
    jars = _DOWNLOADED / f"flink-{FLINK_VERSION}"
    if jars.exists():
        return jars
    _DOWNLOADED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_DOWNLOADED) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", ":all:", f"apache-flink-libraries=={FLINK_VERSION}"]
        try:
            subprocess.run(
                command, cwd=folder, check=True, capture_output=True, timeout=_DOWNLOAD_SECONDS
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"apache-flink-libraries cannot be downloaded: {error}") from None
        (archive,) = Path(folder).glob("*.tar.gz")
        found = Path(folder, "jars")
        found.mkdir()
        with tarfile.open(archive) as files:
            for member in files:
                name = Path(member.name).name
                if "/deps/lib/" in member.name and name.startswith(("flink-dist", "log4j-")):
                    member.name = name
                    files.extract(member, found, filter="data")
        found.rename(jars)
    return jars


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


def _run(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with flink_cluster(folder.absolute(), find_job_server(), {}, Ports()) as cluster:
        print("python -m beam_pipeline ... " + " ".join(cluster.submitting_arguments))
        print("python -m beam_pipeline ... " + " ".join(cluster.service_arguments), flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--pool"]:
        serve_pool(sys.argv[2])
    else:
        _run(Path(sys.argv[1]))
