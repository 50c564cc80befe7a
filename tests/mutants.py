"""Mutation testing of the pure modules: which changes of one token would no test notice?

Cosmic Ray makes the mutants. Only the tests of the mutated module run, on a copy of the working
tree, so that nothing mutated stays behind; pyproject.toml ([tool.mutants]) lists the modules, their
tests and the kinds of mutants. The sample of a module is the same as long as its code and the seed
are. Each run of tests is a fork of a process that has imported the libraries.
"""

import argparse
import difflib
import functools
import importlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import chdir, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

SURVIVORS = Path("out/mutants").absolute()
CONFIG = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["mutants"]
SLOW = 1.0  # seconds: such tests run only if the others do not notice a mutant
_NOT_OPERATIONS = ("parameters", "dictorsetmaker")  # where a star is no operator
FORK = multiprocessing.get_context("fork")


class Run(NamedTuple):
    """What a run of pytest that passed has imported and set, and the seconds of each test."""

    libraries: list[str]
    environment: dict[str, str]
    seconds: Mapping[str, float]


class Mutant(NamedTuple):
    """The change that an operator of Cosmic Ray makes at one of its places in a module."""

    operator: str
    occurrence: int


def main() -> None:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--module", action="append", help="the path of a module, instead of all")
    parser.add_argument("--sample", type=int, default=12, help="mutants per module, 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="another sample for another number")
    parser.add_argument("--survivors", action="store_true", help="only those of the last time")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="modules at a time")
    options = parser.parse_args()
    SURVIVORS.mkdir(parents=True, exist_ok=True)
    one = functools.partial(test_module, options.sample, options.seed, options.survivors)
    # A new process per module: libraries that one module's tests need stay out of the next one's.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, spawn, max_tasks_per_child=1) as pool:
        totals = [*pool.map(one, options.module or CONFIG["modules"])]
    tested, survived = map(sum, zip(*totals, strict=True))
    print(f"{tested} mutants, {survived} survived ({survived / max(tested, 1):.1%})")


@contextmanager
def copy_of_tree() -> Iterator[Path]:
    """The files that git knows or would add, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in filter(os.path.isfile, listed.stdout.split("\0")):
            target = Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, target)
        yield Path(folder)


def test_module(sample: int, seed: int, again: bool, module: str) -> tuple[int, int]:
    """How many mutants of a module were tested, and how many survived."""
    code = Path(module).read_text()
    last = SURVIVORS / f"{module.replace('/', '.')}.json"
    if again:
        chosen = [Mutant(*entry) for entry in json.loads(last.read_text())]
    else:
        chosen = choose(code, sample, random.Random(f"{module} {seed}"))
    survivors = []
    lines = []
    with copy_of_tree() as tree, chdir(tree):
        os.environ["PYTHONPATH"] = sys.path[0] = str(tree)  # of what tests start, too
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        sys.dont_write_bytecode = False
        tests = tests_of(module)
        if not (collected := run_pytest(["--collect-only", *tests], 600)):
            sys.exit(f"the tests of {module} cannot be collected: {' '.join(tests)}")
        import_libraries(collected)
        if not (whole := run_pytest(tests, 600)):
            sys.exit(f"the tests of {module} fail without any mutant: {' '.join(tests)}")
        slow = [name for name, seconds in whole.seconds.items() if seconds > SLOW]
        steps = [[*tests, *(f"--deselect={name}" for name in slow)], slow]
        limit = 10 + 5 * sum(whole.seconds.values())
        # The date and size of a mutant's file can be those of the one before.
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
        for mutant in chosen:
            mutated = mutate_code(code, get_operator(mutant.operator)(), mutant.occurrence)
            for compiled in Path(module).parent.glob(f"__pycache__/{Path(module).stem}.*"):
                compiled.unlink()
            Path(module).write_text(mutated)
            if all(run_pytest(step, limit) for step in steps if step):
                survivors.append(mutant)
                lines += changed_lines(module, code, mutated)
    last.write_text(json.dumps(survivors))
    print(*lines, f"{module}: {len(chosen)} mutants, {len(survivors)} survived", sep="\n")
    sys.stdout.flush()
    return len(chosen), len(survivors)


def tests_of(module: str) -> list[str]:
    package, stem = Path(module).parts[0], Path(module).stem
    found = []
    for name in CONFIG["modules"][module] or [stem]:
        own = Path(f"tests/{package}/test_{name}.py")
        found.append(str(own if own.exists() else next(Path("tests").glob(f"*/test_{name}.py"))))
    return found


def choose(code: str, sample: int, generator: random.Random) -> list[Mutant]:
    kinds = re.compile("|".join(CONFIG["operators"]))
    lines = code.splitlines()
    nodes = [*ast_nodes(get_ast(code))]
    found = []
    for name in sorted(filter(kinds.search, operator_names())):
        operator = get_operator(name)()
        places = ((node, place) for node in nodes for place in operator.mutation_positions(node))
        for occurrence, (node, ((row, start), (_, end))) in enumerate(places):
            line = lines[row - 1]
            # Cosmic Ray mutates the stars of parameters and displays, too.
            is_star = line[start:end] in ("*", "**") and node.parent.type in _NOT_OPERATIONS
            # Decorators freeze or cache, and lengths are equal: no result depends on it. Cosmic
            # Ray cannot replace an exception with a dot in its name.
            is_dotted = "ExceptionReplacer" in name and "." in line[start:end]
            is_assertion = "zip(" in line and line[:start].endswith("strict=")
            if not (is_dotted or is_star or is_assertion or line.lstrip().startswith("@")):
                found.append(Mutant(name, occurrence))
    return generator.sample(found, sample) if 0 < sample < len(found) else found


def import_libraries(run: Run) -> None:
    """Import here the installed packages that a run has imported, in the environment it set up."""
    os.environ.update(run.environment)
    for name in run.libraries:
        with suppress(Exception):  # some come only as part of another
            importlib.import_module(name)


def run_pytest(arguments: list[str], limit: float) -> Run | None:
    """Run pytest in a fork of this process; None if a test fails or it takes over `limit` s."""
    receiver, sender = FORK.Pipe(duplex=False)
    fork = FORK.Process(target=report_pytest, args=(arguments, sender))
    fork.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(limit) else None
    except EOFError:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(fork.pid or 0, signal.SIGKILL)  # and what its tests have left
        fork.join()


def report_pytest(arguments: list[str], sender: Connection) -> None:
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    durations = Durations()
    options = "-q -x -n 0 -p no:cacheprovider --hypothesis-profile=mutants"
    options += " -W ignore::pytest.PytestAssertRewriteWarning"  # of plugins imported before
    # No tests are left if all are slow.
    if pytest.main([*options.split(), *arguments], [durations]) in (0, 5):
        files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
        libraries = [name for name, file in files.items() if "site-packages" in (file or "")]
        sender.send(Run(libraries, dict(os.environ), durations.seconds))
    os._exit(0)  # threads of libraries are not waited for


class Durations:
    """Plugin of pytest: the seconds of each test, with its fixtures."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration


def changed_lines(module: str, code: str, mutated: str) -> Iterator[str]:
    for line in difflib.unified_diff(code.splitlines(), mutated.splitlines(), n=0, lineterm=""):
        if row := re.match(r"@@ -(\d+)", line):
            yield f"{module}:{row[1]}"
        elif not line.startswith(("---", "+++")):
            yield line


if __name__ == "__main__":
    main()
