"""The job servers that a run starts: their jars, and that they end with the run."""

import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pytest
from apache_beam.options.pipeline_options import (
    JobServerOptions,
    PipelineOptions,
    PrismRunnerOptions,
)

from beam_pipeline.errors import RunnerError
from beam_pipeline.runners.choose import RUNNERS, ChosenRunner
from beam_pipeline.runners.job_server import TIED, find_job_server, prepare_servers
from headct.errors import UsageError

DRIVER = "org.apache.beam.runners.{}JobServerDriver"


def spark(*arguments: str) -> ChosenRunner:
    return ChosenRunner(RUNNERS["SparkRunner"], ("--spark_master_url", "local[4]", *arguments))


def make_jar(path: Path, main: str | None) -> Path:
    with zipfile.ZipFile(path, "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", f"Main-Class: {main}\n" if main else "Created-By: x\n")
    return path


def test_a_jar_that_is_there_is_taken(tmp_path: Path) -> None:
    jar = make_jar(tmp_path / "server.jar", DRIVER.format("spark.Spark"))
    chosen = spark("--spark_job_server_jar", str(jar))
    assert find_job_server(chosen) == chosen


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("missing", ": there is no such file"),
        ("folder", ": there is no such file"),
        ("text", " is not a program in Java: want Beam's job server"),
        ("library", " is not a program in Java"),
        ("flink", " is the job server of another engine than spark"),
    ],
)
def test_a_jar_that_cannot_be_one_is_refused(kind: str, complaint: str, tmp_path: Path) -> None:
    jar = tmp_path / "server.jar"
    if kind == "folder":
        jar.mkdir()
    elif kind == "text":
        jar.write_text("Main-Class: x")
    elif kind != "missing":
        make_jar(jar, DRIVER.format("flink.Flink") if kind == "flink" else None)
    with pytest.raises(UsageError) as raised:
        find_job_server(spark(f"--spark_job_server_jar={jar}"))
    assert f"--spark_job_server_jar {jar}{complaint}" in str(raised.value)


def test_a_jar_that_cannot_be_downloaded_ends_the_run_before_it_begins(tmp_path: Path) -> None:
    url = "http://127.0.0.1:1/server.jar"
    cache = ("--jar_cache_dir", str(tmp_path))
    with pytest.raises(RunnerError) as raised:
        find_job_server(spark("--spark_job_server_jar", url, *cache))
    assert url in str(raised.value)
    assert "with --spark_job_server_jar, or the address of a job server" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "chosen",
    [
        spark("--job_endpoint", "localhost:8099", "--spark_job_server_jar", "/none.jar"),
        ChosenRunner(RUNNERS["PortableRunner"], ("--job_endpoint", "localhost:8099")),
    ],
)
def test_a_job_server_that_runs_needs_no_jar(chosen: ChosenRunner) -> None:
    assert find_job_server(chosen) == chosen


def test_flink_that_does_not_tell_its_version_is_named() -> None:
    chosen = ChosenRunner(RUNNERS["FlinkRunner"], ("--flink_master", "127.0.0.1:1"))
    with pytest.raises(RunnerError, match=r"--flink_master http://127.0.0.1:1 does not answer"):
        find_job_server(chosen)


@pytest.mark.parametrize("name", ["SparkRunner", "FlinkRunner"])
def test_servers_are_started_tied_to_this_process(name: str, tmp_path: Path) -> None:
    chosen = ChosenRunner(RUNNERS[name])
    prism = tmp_path / "the prism"
    prism.write_text('#!/bin/sh\necho "$@"\n')
    prism.chmod(0o755)
    options = PipelineOptions(
        [
            *("--job_server_java_launcher=/jdk/java", "--job_server_jvm_property=-Xmx1g"),
            *("--prism_location", str(prism)),
        ]
    )
    folder = tmp_path / "staging"
    folder.mkdir()
    prepare_servers(chosen, options, folder)
    java = options.view_as(JobServerOptions)
    command = [java.job_server_java_launcher, *java.job_server_jvm_properties]
    assert command[:3] == [sys.executable, "-c", TIED]
    assert (command[4], command[-1]) == ("/jdk/java", "-Xmx1g")
    # Spark's class that looks into exceptions of tasks needs this one.
    opened = "--add-opens=java.base/sun.security.action=ALL-UNNAMED"
    assert (opened in command) is (name == "SparkRunner")
    script = options.view_as(PrismRunnerOptions).prism_location
    shown = subprocess.run([script, "--port", "a b"], capture_output=True, text=True, check=True)
    assert shown.stdout == "--port a b\n"


STARTS = """
import os, subprocess, sys, time
command = [sys.executable, "-c", sys.argv[1], str(os.getpid())]
command += [sys.executable, "-c", sys.argv[2]]
print(subprocess.Popen(command, stdout=subprocess.DEVNULL).pid, flush=True)
time.sleep(60)
"""
SLEEPS = "import time; time.sleep(60)"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties processes")
def test_a_tied_command_ends_with_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", STARTS, TIED, SLEEPS], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    command = psutil.Process(int(parent.stdout.readline()))
    # The command itself, and not the process that is to become it.
    wait_until(lambda: command.cmdline()[1:] == ["-c", SLEEPS])
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    command.wait(timeout=30)


def wait_until(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties processes")
def test_a_tied_command_whose_parent_has_ended_does_not_start(tmp_path: Path) -> None:
    made = tmp_path / "made"
    command = [sys.executable, "-c", TIED, "1", "touch", str(made)]
    assert subprocess.run(command).returncode == 1
    assert not made.exists()
