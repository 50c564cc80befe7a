"""A Spark cluster on this machine: `python -m tests.engines.spark_cluster FOLDER`, until Ctrl-C.

What is started, each a process, and where it listens unless `Ports` says otherwise:

1. the master, at 127.0.0.1:7077, its REST interface at 127.0.0.1:6066, its page at 127.0.0.1:8080;
2. two workers of two cores, each of which starts an executor for a job;
3. a pool of SDK workers for each of them, at 127.0.0.2:50000 and 127.0.0.3:50000.
"""

from dataclasses import dataclass

from tests.engines import cluster
from tests.engines.cluster import JAVA, POOL_HOSTS, LocalEngine, ask, run_until_interrupted
from tests.engines.jars import job_server, spark_jars

CORES = 2  # of each worker

_MASTER = "org.apache.spark.deploy.master.Master"
_WORKER = "org.apache.spark.deploy.worker.Worker"
# Of the job server, which is the driver of a job.
_DRIVER = {
    "spark.default.parallelism": "4",  # the number of tasks
    "spark.driver.host": "127.0.0.1",
    "spark.executor.memory": "512m",
}


@dataclass(frozen=True)
class Ports(cluster.Ports):
    """Ports of the parts of a Spark cluster."""

    master: int = 7077
    rest: int = 6066
    page: int = 8080


@dataclass
class LocalSpark(LocalEngine):
    """A cluster on this machine.

    Attributes:
        ports: where its parts listen.
    """

    ports: Ports

    @property
    def worker_arguments(self) -> list[str]:
        """How a job's SDK workers are started."""
        pool = f"worker-pool:{self.ports.pool}"
        return [
            *("--environment_type", "EXTERNAL", "--environment_config", pool),
            *("--environment_cache_millis", "60000"),  # else each stage starts its own
        ]

    @property
    def submitting_arguments(self) -> list[str]:
        """For a command that starts a job server itself."""
        master = f"spark://127.0.0.1:{self.ports.master}"
        return [
            *("--runner", "SparkRunner", "--spark_master_url", master),
            *("--spark_job_server_jar", str(self.job_server)),
            *(f"--job_server_jvm_property=-D{name}={value}" for name, value in _DRIVER.items()),
            *self.worker_arguments,
        ]

    @property
    def commands(self) -> list[list[str]]:
        """Return the pipeline's arguments, per way to submit a job."""
        return [self.submitting_arguments]

    def start(self) -> None:
        """Start all processes."""
        ports = self.ports
        self.start_pools(ports.pool)
        self._start_spark(
            "master",
            *("-Dspark.master.rest.enabled=true", f"-Dspark.master.rest.port={ports.rest}"),
            *(_MASTER, "--host", "127.0.0.1"),
            *("--port", str(ports.master), "--webui-port", str(ports.page)),
        )
        self.wait_until_open("127.0.0.1", ports.master)
        self.restore()
        for host in POOL_HOSTS:
            self.wait_until_open(host, ports.pool)

    def restore(self) -> None:
        """Start the workers that do not run, and wait until all have registered."""
        for number in range(len(POOL_HOSTS)):
            if not self.is_running(f"worker-{number}"):
                self._start_spark(
                    f"worker-{number}",
                    *(_WORKER, f"spark://127.0.0.1:{self.ports.master}", "--host", "127.0.0.1"),
                    *("--cores", str(CORES), "--memory", "1g", "--webui-port", "0"),
                    JAVA_TOOL_OPTIONS=self.hosts_argument(number),  # for its executors
                )

        def are_there() -> bool:
            return int(ask(f"http://127.0.0.1:{self.ports.page}/json/")["aliveworkers"]) >= 2

        self.wait_until(are_there, "the workers did not register")

    def kill_host(self) -> None:
        """Kill a worker; its executors end with it, its pool does not."""
        self.kill_process("worker-0")

    def _start_spark(self, name: str, *command: str, **variables: str) -> None:
        jars = spark_jars()
        variables |= {"SPARK_HOME": str(jars.parent), "SPARK_SCALA_VERSION": "2.12"}
        variables |= {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_WORKER_DIR": str(self.folder / "work")}
        self.start_process(name, *JAVA, "-cp", f"{jars}/*", *command, **variables)


if __name__ == "__main__":
    run_until_interrupted(LocalSpark, job_server("spark"), Ports())
