"""Runs a command that ends when the process that started it ends, however that ends.

    python tied.py PARENT COMMAND ...

`PARENT` is the id of the process that must live. Linux ends the command itself; elsewhere this
process stays and looks once a second, so that killing this process leaves the command behind.
"""

import ctypes
import os
import platform
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 1.0


def run_tied(parent: int, command: list[str]) -> int:
    """Run a command to its end or until the parent has ended; return its exit code."""
    if platform.system() == "Linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before it could be tied
            return 1
        os.execvp(command[0], command)
    return _watch(parent, command)


def _watch(parent: int, command: list[str]) -> int:
    process = subprocess.Popen(command)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: process.send_signal(number))
    while process.poll() is None:
        if os.getppid() != parent:
            process.terminate()
        time.sleep(_LOOK_SECONDS)
    return process.returncode


if __name__ == "__main__":
    sys.exit(run_tied(int(sys.argv[1]), sys.argv[2:]))
