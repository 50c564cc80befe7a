"""A worker process as its parent sees it: started, given tasks, listened to, ended."""

import multiprocessing
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

from beam_pipeline.workers.serve import serve
from beam_pipeline.workers.shared import SharedNumbers, place_sockets
from beam_pipeline.workers.watch import NOWHERE, Watch
from headct.reasons import Reason

POLL_SECONDS = 1.0
DEATHS_ALLOWED = 10  # one after the other, of processes that were at no item
_KILL_SECONDS = 10.0

# What workers use, imported once in a process without threads that all of them are forked from: a
# fork of this process might inherit a lock that a thread (Beam's, gRPC's) holds.
_PRELOADED = [
    "beam_pipeline.writing.shards",
    "beam_pipeline.planning.inventory",
    "beam_pipeline.workers.preloaded",
]
INPUT_VARIABLE = "HEADCT_SHARDS_INPUT"  # tells that process of the input
# glibc gives large blocks back to the kernel as soon as they are free, and gets the next zeroed: a
# tenth of the time of converting slices, which need the same blocks again and again.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 26),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 26),
}

_STARTING = threading.Lock()


class WorkerFailed(RuntimeError):
    """A function raised in a worker, or workers die whatever they do."""


@dataclass
class Job:
    """A task, and what became of it before."""

    task: Any
    excluded: dict[int, Reason] = field(default_factory=dict)
    losses: Counter[int] = field(default_factory=Counter)  # processes, by the place they were at


@dataclass
class Worker:
    """A process, what it was given, and where it was when last looked at."""

    process: multiprocessing.process.BaseProcess
    pipe: Connection
    state: SharedNumbers  # the place in the task, and how often it was told
    job: Job | None = None
    leaving: Job | None = None  # of which a thread does what is left
    seen: int = -1
    since: float = field(default_factory=time.monotonic)

    @property
    def place(self) -> int:
        """Of the task's item that the process is at; NOWHERE where it cannot crash."""
        return int(self.state[0])

    @property
    def is_busy(self) -> bool:
        """Whether a task of it is not done."""
        return self.job is not None or self.leaving is not None

    def stalled_for(self) -> float:
        """Seconds without a word, 0 if there is no task."""
        told = int(self.state[1])
        if not self.is_busy or told != self.seen:
            self.seen, self.since = told, time.monotonic()
        return time.monotonic() - self.since

    def give(self, job: Job) -> None:
        """Give it a task; a dead process is found as such later."""
        self.job = job
        self.state[0], self.seen, self.since = NOWHERE, -1, time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send((job.task, job.excluded))

    def receive(self) -> Iterator[Any]:
        """The result that the process has sent, if what it sent is one.

        Raises:
            HeadctError: the function raised it.
            WorkerFailed: the function raised anything else.
        """
        try:
            kind, content = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(POLL_SECONDS)
            return
        if kind == "refused":
            raise content
        if kind == "failed":
            raise WorkerFailed(content)
        if kind == "later":
            self.job, self.leaving = None, self.job
            return
        if kind == "finished":
            self.leaving = None
        else:
            self.job = None
        yield content

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.join(_KILL_SECONDS)  # one that waits for a dead disk cannot be killed
        self.pipe.close()


def start_server(source: str = "") -> None:
    """Start the process that workers are forked from; it loads what they use while we go on.

    Args:
        source: the input, if it is known: the directory of an archive is read only once then.

    Raises:
        UsageError: there is no folder for temporary files.
    """
    for name, value in _KEEP_MEMORY.items():  # read once, when a process starts
        os.environ.setdefault(name, value)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    if source:
        os.environ[INPUT_VARIABLE] = source
    place_sockets()
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop(INPUT_VARIABLE, None)


def start_worker(function: Callable[[Any, Watch], Any]) -> Worker:
    """A process that does tasks with a function, and waits for the first.

    Raises:
        WorkerFailed: processes die before they have begun.
    """
    start_server()
    context = multiprocessing.get_context("forkserver")
    for _ in range(DEATHS_ALLOWED):
        ours, theirs = context.Pipe()
        state = SharedNumbers()
        state[0] = NOWHERE
        process = context.Process(target=serve, args=(function, theirs, state), daemon=True)
        with suppress(BrokenPipeError), _neutral_main():  # killed before it read what to do
            process.start()
        theirs.close()
        state.close()
        if process.pid is not None:
            return Worker(process, ours, state)
        ours.close()
    raise WorkerFailed("worker processes die before they can be told what to do")


@contextmanager
def _neutral_main() -> Iterator[None]:
    """Keep a process that starts from importing the main module of this one.

    It needs nothing of it, and that of a Beam worker loads all of Beam.
    """
    with _STARTING:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main
