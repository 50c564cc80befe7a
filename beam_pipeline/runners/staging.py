"""Packages for workers of Beam's own image: this one, and the versions that are installed here."""

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
    """Build a wheel; return Beam's options that install it and the pinned requirements on workers.

    Args:
        folder: to build in; keep it until the pipeline is submitted.

    Raises:
        UsageError: the source tree is missing.
        RunnerError: the package cannot be built.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{pin}\n" for pin in pinned_requirements()))
    # `skip`: Beam would download the source of every requirement and send it to workers.
    arguments = ["--requirements_file", str(requirements), "--requirements_cache", "skip"]
    return [*arguments, "--extra_package", str(build_wheel(folder))]


def pinned_requirements() -> list[str]:
    """Return the pipeline's requirements as `name==version`, in the versions installed here.

    Google's libraries are included if they are installed, the trainer's requirements are not.

    Raises:
        UsageError: a requirement is not installed.
    """
    waiting = [Requirement(_PROJECT)]
    if util.find_spec("apitools"):
        waiting.append(Requirement("apache-beam[gcp]"))
    extras_of: dict[str, set[str]] = {}
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = {"", *requirement.extras}
        if extras <= extras_of.get(name, set()):
            continue
        extras_of[name] = extras_of.get(name, set()) | extras
        waiting += _requirements_of(name, extras_of[name])
    del extras_of[_PROJECT]
    return sorted(f"{name}=={metadata.version(name)}" for name in extras_of)


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
    """Build a wheel of the pipeline in a folder, without trainer and sample.

    Raises:
        UsageError: the source tree is missing.
        RunnerError: the wheel cannot be built.
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
        raise RunnerError(f"this package cannot be built for workers: {_first_error(built.stderr)}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def _first_error(output: str) -> str:
    """Return the first error that pip reports; its last lines are about pip itself."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return next(iter([*errors, *lines[-1:]]), "pip gives no reason")
