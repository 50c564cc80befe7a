"""What workers run: what is staged for Beam's own image, and what the Dockerfile installs.

Both are installed into empty environments of this Python, in which nothing of the source tree is.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from beam_pipeline.command_line import parse_options
from beam_pipeline.pipeline import build
from beam_pipeline.runners.staging import pinned_requirements, stage_package
from tests.beam_pipeline.dicom_files import make_dicom
from tests.engines.engines import ROOT, digests

pytestmark = pytest.mark.timeout(900)  # to download and install takes minutes

STAGED_PIPELINE = Path(__file__).with_name("staged_pipeline.py")
SLICES = 2
IMAGE_PARAMETER = "sdk_container_image"
TEMPLATE_PARAMETERS = {
    "input": "gs://my-bucket/slices",
    "labels": "gs://my-bucket/labels.csv",
    "output": "gs://my-bucket/shards",
    "windows": "brain,subdural",
    "image_size": "256",
    "folds": "3",
    "holdout": "0.25",
    "seed": "7",
    "max_reject_fraction": "0.1",
    IMAGE_PARAMETER: "europe-west1-docker.pkg.dev/my-project/images/headct:1",
}
TRAINER = {"tensorflow", "keras", "trainer"}
INSTALL_SECONDS = 600
RUN_SECONDS = 120
needs_google = pytest.mark.skipif(
    not util.find_spec("apitools"), reason="apache-beam[gcp] is not installed"
)
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")


@dataclass(frozen=True)
class Environment:
    """A Python of its own, in a folder in which nothing else is."""

    folder: Path

    @property
    def packages(self) -> Path:
        """Where they are installed."""
        (found,) = self.folder.glob("venv/lib/python*/site-packages")
        return found

    @property
    def python(self) -> str:
        """Its program."""
        return str(self.folder / "venv" / "bin" / "python")

    def run(
        self, *command: str, seconds: float = RUN_SECONDS, check: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        """Run its Python in an empty folder; fails the test if the command fails."""
        return self.shell([self.python, *command], self.folder / "cwd", {}, seconds, check)

    def shell(
        self,
        command: list[str],
        folder: Path,
        variables: dict[str, str],
        seconds: float = INSTALL_SECONDS,
        check: bool = True,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command as if the environment's programs were the only ones of Python."""
        programs = str(Path(self.python).parent)
        path = os.pathsep.join([programs, os.environ["PATH"]])
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            command,
            cwd=folder,
            env=kept | variables | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def versions(self) -> dict[str, str]:
        """What is installed, but for the tools of a new environment."""
        command = ["-m", "pip", "list", "--format", "freeze", "--disable-pip-version-check"]
        listed = self.run(*command).stdout.splitlines()
        found = dict(line.split("==") for line in listed)
        return {
            canonicalize_name(name): version
            for name, version in found.items()
            if name not in ("pip", "setuptools", "wheel")
        }


def make_environment(folder: Path) -> Environment:
    """An empty one but for pip, which is the newest: Python's own takes minutes to install all."""
    venv.create(folder / "venv", with_pip=True)
    (folder / "cwd").mkdir()
    environment = Environment(folder)
    environment.run(*PIP, "install", "--upgrade", "pip")
    return environment


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with what was staged, installed in the order of Beam's boot program."""
    folder = tmp_path_factory.mktemp("staged")
    arguments = stage_package(folder)
    staged = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert staged["--requirements_cache"] == "skip"
    environment = make_environment(tmp_path_factory.mktemp("worker"))
    install = [*PIP, "install", "--no-deps"]  # whether it is all that is needed, `pip check` tells
    environment.run(
        *install, "--no-compile", "-r", staged["--requirements_file"], seconds=INSTALL_SECONDS
    )
    environment.run(*install, "--force-reinstall", staged["--extra_package"])
    return environment


def test_the_staged_versions_are_all_there_is(worker: Environment) -> None:
    pins = dict(pin.split("==") for pin in pinned_requirements())
    assert worker.versions() == pins | {"headct-shards": metadata.version("headct-shards")}
    assert pins.keys().isdisjoint(TRAINER)
    assert pins["apache-beam"] == beam.__version__


def test_the_staged_versions_suffice(worker: Environment) -> None:
    worker.run("-m", "pip", "check")


