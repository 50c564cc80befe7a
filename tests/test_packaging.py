"""What pyproject.toml declares: every import, every data file, and versions in constraints.txt."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
OURS = {"headct", "beam_pipeline", "trainer"}


def names(requirements: list[str]) -> Iterator[str]:
    """The distributions of requirements, extras of this project followed."""
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        assert name
        if name[0] == PROJECT["name"]:
            for extra in re.findall(r"[\w-]+", requirement.partition("[")[2].partition("]")[0]):
                yield from names(EXTRAS[extra])
        else:
            yield canonical(name[0])


def canonical(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def imported(package: str) -> set[str]:
    """The modules of others that a package imports, anywhere; two levels deep in `google`."""
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
    tops = {".".join(name.split(".")[: 2 if name.startswith("google.") else 1]) for name in found}
    return tops - {*sys.stdlib_module_names} - OURS


@pytest.mark.parametrize(
    ("package", "extras"),
    [
        ("headct", ["gcp"]),
        ("beam_pipeline", []),
        ("trainer", ["trainer", "jax", "onnx", "mlflow", "wandb"]),
    ],
)
def test_every_import_is_declared(package: str, extras: list[str]) -> None:
    declared = {*names(PROJECT["dependencies"]), *names([f"{PROJECT['name']}[{','.join(extras)}]"])}
    distributions = packages_distributions()
    given = {"google.protobuf": ["protobuf"]}
    given |= {"google.auth": ["google-auth"], "google.oauth2": ["google-auth"]}
    given |= {"mlflow": ["mlflow"], "wandb": ["wandb"]}  # perhaps not installed
    for module in imported(package):
        providers = given.get(module) or distributions[module]
        wanted = {canonical(provider).removesuffix("-cpu") for provider in providers}
        assert wanted & declared, module


def test_the_pipeline_and_lint_need_no_tensorflow() -> None:
    for extra in ("lint", "test-pipeline", "gcp"):
        needed = {*names(PROJECT["dependencies"]), *names(EXTRAS[extra])}
        assert not [name for name in needed if name.startswith(("tensorflow", "keras", "jax"))]


def test_every_requirement_has_a_version_in_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0] for line in lines}
    for requirements in (PROJECT["dependencies"], *EXTRAS.values()):
        assert {*names(requirements)} <= pinned


def test_data_files_are_packaged() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    patterns = tool["setuptools"]["package-data"]
    packaged = {
        path
        for package, globs in patterns.items()
        for pattern in globs
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    files = {
        path
        for package in OURS
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert files == packaged
