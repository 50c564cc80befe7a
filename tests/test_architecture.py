"""Which room may import which, without circles, and that docs/architecture.md says the same.

test_walls.py has the walls between packages.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each room may import those before it, and the modules at the top of its package that are named
# with them. `verify` is a program of its own.
ROOMS = {
    "headct": (
        {"errors", "locks", "page", "printable", "tfrecord"},
        {"reasons", "layout", "terminal"},
        {"commands", "json_documents"},
        {"declarations", "manifest"},
        {"png"},
        {"stores"},
        {"completion", "reader"},
        {"cli"},
    ),
    "beam_pipeline": (
        {"errors", "split_tables"},
        {"keys", "dicom", "images.windows"},
        {"options"},
        {"images", "workers"},
        {"shards"},
        {"progress"},
        {"planning"},
        {"card"},
        {"shards.finish"},
        {"transforms", "pipeline"},
        {"runners"},
        {"command_line"},
        {"run"},
        {"api"},
        {"__main__", "verify", "show", "card.__main__"},
    ),
    "trainer": (
        {
            "errors",
            "files",
            "native_log",
            "options",
            "display",
        },
        {"data"},
        {"networks.catalog"},
        {"runs"},
        {"networks"},
        {"evaluation"},
        {"report"},
        {"training"},
        {"command_line"},
        {"api", "__main__"},
    ),
}


SECTIONS = {"headct": "The ground floor", "beam_pipeline": "The pipeline", "trainer": "The trainer"}
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def modules(package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / package).with_suffix("").parts)
        if path.name != "__init__.py":
            yield name, path


def imports(path: Path) -> Iterator[str]:
    """What a module imports when it runs; not for its types alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor(package: str, module: str) -> int | None:
    """The number of the room that a module is in, from the bottom."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        for number, rooms in enumerate(ROOMS[package]):
            if ".".join(parts[:length]) in rooms:
                return number
    return None


@pytest.mark.parametrize("package", ROOMS)
def test_imports_point_down(package: str) -> None:
    wrong = []
    for name, path in modules(package):
        above = floor(package, name)
        assert above is not None, f"{package}.{name} is in no room"
        for imported in imports(path):
            if not imported.startswith(f"{package}."):
                continue
            below = floor(package, imported.removeprefix(f"{package}."))
            if below is not None and below > above:
                wrong.append(f"{name} imports {imported}")
    assert not wrong


@pytest.mark.parametrize("package", ROOMS)
def test_no_module_imports_itself_by_way_of_others(package: str) -> None:
    """Not even within a function, where Python would let it."""
    names = {f"{package}.{name}" for name, _ in modules(package)}
    TopologicalSorter(
        {f"{package}.{name}": names.intersection(imports(path)) for name, path in modules(package)}
    ).prepare()  # raises a CycleError, which names the circle


def entries(package: str) -> set[str]:
    """Modules and folders at the top of a package, as the page writes them."""
    names = {f"{name.partition('.')[0]}/" for name, _ in modules(package) if "." in name}
    return names | {f"{name}.py" for name, _ in modules(package) if "." not in name}


@pytest.mark.parametrize("package", ROOMS)
def test_the_page_lists_all_rooms_from_top_to_bottom(package: str) -> None:
    section = PAGE.partition(f"## {SECTIONS[package]}\n")[2]
    block = section.partition("```\n")[2].partition("```")[0]
    listed = [line.split()[0] for line in block.splitlines()]
    assert set(listed) == entries(package)
    assert len(listed) == len(set(listed))
    floors = [floor(package, name.rstrip("/").removesuffix(".py")) for name in listed]
    assert floors == sorted(floors, reverse=True)


def test_the_page_names_what_stands_elsewhere_than_its_folder() -> None:
    for package, rooms in ROOMS.items():
        for name in (name for names in rooms for name in names if "." in name):
            assert f"`{name.replace('.', '/')}.py`" in PAGE, f"{package}.{name}"


def test_the_page_names_what_imports_beam() -> None:
    (named,) = re.findall(r"Only ([^.]*(?:\.py[^.]*)*) import Apache Beam", PAGE)
    found = {
        f"{name.partition('.')[0]}/" if "." in name else f"{name}.py"
        for name, path in modules("beam_pipeline")
        if any(imported.split(".")[0] == "apache_beam" for imported in imports(path))
    }
    assert set(re.findall(r"`(.*?)`", named)) == found
