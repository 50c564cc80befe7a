"""Beam's runners as they can be had on this machine, and the pipeline run on them.

What is started carries a mark in its environment, by which what is left of it is found.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.engines.jars import job_server
from tests.engines.portable_service import portable_engine
from tests.headct.object_stores import find_binary

PRISM = "github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0"
# Engines that Beam's job servers run in their own process.
EMBEDDED = {
    "flink": ("--runner", "FlinkRunner", "--flink_master", "[local]"),
    "spark": ("--runner", "SparkRunner", "--spark_master_url", "local[4]"),
}
ROOT = Path(__file__).parents[2]
_MARK = "TEST_ENGINE_MARK"
# A busy machine takes several times as long as an idle one.
_RUN_SECONDS = 600


@dataclass(frozen=True)
class Engine:
    """A runner that is there.

    Attributes:
        name: of it.
        arguments: that choose it.
        environment: of the pipeline's command; the mark is in it.
        worker: what the command lines of its workers hold, which are processes of their own; None
            where they are threads of the pipeline's command.
    """

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    worker: str | None

    def start(self, folder: Path, *arguments: str) -> "subprocess.Popen[str]":
        """Start the pipeline in a folder, with the input and output relative to it."""
        command = [sys.executable, "-m", "beam_pipeline", *arguments, *self.arguments]
        return subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run the pipeline in a folder to its end."""
        return finish(self.start(folder, *arguments))

    def processes(self, part: str = "") -> list[psutil.Process]:
        """What is alive of all that was started, and has something in its command line."""
        return [
            process
            for process in psutil.process_iter()
            if _is_marked(process, self.environment[_MARK])
            and part in " ".join(_command_line(process))
        ]


def finish(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    """Wait for the end of the pipeline's command."""
    try:
        out, error = process.communicate(timeout=_RUN_SECONDS)
    finally:
        process.kill()
        process.wait()
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def marked(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which the pipeline is found, and by which its processes are."""
    path = [environment.get("PYTHONPATH", ""), str(ROOT)]
    return {
        **environment,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        _MARK: uuid.uuid4().hex,
    }


def _is_marked(process: psutil.Process, mark: str) -> bool:
    try:
        return (
            process.status() != psutil.STATUS_ZOMBIE
            and process.environ().get(_MARK) == mark
            and process.pid != os.getpid()
        )
    except psutil.Error:
        return False


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@contextmanager
def start_engine(name: str, folder: Path, environment: Mapping[str, str]) -> Iterator[Engine]:
    """A runner while the block lasts; the test is skipped where it cannot be had.

    Args:
        name: `local`, `portable`, `prism`, or an engine of EMBEDDED.
        folder: an empty one.
        environment: of workers and of the pipeline's command.
    """
    variables = marked(environment)
    if name == "local":
        yield Engine(name, ("--workers", "2"), variables, None)
    elif name == "prism":
        yield Engine(
            name,
            ("--runner", "PrismRunner", "--prism_location", find_binary(PRISM)),
            variables,
            None,
        )
    elif name in EMBEDDED:
        yield Engine(name, embedded_arguments(name), variables, None)
    else:
        with portable_engine(folder, workers=2, environment=variables) as arguments:
            yield Engine(name, tuple(arguments), variables, "SdkHarness")


def embedded_arguments(name: str) -> tuple[str, ...]:
    """The arguments that choose an engine of EMBEDDED; raises as `job_server` does."""
    jar = (f"--{name}_job_server_jar", str(job_server(name)))
    return (*EMBEDDED[name], "--job_server_jvm_property=-Xmx1g", *jar)


def wait_for(condition: object, seconds: float = 240.0) -> None:
    """Wait until a function says so."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def kill(process: psutil.Process) -> None:
    process.send_signal(signal.SIGKILL)


def digests(output: Path) -> dict[str, str]:
    """SHA-256 of all files, and of the manifest what names the content."""
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in output.iterdir()}
    found.pop("report.html", None)  # says when and how fast it was made
    found.pop("preprocess.toml", None)  # has paths as the runner sees them
    found["manifest.json"] = json.loads((output / "manifest.json").read_text())["digest"]
    return found
