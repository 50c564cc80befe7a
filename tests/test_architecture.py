"""docs/architecture.md lists every module in the order of the imports, and says what is true.

test_walls.py has the walls between packages.
"""

import re
import tomllib

import pytest

from tests import architecture_page as page

TEXT = page.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("package", page.PACKAGES)
def test_imports_point_down_in_the_list_of_modules(package: str) -> None:
    """`ordered` raises a CycleError where rooms, or modules of one room, import each other."""
    assert page.listing(package) in TEXT, "write the page: python -m tests.architecture_page"


def test_no_module_is_missing_and_every_module_says_what_it_is() -> None:
    for package in page.PACKAGES:
        lines = page.listing(package).splitlines()
        assert len(lines) == len(page.modules(package)) - 1
        assert not [line for line in lines if len(line.split(maxsplit=1)) < 2]


def test_exceptions_are_needed() -> None:
    for module in page.APART:
        assert module in page.modules(module.partition(".")[0])
        assert f"`{module.partition('.')[2].replace('.', '/')}.py`" in TEXT


def test_the_page_names_what_imports_beam() -> None:
    (named,) = re.findall(r"Only ([^.]*(?:\.py[^.]*)*) import Apache Beam", TEXT)
    found = set()
    for name, path in page.modules("beam_pipeline").items():
        if re.search(r"^\s*(?:import|from) apache_beam", path.read_text(encoding="utf-8"), re.M):
            room = page.entry(name).removeprefix("beam_pipeline.")
            is_room = page.modules("beam_pipeline")[page.entry(name)].name == "__init__.py"
            found.add(f"{room}/" if is_room else f"{room}.py")
    assert set(re.findall(r"`(.*?)`", named)) == found


@pytest.mark.parametrize(
    ("imported", "cycle"), [({"a": {"b"}, "b": {"c"}}, False), ({"a": {"b"}, "b": {"a"}}, True)]
)
def test_a_circle_is_an_error(imported: dict[str, set[str]], cycle: bool) -> None:
    if cycle:
        with pytest.raises(page.CycleError):
            page.ordered({"a", "b"}, imported)
    else:
        assert page.ordered({"a", "b", "c"}, imported) == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_the_files_that_a_page_names_are_there(name: str) -> None:
    text = (page.ROOT / name).read_text(encoding="utf-8")
    named = set(
        re.findall(r"`((?:headct|beam_pipeline|trainer|tests|docs|examples)/[\w./-]+)`", text)
    )
    assert named
    assert not [path for path in sorted(named) if not (page.ROOT / path).exists()]


def test_the_modules_that_the_page_names_are_there() -> None:
    known = [
        f"/{path.relative_to(page.ROOT).as_posix()}"
        for package in page.PACKAGES
        for path in page.modules(package).values()
    ]
    named = set(re.findall(r"`([\w/]+\.py)`", TEXT))
    assert len(named) > 40
    lost = [each for each in named if not any(path.endswith(f"/{each}") for path in known)]
    assert not [each for each in lost if not (page.ROOT / each).exists()]


def test_stops_are_counted() -> None:
    rows = re.findall(r"^\| (an? [^|]+) \| (\d+) \| (.+) \|$", TEXT, re.M)
    assert [name for name, *_ in rows] == [
        *("a slice", "a label", "an option (`--image_size`)", "a training step")
    ]
    for _, count, stops in rows:
        assert len({*stops.split(", ")}) == int(count)


def test_mutated_modules_and_their_tests_are_there() -> None:
    project = tomllib.loads((page.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for module, names in project["tool"]["mutants"]["modules"].items():
        path = page.ROOT / module
        assert path.is_file(), module
        for name in names or [path.stem]:
            assert [*(page.ROOT / "tests").glob(f"*/test_{name}.py")], f"{module}: {name}"
