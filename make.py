"""Do for the Makefile what make and a shell do badly, with the standard library alone.

`make.py meant NAME VALUE COMMANDS VARIABLE...` prints what an unknown variable may mean.
`make.py split NAME FLAG TEXT ARGUMENT...` starts Python with the arguments, FLAG if not empty,
and the words of the text.
"""

import glob
import os
import re
import shlex
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

PAGES = Path(__file__).parent / "docs"


def meant(name: str, value: str, commands: str, variables: list[str]) -> str:
    """Return the variable or option that is most like an unknown variable; empty if none is.

    Args:
        name: the unknown variable.
        value: its value.
        commands: the commands that were asked for, separated by spaces.
        variables: the variables of these commands.
    """
    shown = value if re.fullmatch(r"[\w./,:-]+", value, re.ASCII) else "..."
    known = {}
    for option, facts in options(set(commands.split())):
        switch = re.search(r"\| (no|yes) \|$|true or false", facts)
        known[option] = f"ARGS=--{option}" if switch else f'ARGS="--{option} {shown}"'
    known |= {variable.lower(): f"{variable}=" for variable in variables}
    return "".join(known[close] for close in get_close_matches(name.lower(), known, 1, 0.7))


def options(commands: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the options of commands, each with its row in the tables of docs/."""
    for page in ("options.md", "trainer-options.md"):
        for section in (PAGES / page).read_text(encoding="utf-8").split("\n## "):
            if commands & {*re.findall(r"\w+", section.partition("\n")[0])}:
                yield from re.findall(r"^\| `(?:--)?(\w+)`(.+)", section, re.M)


def words(name: str, text: str) -> list[str]:
    """Split a text as a shell does, but run nothing in it. Patterns in RUNS become their paths.

    Raises:
        ValueError: a quote is not closed.
    """
    found = shlex.split(text)
    if name != "RUNS":
        return found
    matches = ((word, sorted(glob.glob(word))) for word in found)  # noqa: PTH207  absolute ones too
    return [path for word, paths in matches for path in paths or [word]]


def main(task: str, *arguments: str) -> int:
    """Do one of the two tasks, and return the exit code."""
    if task == "meant":
        name, value, commands, *variables = arguments
        print(meant(name, value, commands, variables))
        return 0
    name, flag, text, *command = arguments
    try:
        command += [flag] * bool(flag) + words(name, text)
    except ValueError as error:
        print(f"make: {name}={text!r}: {error}", file=sys.stderr)
        return 2
    return os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
