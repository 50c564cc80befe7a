"""What workers from Beam's own image install: this package, and exactly what runs here."""

import shutil
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from beam_pipeline.errors import RunnerError
from headct.errors import UsageError

_PROJECT = "headct-shards"
_SOURCE = Path(__file__).parents[2]
_BUILT_FROM = ("setup.py", "README.md", "LICENSE", "headct", "beam_pipeline")
_LEFT_OUT = ("__pycache__", "sample")
_BUILD_SECONDS = 300


def stage_package(folder: Path) -> list[str]:
    """The arguments of Beam that give workers the package, and the versions that this process has.

    Args:
        folder: to build in, which must be there until the pipeline is submitted.

    Raises:
        UsageError: this is not a source tree.
        RunnerError: the package cannot be built.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{pin}\n" for pin in pinned_requirements()))
    # Without `skip`, Beam would fetch the source of every requirement, to send it to workers.
    arguments = ["--requirements_file", str(requirements), "--requirements_cache", "skip"]
    return [*arguments, "--extra_package", str(build_wheel(folder))]


def pinned_requirements() -> list[str]:
    """Everything that the pipeline needs, as `name==version` of what is installed here.

    The trainer's requirements are not among it; Google's libraries are, if they are here.

    Raises:
        UsageError: something is not installed.
    """
    waiting = [Requirement(_PROJECT)]
    if util.find_spec("apitools"):
        waiting.append(Requirement("apache-beam[gcp]"))
    found: dict[str, set[str]] = {}  # the extras that are asked for, by name
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = {"", *requirement.extras}
        if extras <= found.get(name, set()):
            continue
        found[name] = found.get(name, set()) | extras
        waiting += _requirements_of(name, found[name])
    del found[_PROJECT]
    return sorted(f"{name}=={metadata.version(name)}" for name in found)


def _requirements_of(name: str, extras: set[str]) -> list[Requirement]:
    try:
        parsed = [Requirement(text) for text in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        raise UsageError(f"workers need {name}, which is not installed here") from None
    return [
        requirement
        for requirement in parsed
        if requirement.marker is None
        or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)
    ]


def build_wheel(folder: Path) -> Path:
    """A wheel of the pipeline alone, without trainer and sample, built in a folder.

    Raises:
        UsageError: this is not a source tree.
        RunnerError: it cannot be built.
    """
    if not (_SOURCE / "setup.py").exists():
        raise UsageError(
            "workers that start from Beam's own image get this package from its source tree, which "
            "is not here; give an image that has it, with --sdk_container_image"
        )
    copy = folder / "source"
    copy.mkdir()
    for name in _BUILT_FROM:
        if (_SOURCE / name).is_dir():
            ignore = shutil.ignore_patterns(*_LEFT_OUT)
            shutil.copytree(_SOURCE / name, copy / name, ignore=ignore)
        else:
            shutil.copy(_SOURCE / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--wheel-dir", str(folder), str(copy)]
    try:
        built = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS)
    except subprocess.TimeoutExpired:
        raise RunnerError(
            f"this package could not be built for workers in {_BUILD_SECONDS} s"
        ) from None
    if built.returncode:
        raise RunnerError(f"this package cannot be built for workers: {_why(built.stderr)}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def _why(output: str) -> str:
    """The first error that pip reports: what it ends with is about pip itself."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return next(iter([*errors, *lines[-1:]]), "pip gives no reason")
