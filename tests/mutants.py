"""Mutation testing of the pure modules: which changes of one token would no test notice?

Cosmic Ray makes the mutants. Only the tests of the mutated module run, on a copy of the working
tree, so that nothing mutated stays behind; pyproject.toml ([tool.mutants]) lists the modules, their
tests and the kinds of mutants. The sample of a module is the same as long as its code is.
"""

import argparse
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkItem, WorkResult

SESSIONS = Path("out/mutants").absolute()
CONFIG = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["mutants"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--module", help="the path of a module, instead of all")
    parser.add_argument("--sample", type=int, default=12, help="mutants per module, 0 for all")
    parser.add_argument("--survivors", action="store_true", help="only those of the last time")
    options = parser.parse_args()
    SESSIONS.mkdir(parents=True, exist_ok=True)
    modules = [options.module] if options.module else CONFIG["modules"]
    with copy_of_tree() as tree, chdir(tree):
        os.environ["PYTHONPATH"] = str(tree)  # of the processes that tests start, too
        totals = [test_module(module, options.sample, options.survivors) for module in modules]
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


def test_module(module: str, sample: int, survivors: bool) -> tuple[int, int]:
    """How many mutants of a module were tested, and how many survived."""
    pytest = f"{shlex.quote(sys.executable)} -m pytest -q -x -n 0 -p no:cacheprovider"
    command = f"{pytest} --hypothesis-profile=mutants {shlex.join(tests_of(module))}"
    begun = time.monotonic()
    if subprocess.run(shlex.split(command), stdout=subprocess.DEVNULL).returncode:
        sys.exit(f"the tests of {module} fail without any mutant: {command}")
    limit = 10 + 5 * (time.monotonic() - begun)
    with use_db(SESSIONS / f"{module.replace('/', '.')}.sqlite") as session:
        chosen = choose(session, module, sample, survivors)
        survived = 0
        for item in chosen:
            result = mutate_and_test(item.mutations, command, limit)
            session.set_result(item.job_id, result)
            if result.test_outcome is TestOutcome.SURVIVED:
                survived += 1
                print(
                    f"{module}:{item.mutations[0].start_pos[0]}", *changed_lines(result), sep="\n"
                )
    print(f"{module}: {len(chosen)} mutants, {survived} survived", flush=True)
    return len(chosen), survived


def tests_of(module: str) -> list[str]:
    package, stem = Path(module).parts[0], Path(module).stem
    found = []
    for name in CONFIG["modules"][module] or [stem]:
        own = Path(f"tests/{package}/test_{name}.py")
        found.append(str(own if own.exists() else next(Path("tests").glob(f"*/test_{name}.py"))))
    return found


def choose(session: WorkDB, module: str, sample: int, survivors: bool) -> list[WorkItem]:
    if survivors:
        results = session.completed_work_items
        return [item for item, result in results if result.test_outcome is TestOutcome.SURVIVED]
    init([Path(module)], session, {})
    kinds = re.compile("|".join(CONFIG["operators"]))
    lines = Path(module).read_text().splitlines()
    found = []
    for item in session.work_items:
        (mutation,) = item.mutations
        line = lines[mutation.start_pos[0] - 1]
        # Decorators freeze or cache: no result depends on it.
        if kinds.search(mutation.operator_name) and not line.lstrip().startswith("@"):
            found.append((mutation.operator_name, mutation.occurrence, item))
    found = [item for _, _, item in sorted(found, key=lambda entry: entry[:2])]
    if not sample or sample >= len(found):
        return found
    return random.Random(module).sample(found, sample)


def changed_lines(result: WorkResult) -> list[str]:
    return [line for line in (result.diff or "").splitlines() if re.match(r"[-+](?![-+]{2})", line)]


if __name__ == "__main__":
    main()
