"""Python processes of tests."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SECONDS = 200


def run_python(
    *arguments: object, cwd: Path = ROOT, code: int = 0, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run this Python on the packages of the working tree, to the end with an exit code."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    assert done.returncode == code, done.stderr
    return done
