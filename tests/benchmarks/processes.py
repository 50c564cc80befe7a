"""What a command costs: wall and CPU seconds of its whole process tree, and its peak memory.

Linux only: orphans of the command become children of this process and are waited for, so that
their CPU seconds count; memory is read from /proc.
"""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
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
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)


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
    process = _start(module, arguments, log)
    with _sampled(process.pid) as memory:
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
def _sampled(pid: int) -> Iterator[Memory]:
    memory = Memory()
    thread = threading.Thread(target=_sample, args=(pid, memory))
    thread.start()
    try:
        yield memory
    finally:
        memory._stop.set()
        thread.join()


def _sample(pid: int, memory: Memory) -> None:
    while not memory._stop.wait(_SAMPLE_SECONDS):
        sizes = {member: size for member in _tree(pid) if (size := _size(member))}
        if not sizes:
            continue
        memory.samples += 1
        memory.processes = max(memory.processes, len(sizes))
        memory.largest = max(memory.largest, *(resident for resident, _ in sizes.values()))
        memory.total = max(memory.total, sum(share for _, share in sizes.values()))
        memory.main = max(memory.main, sizes.get(pid, (0, 0))[0])


def _tree(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name, in parentheses, may hold anything; the parent comes second after it.
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(status.parent.name))
    tree = [pid]
    for member in tree:  # grows while it is walked
        tree += children.get(member, [])
    return tree


def _size(pid: int) -> tuple[int, int] | None:
    """Resident and proportional set, bytes; None where there is no such process any more."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return None
    sizes = {name: int(value.split()[0]) << 10 for name, value in (x.split(":") for x in lines)}
    return sizes.get("Rss", 0), sizes.get("Pss", 0)
