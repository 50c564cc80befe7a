"""Why pip cannot build the package for workers, in the words of pip."""

import subprocess
from pathlib import Path

import pytest

from beam_pipeline.errors import RunnerError
from beam_pipeline.runners import staging

OFFLINE = """\
  error: subprocess-exited-with-error

  x pip subprocess to install build dependencies did not run successfully.
  ╰─> [3 lines of output]
      Looking in indexes: http://127.0.0.1:1/
      ERROR: Could not find a version that satisfies the requirement setuptools>=77 (\
from versions: none)
      ERROR: No matching distribution found for setuptools>=77
      [end of output]

  note: This error originates from a subprocess, and is likely not a problem with pip.
"""


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (OFFLINE, "ERROR: Could not find a version that satisfies the requirement setuptools>=77"),
        ("no space left\n", "no space left"),
        ("", "pip gives no reason"),
    ],
)
def test_the_cause_is_told_and_not_what_pip_ends_with(
    output: str, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", output)
    monkeypatch.setattr(staging.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RunnerError) as raised:
        staging.build_wheel(tmp_path)
    assert str(raised.value).startswith(f"this package cannot be built for workers: {why}")