def test_the_wheel_holds_the_pipeline_alone(worker: Environment) -> None:
    installed = worker.run("-c", "import beam_pipeline; print(beam_pipeline.__file__)").stdout
    packages = Path(installed).parents[1]
    assert packages.is_relative_to(worker.folder)
    assert not (packages / "trainer").exists()
    source = {path.relative_to(ROOT) for path in (ROOT / "beam_pipeline").rglob("*.py")}
    found = {path.relative_to(packages) for path in (packages / "beam_pipeline").rglob("*.py")}
    assert found == {path for path in source if path.parts[1] != "sample"}


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slices")
    pixels = np.random.default_rng(0).integers(0, 1200, (SLICES, 32, 32)).astype(np.int16)
    for number, image in enumerate(pixels):
        data = make_dicom(image, SOPInstanceUID=f"1.{number}", PatientID=f"p{number}")
        (folder / f"ID_{number}.dcm").write_bytes(data)
    return folder


def to_convert(slices: Path, output: Path) -> list[str]:
    return ["--input", str(slices), "--output", str(output), "--image_size", "32"]


@pytest.fixture(scope="module")
def expected(slices: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the pipeline makes of the slices here."""
    output = tmp_path_factory.mktemp("here") / "shards"
    command = [sys.executable, "-m", "beam_pipeline", *to_convert(slices, output)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=RUN_SECONDS)
    return digests(output)


def test_the_command_gives_the_same_bytes_there(
    worker: Environment, slices: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    done = worker.run("-m", "beam_pipeline", *to_convert(slices, tmp_path / "shards"))
    assert done.stderr == ""
    assert digests(tmp_path / "shards") == expected


def test_the_sdk_harness_gives_the_same_bytes_there(
    worker: Environment, slices: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    """Of a pipeline that was built here, as the launcher does."""
    output = tmp_path / "shards"
    options, _ = parse_options(to_convert(slices, output))
    pipeline = beam.Pipeline()
    build(pipeline, options)
    folder = tmp_path / "worker"
    (folder / "staged").mkdir(parents=True)
    serialized = pipeline.to_runner_api().SerializeToString()
    (folder / "staged" / "pipeline.pb").write_bytes(serialized)
    output.mkdir()
    worker.run("-P", str(STAGED_PIPELINE), str(folder))
    assert digests(output) == expected


@dataclass(frozen=True)
class Dockerfile:
    """What it says.

    Attributes:
        arguments: that it takes, with their values.
        base: what its last stage starts from.
        instructions: of the last stage, with what follows their names.
    """

    arguments: dict[str, str]
    base: str
    instructions: list[tuple[str, str]]

    def variables(self) -> dict[str, str]:
        """The environment that it sets."""
        return dict(text.split("=", 1) for name, text in self.instructions if name == "ENV")


@pytest.fixture(scope="module")
def dockerfile() -> Dockerfile:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    split = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    instructions = [(name, rest) for name, rest in split]
    starts = [index for index, (name, _) in enumerate(instructions) if name == "FROM"]
    given = dict(rest.split("=", 1) for name, rest in instructions[: starts[0]] if name == "ARG")
    base = re.sub(r"\$\{(\w+)\}", lambda found: given[found[1]], instructions[starts[-1]][1])
    return Dockerfile(given, base, instructions[starts[-1] + 1 :])


@dataclass(frozen=True)
class Image:
    """What the Dockerfile makes, as far as this machine can tell.

    Attributes:
        environment: the Python of the image.
        root: the folder that is `/` there.
        work: the last working directory.
    """

    environment: Environment
    root: Path
    work: Path

    def find(self, path: str) -> Path:
        """A path in the image, from its working directory."""
        return self.root / path.lstrip("/") if path.startswith("/") else self.work / path


@pytest.fixture(scope="module")
def image(
    worker: Environment, dockerfile: Dockerfile, tmp_path_factory: pytest.TempPathFactory
) -> Image:
    """The Dockerfile's own instructions, run with packages that were downloaded before.

    The environment holds the libraries that were staged, so that pip need not download them again,
    but not this package.
    """
    environment = make_environment(tmp_path_factory.mktemp("image"))
    packages = environment.packages
    shutil.rmtree(packages)
    not_copied = shutil.ignore_patterns("beam_pipeline", "headct_shards-*")
    shutil.copytree(worker.packages, packages, copy_function=os.link, ignore=not_copied)
    context = make_context(tmp_path_factory.mktemp("context"))
    image = Image(environment, environment.folder / "root", environment.folder / "root")
    variables: dict[str, str] = {}
    for name, text in dockerfile.instructions:
        if name == "WORKDIR":
            image = Image(environment, image.root, image.find(text))
            image.work.mkdir(parents=True)
        elif name == "ENV":
            variables |= dict([text.split("=", 1)])
        elif name == "COPY" and not text.startswith("--from="):
            copy(context, image, text.split())
        elif name == "RUN":
            environment.shell(["sh", "-c", text], image.work, variables)
    return image


def make_context(folder: Path) -> Path:
    """What Docker is sent: nothing but what .dockerignore excepts from its first line."""
    first, *others = (ROOT / ".dockerignore").read_text().splitlines()
    assert first == "*"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in (line.removeprefix("!") for line in others if line.startswith("!")):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


def copy(context: Path, image: Image, paths: list[str]) -> None:
    *sources, target = paths
    for source in sources:
        if (context / source).is_dir():
            shutil.copytree(context / source, image.find(target))
        else:
            shutil.copy(context / source, image.find(target))


def constraints() -> dict[str, str]:
    """The versions of `constraints.txt` for this Python and machine."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        canonicalize_name(requirement.name): str(requirement.specifier).removeprefix("==")
        for requirement in parsed
        if requirement.marker is None or requirement.marker.evaluate()
    }


