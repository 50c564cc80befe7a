"""Run a command that ends with its parent process, even after SIGKILL.

    python tied.py PARENT COMMAND ...

`PARENT` is the id of the parent process. Only Linux ties processes: on other systems the command
keeps running if its parent is killed.
"""

import ctypes
import os
import platform
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main(parent: int, command: list[str]) -> None:
    """Replace this process by the command, unless the parent has already ended."""
    if platform.system() == "Linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
