"""Servers of a run: those that it starts (Beam's job server, Prism), and Flink's REST interface."""

import json
import logging
import os
import re
import shlex
import sys
import urllib.request
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from beam_pipeline.errors import RunnerError
from beam_pipeline.runners.choose import ENGINES, ChosenRunner
from headct.errors import UsageError

_ANSWER_SECONDS = 10.0
_MANIFEST = "META-INF/MANIFEST.MF"
# Packages that Spark's own scripts open on Java 17, unlike Beam. Without these packages Spark
# cannot report the exception of a task, and the job waits for the task forever.
_SPARK_OPENED = (
    *("java.lang", "java.lang.reflect", "java.io", "java.net", "java.util.concurrent"),
    *("java.util.concurrent.atomic", "sun.nio.cs", "sun.security.action", "sun.util.calendar"),
)
_DRIVERS = "Main-Class: org.apache.beam.runners."
# Python program that becomes a command: `PARENT COMMAND ...`. The command ends with the process
# PARENT, even after SIGKILL. Only Linux ties processes.
TIED = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def flink_url(chosen: ChosenRunner) -> str | None:
    """Return the URL of the Flink cluster that runs the job, if its address is given."""
    from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions

    options = PipelineOptions(list(chosen.arguments))
    master = options.view_as(FlinkRunnerOptions).flink_master
    if chosen.runner.name not in ("FlinkRunner", "PortableRunner") or master.startswith("["):
        return None
    return master if "://" in master else f"http://{master}"


def ask_flink(url: str, path: str, method: str = "GET") -> Any:
    """Return the JSON answer of a Flink cluster's REST interface; raise OSError without an answer.

    https://nightlies.apache.org/flink/flink-docs-release-1.19/docs/ops/rest_api/
    """
    request = urllib.request.Request(url.rstrip("/") + path, method=method)
    with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
        return json.loads(answer.read() or b"null")


def find_job_server(chosen: ChosenRunner) -> ChosenRunner:
    """Add the jar of the job server to the arguments of a run that starts a job server.

    Raises:
        UsageError: the given jar is unusable.
        RunnerError: Beam's own jar cannot be downloaded, or the Flink cluster does not report its
            version.
    """
    from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions

    engine = ENGINES.get(chosen.runner.name)
    arguments = [*chosen.arguments, *_flink_version(chosen)]
    options = PipelineOptions(arguments)
    if engine is None or options.view_as(PortableOptions).job_endpoint:
        return chosen
    option = f"{engine}_job_server_jar"
    given = options.get_all_options()[option]
    if given and not urlsplit(given).scheme:
        _check_jar(option, engine, Path(given))
    else:
        arguments += [f"--{option}", _download(option, engine, options)]
    return replace(chosen, arguments=tuple(arguments))


def _flink_version(chosen: ChosenRunner) -> list[str]:
    """Return an option with the cluster's version: Beam's default is its newest job server."""
    url = flink_url(chosen)
    if url is None or any(word.startswith("--flink_version") for word in chosen.arguments):
        return []
    try:
        version = ask_flink(url, "/config")["flink-version"]
    except (OSError, ValueError, LookupError) as error:
        raise RunnerError(
            f"--flink_master {url} does not answer as Flink's REST interface does: {error}"
        ) from None
    return ["--flink_version", ".".join(version.split(".")[:2])]


def prepare_servers(chosen: ChosenRunner, options: Any, folder: Path) -> None:
    """Change Beam's options so that Beam's servers work, and end with this process.

    Args:
        chosen: the runner.
        options: Beam's PipelineOptions; changed in place.
        folder: folder for a script; keep until the pipeline is submitted.
    """
    from apache_beam.options.pipeline_options import JobServerOptions, PrismRunnerOptions

    command = [sys.executable, "-c", TIED, str(os.getpid())]
    java = options.view_as(JobServerOptions)
    spark = ENGINES.get(chosen.runner.name) == "spark"
    opened = [f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in _SPARK_OPENED if spark]
    # Beam runs `launcher properties -jar ...`.
    java.job_server_jvm_properties = [
        *command[1:],
        java.job_server_java_launcher,
        *opened,
        *java.job_server_jvm_properties,
    ]
    java.job_server_java_launcher = command[0]
    prism = options.view_as(PrismRunnerOptions)
    if prism.prism_location and not zipfile.is_zipfile(prism.prism_location):
        script = folder / "prism"
        script.write_text(f'#!/bin/sh\nexec {shlex.join([*command, prism.prism_location])} "$@"\n')
        script.chmod(0o755)
        prism.prism_location = str(script)


def _download(option: str, engine: str, options: Any) -> str:
    """Return the path, in Beam's cache, of Beam's own jar or of a jar given by URL."""
    from apache_beam.options.pipeline_options import JobServerOptions
    from apache_beam.runners.portability.flink_runner import FlinkJarJobServer
    from apache_beam.runners.portability.spark_runner import SparkJarJobServer

    server = {"flink": FlinkJarJobServer, "spark": SparkJarJobServer}[engine](options)
    logging.disable(logging.WARNING)  # Beam's advice on public repositories
    try:
        cache = options.view_as(JobServerOptions).jar_cache_dir
        return str(server.local_jar(server.path_to_jar(), cache))
    except (RuntimeError, OSError, ValueError) as error:
        reason = re.split(r"\. (?:Also failed|If no Internet)", str(error))[0]
        raise RunnerError(
            f"Beam's job server for {engine.title()} cannot be downloaded: {reason}; give the jar "
            f"that you have with --{option}, or the address of a job server that runs with "
            "--job_endpoint (JOB_ENDPOINT=)"
        ) from None
    finally:
        logging.disable(logging.NOTSET)


def _check_jar(option: str, engine: str, jar: Path) -> None:
    if not jar.is_file():
        raise UsageError(f"--{option} {jar}: there is no such file")
    try:
        with zipfile.ZipFile(jar) as archive:
            manifest = archive.read(_MANIFEST).decode(errors="replace")
    except (zipfile.BadZipFile, KeyError):
        manifest = ""
    if "Main-Class:" not in manifest:
        raise UsageError(f"--{option} {jar} is not a program in Java: want Beam's job server")
    if _DRIVERS in manifest and f"{_DRIVERS}{engine}." not in manifest:
        raise UsageError(f"--{option} {jar} is the job server of another engine than {engine}")