@needs_google
def test_the_image_has_the_versions_that_would_be_staged(worker: Environment, image: Image) -> None:
    assert image.environment.versions() == worker.versions()
    image.environment.run("-m", "pip", "check")


@needs_google
def test_the_image_has_the_versions_of_the_constraints(image: Image) -> None:
    versions = image.environment.versions()
    del versions["headct-shards"]
    assert versions.items() <= constraints().items()
    assert versions.keys().isdisjoint(TRAINER)


@needs_google
def test_the_image_converts(
    image: Image, slices: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    image.environment.run("-m", "beam_pipeline", *to_convert(slices, tmp_path / "shards"))
    assert digests(tmp_path / "shards") == expected


@needs_google
def test_the_template_launcher_finds_the_command(
    image: Image, dockerfile: Dockerfile, slices: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    program = image.find(dockerfile.variables()["FLEX_TEMPLATE_PYTHON_PY_FILE"])
    image.environment.run(str(program), *to_convert(slices, tmp_path / "shards"))
    assert digests(tmp_path / "shards") == expected
    copied = [text.split() for name, text in dockerfile.instructions if name == "COPY"]
    (launcher,) = [paths for paths in copied if paths[0].startswith("--from=")]
    assert launcher[1:] == [
        "/opt/google/dataflow/python_template_launcher",
        "/opt/google/dataflow/",
    ]


def test_the_image_starts_beams_boot_program(dockerfile: Dockerfile) -> None:
    """It is the entry point of Beam's image, which is of the same version as the library."""
    assert dockerfile.base == f"apache/beam_python3.11_sdk:{constraints()['apache-beam']}"
    assert {"ENTRYPOINT", "CMD"}.isdisjoint(name for name, _ in dockerfile.instructions)
    assert dockerfile.variables()["RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT"] == "1"


def test_the_template_has_parameters_that_the_command_takes() -> None:
    parameters = json.loads((ROOT / "docs" / "dataflow-template.json").read_text())["parameters"]
    assert {parameter["name"] for parameter in parameters} == TEMPLATE_PARAMETERS.keys()
    for parameter in parameters:
        for pattern in parameter.get("regexes", []):
            assert re.fullmatch(pattern, TEMPLATE_PARAMETERS[parameter["name"]])
    given = [f"--{name}={value}" for name, value in TEMPLATE_PARAMETERS.items()]
    launcher = ["--runner=DataflowRunner", "--project=p", "--region=r", "--temp_location=gs://b/t"]
    options, chosen = parse_options([*given, *launcher])
    assert (options.splits.folds, options.splits.holdout, options.splits.seed) == (3, 0.25, 7)
    assert chosen.arguments[0] == f"--sdk_container_image={TEMPLATE_PARAMETERS[IMAGE_PARAMETER]}"
