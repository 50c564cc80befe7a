"""A Flink cluster on this machine: `python -m tests.engines.flink_cluster FOLDER`, until Ctrl-C.

What is started, each a process, and where it listens unless `Ports` says otherwise:

1. the job manager: its REST interface at 127.0.0.1:8081, its RPC at 127.0.0.1:6123;
2. two task managers of two slots;
3. a pool of SDK workers for each of them, at 127.0.0.2:50000 and 127.0.0.3:50000;
4. Beam's job server, at 127.0.0.1:8099, its artifacts at 127.0.0.1:8098.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.engines import cluster
from tests.engines.cluster import JAVA, POOL_HOSTS, LocalEngine, ask, run_until_interrupted
from tests.engines.jars import FLINK_SERIES, flink_jars, job_server

SLOTS = 2  # of each task manager

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


@dataclass(frozen=True)
class Ports(cluster.Ports):
    """Ports of the parts of a Flink cluster."""

    rest: int = 8081
    rpc: int = 6123
    jobs: int = 8099
    artifacts: int = 8098


@dataclass
class LocalFlink(LocalEngine):
    """A cluster on this machine.

    Attributes:
        ports: where its parts listen.
    """

    ports: Ports
    _managers: dict[int, str] = field(default_factory=dict, kw_only=True)  # ids, started last

    @property
    def rest(self) -> str:
        """The URL of its REST interface."""
        return f"http://127.0.0.1:{self.ports.rest}"

    @property
    def worker_arguments(self) -> list[str]:
        """How a job's workers are started."""
        pool = f"worker-pool:{self.ports.pool}"
        return ["--environment_type", "EXTERNAL", "--environment_config", pool]

    @property
    def submitting_arguments(self) -> list[str]:
        """For a command that starts a job server itself."""
        return [
            *("--runner", "FlinkRunner", "--flink_master", self.rest),
            *("--flink_version", FLINK_SERIES, "--flink_job_server_jar", str(self.job_server)),
            *self.worker_arguments,
        ]

    @property
    def service_arguments(self) -> list[str]:
        """For a command that gives its job to the job server that runs."""
        endpoint = f"localhost:{self.ports.jobs}"
        return ["--runner", "FlinkRunner", "--job_endpoint", endpoint, *self.worker_arguments]

    @property
    def commands(self) -> list[list[str]]:
        """Return the pipeline's arguments, per way to submit a job."""
        return [self.submitting_arguments, self.service_arguments]

    def start(self) -> None:
        """Start all processes."""
        ports = self.ports
        (self.folder / "conf").mkdir()
        settings = {"rest": ports.rest, "rpc": ports.rpc, "slots": SLOTS, "folder": self.folder}
        (self.folder / "conf" / "flink-conf.yaml").write_text(_SETTINGS.format(**settings))
        self._start_flink("job-manager", _JOB_MANAGER, "--executionMode", "cluster")
        self.start_pools(ports.pool)
        self.start_process(
            "job-server",
            *(*JAVA, "-jar", str(self.job_server), f"--flink-master=127.0.0.1:{ports.rest}"),
            *(f"--job-port={ports.jobs}", f"--artifact-port={ports.artifacts}"),
            *("--expansion-port=0", f"--artifacts-dir={self.folder / 'artifacts'}"),
        )
        self.restore()
        for host in POOL_HOSTS:
            self.wait_until_open(host, ports.pool)
        self.wait_until_open("127.0.0.1", ports.jobs)

    def restore(self) -> None:
        """Start the task managers that do not run, and wait until all have offered their slots."""
        for number in range(len(POOL_HOSTS)):
            name = f"task-manager-{number}"
            if not self.is_running(name):
                self._managers[number] = f"{name}-{uuid.uuid4().hex}"
                own_id = ("-D", f"taskmanager.resource-id={self._managers[number]}")
                java = [self.hosts_argument(number)]
                self._start_flink(name, _TASK_MANAGER, *own_id, java=java)
        expected = dict.fromkeys(self._managers.values(), SLOTS)

        def are_there() -> bool:
            """Whether those that run, and no others, are listed with their slots."""
            managers = ask(f"{self.rest}/taskmanagers")["taskmanagers"]
            return {each["id"]: each["slotsNumber"] for each in managers} == expected

        self.wait_until(are_there, "the task managers did not offer their slots")

    def kill_host(self) -> None:
        """Kill a task manager, not its pool."""
        self.kill_process("task-manager-0")

    def job_states(self) -> dict[str, str]:
        """The state of each job that the cluster knows, by name."""
        return {job["name"]: job["state"] for job in ask(f"{self.rest}/jobs/overview")["jobs"]}

    def _start_flink(self, name: str, main: str, *arguments: str, java: Sequence[str] = ()) -> None:
        jars = f"{flink_jars()}/*"
        settings = ("--configDir", str(self.folder / "conf"))
        self.start_process(name, *JAVA, *java, "-cp", jars, main, *settings, *arguments)


if __name__ == "__main__":
    run_until_interrupted(LocalFlink, job_server("flink"), Ports())
