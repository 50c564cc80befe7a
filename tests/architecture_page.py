"""The module lists of docs/architecture.md: `python -m tests.architecture_page` writes them.

A module's line is the first line of its docstring; the order is that of the imports, so that each
module imports only what is listed below it.
"""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
__all__ = ["CycleError", "entry", "listing", "modules", "ordered", "written"]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("headct", "beam_pipeline", "trainer")

# Modules that stand at another height than the rest of their folder, and why.
APART = {"beam_pipeline.card.__main__": "a program of its own"}


@cache
def modules(package: str) -> dict[str, Path]:
    """The modules of a package, by their names; a package inside it counts as `PACKAGE.ROOM`."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(package: str, module: str) -> frozenset[str]:
    """What a module imports of its package, also within functions and for its types."""
    known = modules(package)
    names = set()
    for node in ast.walk(ast.parse(known[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & {*known}
            names |= inner or {node.module}
    return frozenset(names & {*known} - {module, package})


def entry(module: str) -> str:
    """The line of the list that a module belongs to: its room, or the module itself."""
    return module if module in APART else ".".join(module.split(".")[:2])


def ordered(nodes: set[str], below: dict[str, set[str]]) -> list[str]:
    """Nodes with what they import behind them.

    Raises:
        CycleError: some import each other; the error names them.
    """
    sorter = TopologicalSorter({node: sorted(below.get(node, ())) for node in sorted(nodes)})
    return [*sorter.static_order()][::-1]


def listing(package: str) -> str:
    """A package's rooms and modules, top to bottom."""
    known = {name for name in modules(package) if name != package}
    entries = {entry(name) for name in known}
    between: dict[str, set[str]] = {name: set() for name in entries}
    for name in known:
        between[entry(name)] |= {entry(other) for other in imports(package, name)} - {entry(name)}
    lines = []
    for top in ordered(entries, between):
        inside = {name for name in known if entry(name) == top and name != top}
        is_room = modules(package)[top].name == "__init__.py"
        title = top.partition(".")[2].replace(".", "/") + ("/" if is_room else ".py")
        lines.append(_line(title, modules(package)[top]))
        within = {name: imports(package, name) & inside for name in inside}
        for name in ordered(inside, within):
            lines.append(_line(f"    {name.rpartition('.')[2]}.py", modules(package)[name]))
    return "\n".join(lines)


def _line(title: str, path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return f"{title:<26} {docstring.partition(chr(10))[0].rstrip('.')}".rstrip()


def written(page: str) -> str:
    """The page with the lists that the code has."""
    for package in PACKAGES:
        before, mark, rest = page.partition(f"<!-- modules of {package} -->\n```\n")
        assert mark, f"{PAGE.name} has no list of the modules of {package}"
        _, fence, after = f"\n{rest}".partition("\n```\n")
        page = f"{before}{mark}{listing(package)}{fence}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
