"""What a command costs: wall and CPU seconds of its whole process tree, and its peak memory.

Linux only: orphans of the command become children of this process and are waited for, so that
their CPU seconds count.
"""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_SAMPLE_SECONDS = 0.25

# TensorFlow's search for GPUs would cost time.
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}


class CommandFailed(RuntimeError):
    """A command did not end well; the message has the end of its log."""


@dataclass(frozen=True)
class Cost:
    """Of a command, from its start to its end: seconds."""

    wall: float
    cpu: float


@dataclass
class Memory:
    """Peaks of a command's processes, bytes."""

    largest: int = 0  # resident set of any one process
    total: int = 0  # proportional set of all: pages that several share count once
    main: int = 0  # resident set of the first process
    processes: int = 0
    samples: int = 0


def run_module(module: str, arguments: list[str], log: Path, timeout: float) -> Cost:
    """Run a module of this repository to its end, its output in a log."""
    _adopt_orphans()
    others = children()
    cpu, wall = _children_cpu(), time.perf_counter()
    process = _start(module, arguments, log)
    _wait(process, log, timeout)
    wall = time.perf_counter() - wall
    _reap_orphans(others)
    return Cost(wall, _children_cpu() - cpu)


def measure_memory(module: str, arguments: list[str], log: Path, timeout: float) -> Memory:
    """The same, for its memory."""
    memory = Memory()
    process = _start(module, arguments, log)
    with repeating(partial(_sample, process.pid, memory), _SAMPLE_SECONDS):
        _wait(process, log, timeout)
    return memory


def _start(module: str, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, **_QUIET}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # users have byte code from the second run on
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait(process: subprocess.Popen[bytes], log: Path, timeout: float) -> None:
    try:
        code = process.wait(timeout)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise CommandFailed(f"no end after {timeout:.0f} s") from None
        raise
    if code:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise CommandFailed(f"exit code {code}:\n{tail}")


def _adopt_orphans() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> set[int]:
    """Processes that this one started, or adopted."""
    threads = Path("/proc/self/task").glob("*/children")
    return {int(child) for thread in threads for child in thread.read_text().split()}


def _reap_orphans(others: set[int]) -> None:
    """Wait for all children but those that were there before."""
    while orphans := children() - others:
        for orphan in orphans:
            with suppress(ChildProcessError):
                os.waitpid(orphan, 0)


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def repeating(look: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call a function every so many seconds, in a thread, while the block lasts."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(seconds):
            look()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _sample(pid: int, memory: Memory) -> None:
    import psutil  # which those who measure no memory need not have

    sizes = {}
    with suppress(psutil.Error):
        main = psutil.Process(pid)
        for process in (main, *main.children(recursive=True)):
            with suppress(psutil.Error):
                sizes[process.pid] = process.memory_full_info()
    if sizes:
        memory.samples += 1
        memory.processes = max(memory.processes, len(sizes))
        memory.largest = max(memory.largest, *(size.rss for size in sizes.values()))
        memory.total = max(memory.total, sum(size.pss for size in sizes.values()))
        memory.main = max(memory.main, sizes[pid].rss if pid in sizes else 0)
