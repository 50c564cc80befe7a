"""Training steps on a GPU machine without internet: wheels packed here, measured there.

    python3 -m tests.benchmarks.gpu_kit pack KIT --shards SHARDS   # here; or `make bench-gpu-kit`
    python3 -m tests.benchmarks.gpu_kit measure KIT         # there; or `make bench-gpu KIT=KIT`

The GPU machine needs this repository, the folder KIT, Python with pip, JAX with CUDA, NumPy and
OpenCV, and no TensorFlow. KIT gets SHARDS and wheels for its Python, in parts that any way of
copying takes; pip there installs only those that are missing, into KIT/venv. `measure` joins the
parts, installs, and runs `trainer_step` with JAX until --minutes are over: 2 for the installation
and 10 for measuring, of which each size and precision takes about 2, and the training that is
killed and resumed 1. This module needs the standard library alone.
"""

import argparse
import hashlib
import os
import re
import shutil
import site
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PART = 60 << 20
# The machine's own builds stay, and the trainer needs neither Beam nor buckets.
_OWN = {"jax", "jaxlib", "numpy", "opencv-python-headless"}
_UNUSED = {"apache-beam", "botocore", "obstore", "pydicom"}
_PLATFORMS = [
    "manylinux1",
    "manylinux2014",
    *(f"manylinux_2_{i}" for i in (5, 12, 17, 24, 26, 27, 28)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, dest="command")
    packing, measuring = commands.add_parser("pack"), commands.add_parser("measure")
    packing.add_argument("kit", type=Path)
    packing.add_argument("--shards", type=Path, required=True)
    packing.add_argument("--python", default="3.12", help="version on the GPU machine")
    packing.add_argument("--without", nargs="*", default=[], help="packages that it has, too")
    measuring.add_argument("kit", type=Path)
    measuring.add_argument("--minutes", type=float, default=12.0)
    given, rest = parser.parse_known_args()
    if given.command == "measure":
        measure(given.kit, given.minutes, rest)
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    else:
        pack(given.kit, given.shards, given.python, _OWN | set(given.without))


def pack(kit: Path, shards: Path, python: str, present: set[str]) -> None:
    """Download wheels of all that the trainer needs, except `present`, and copy the shards."""
    shutil.rmtree(kit, ignore_errors=True)
    wheels = kit / "wheels"
    wheels.mkdir(parents=True)
    shutil.copytree(shards, kit / "shards")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *project["optional-dependencies"]["keras"]]
    wanted = [each for each in named if name_of(each) not in present | _UNUSED]
    wanted.append("tensorflow-cpu")
    (kit / "requirements.txt").write_text("\n".join(wanted))
    command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:"]
    command += ["--implementation=cp", f"--python-version={python}", "-d", str(wheels)]
    command += [f"--platform={each}_x86_64" for each in _PLATFORMS]
    subprocess.run([*command, "-c", ROOT / "constraints.txt", *wanted], check=True)
    sums = []
    for wheel in sorted(wheels.iterdir()):
        if name_of(wheel.name.partition("-")[0]) in present:
            wheel.unlink()
            continue
        data = wheel.read_bytes()
        sums.append(f"{hashlib.sha256(data).hexdigest()}  {wheel.name}\n")
        if len(data) > PART:
            for i in range(0, len(data), PART):
                Path(f"{wheel}.{i // PART:02}").write_bytes(data[i : i + PART])
            wheel.unlink()
    (kit / "SHA256SUMS").write_text("".join(sums))
    size = sum(each.stat().st_size for each in kit.rglob("*") if each.is_file())
    print(f"{kit}: {len(sums)} wheels for Python {python}, and shards: {size >> 20} MiB")


def measure(kit: Path, minutes: float, arguments: list[str]) -> None:
    """Install the kit beside this Python's packages, unless it is, and measure."""
    started = time.monotonic()
    python = install(kit)
    left = minutes - (time.monotonic() - started) / 60
    print(f"installed in {minutes - left:.1f} minutes", flush=True)
    command = [python, "-m", "tests.benchmarks.trainer_step", "--shards", kit / "shards"]
    command += ["--minutes", f"{left:.2f}", *arguments]
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    sys.exit(subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode)


def install(kit: Path) -> Path:
    """Install the kit beside this Python's packages, unless it is; return the Python with both."""
    venv, sums = kit / "venv", (kit / "SHA256SUMS").read_text()
    python, done = venv / "bin" / "python", venv / "installed"
    # An installation that was interrupted, or is of another kit or Python, is made anew.
    installed = f"{sys.executable} {sys.version}\n{sums}"
    if done.exists() and done.read_text() == installed:
        return python
    for line in sums.splitlines():
        digest, name = line.split()
        wheel = kit / "wheels" / name
        parts = sorted(wheel.parent.glob(f"{name}.[0-9][0-9]"))
        if not wheel.exists():
            wheel.write_bytes(b"".join(part.read_bytes() for part in parts))
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != digest:
            wheel.unlink()
            sys.exit(f"{wheel}: not as packed; copy it, or all its parts, again")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--clear", venv], check=True)
    # Not --system-site-packages: this Python may itself be one of a virtual environment.
    (target,) = venv.glob("lib/python*/site-packages")
    (target / "machine.pth").write_text("\n".join(map(os.path.abspath, own_packages())))
    command = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index"]
    command += ["--find-links", kit / "wheels", "-r", kit / "requirements.txt"]
    subprocess.run(command, check=True)
    done.write_text(installed)
    return python


def own_packages() -> list[str]:
    """Return the folders of this Python's packages."""
    folders = [*site.getsitepackages(), site.getusersitepackages()]
    return [each for each in folders if Path(each).is_dir()]


def name_of(requirement: str) -> str:
    """Return the package's name, normalized."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]*\w", requirement)[0]).lower()  # type: ignore[index]


if __name__ == "__main__":
    main()
