"""Packages for workers of Beam's own image: this package, and pinned requirements."""

import base64
import hashlib
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from headct.errors import UsageError

_PROJECT = "headct-shards"
_PACKAGES = ("headct", "beam_pipeline")
_INSTALLED = Path(__file__).parents[2]
_WHEEL = b"Wheel-Version: 1.0\nGenerator: headct\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def needs_package(arguments: Sequence[str]) -> bool:
    """Return whether workers start in containers of Beam's own image, by Beam's options."""
    from apache_beam.options.pipeline_options import (
        PipelineOptions,
        PortableOptions,
        SetupOptions,
        WorkerOptions,
    )

    options = PipelineOptions(list(arguments))
    portable = options.view_as(PortableOptions)
    has_image = options.view_as(WorkerOptions).sdk_container_image or portable.environment_config
    starts_containers = portable.environment_type in (None, "DOCKER")
    return starts_containers and not (has_image or options.view_as(SetupOptions).setup_file)


def stage_package(folder: Path) -> list[str]:
    """Build a wheel; return Beam's options to install the wheel and pinned requirements.

    Args:
        folder: build folder; keep until the pipeline is submitted.

    Raises:
        UsageError: a requirement is not installed.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{pin}\n" for pin in pinned_requirements()))
    # `skip`: Beam would download the source of every requirement and send it to workers.
    arguments = ["--requirements_file", str(requirements), "--requirements_cache", "skip"]
    return [*arguments, "--extra_package", str(build_wheel(folder))]


def pinned_requirements() -> list[str]:
    """Return the pipeline's requirements as `name==version`, with the installed versions.

    Includes Google's libraries if they are installed; excludes the trainer's requirements.

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
        try:
            required = [Requirement(text) for text in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            raise UsageError(f"workers need {name}, which is not installed here") from None
        waiting += [
            needed
            for needed in required
            if not needed.marker
            or any(needed.marker.evaluate({"extra": extra}) for extra in extras_of[name])
        ]
    del extras_of[_PROJECT]
    return sorted(f"{name}=={metadata.version(name)}" for name in extras_of)


def build_wheel(folder: Path) -> Path:
    """Write a wheel of the pipeline, without the trainer, from the installed files.

    A clone and an installed wheel have the same files, so neither needs a build tool or a network.
    """
    distribution = metadata.distribution(_PROJECT)
    about = f"headct_shards-{distribution.version}.dist-info"
    files = {
        path.relative_to(_INSTALLED).as_posix(): path.read_bytes()
        for package in _PACKAGES
        for path in sorted((_INSTALLED / package).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    # An editable installation may keep its metadata as PKG-INFO.
    described = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    files[f"{about}/METADATA"] = described.encode()
    files[f"{about}/WHEEL"] = _WHEEL
    record = [f"{name},{_hash(data)},{len(data)}\n" for name, data in files.items()]
    files[f"{about}/RECORD"] = "".join([*record, f"{about}/RECORD,,\n"]).encode()
    wheel = folder / f"headct_shards-{distribution.version}-py3-none-any.whl"
    with ZipFile(wheel, "w", ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return wheel


def _hash(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
    return f"sha256={digest}"
