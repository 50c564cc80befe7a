"""Work in processes that may crash, hang or be killed without taking the run along.

Each process has a pipe of its own, so the death of one cannot leave a lock held or a message half
read by another, and a counter in shared memory tells what it was doing.
"""

import gc
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from typing import Any, Generic, Protocol, Self, TypeVar

from beam_pipeline.errors import PipelineError, Reason

_POLL_SECONDS = 1.0
_DEATHS_ALLOWED = 10  # one after the other, of processes that have not touched a source

# What workers use, imported once in a process without threads that all of them are forked from: a
# fork of this process might inherit a lock that a thread (Beam's, gRPC's) holds.
_PRELOADED = ["beam_pipeline.shards"]
# glibc gives large blocks back to the kernel as soon as they are free, and gets the next zeroed: a
# tenth of the time of converting slices, which need the same blocks again and again.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 26),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 26),
}


class Task(Protocol):
    """Something to do with several sources, one after the other."""

    @property
    def sources(self) -> tuple[str, ...]:
        """In the order in which they are touched."""
        ...

    def excluding(self, source: str, reason: Reason) -> Self:
        """The same task, without touching one of its sources."""
        ...


T = TypeVar("T", bound=Task)
R = TypeVar("R")
Note = Callable[[int], None]


class WorkerFailed(RuntimeError):
    """A function raised in a worker, or workers die whatever they do."""


@dataclass
class _Worker:
    """A process, what it was given, and where it was when last looked at."""

    process: multiprocessing.process.BaseProcess
    pipe: Connection
    position: Any  # a shared integer: the source at hand, by its place in the task; -1 for none
    task: Any = None
    seen: int = -1
    since: float = field(default_factory=time.monotonic)

    def stalled_for(self) -> float:
        """Seconds at the same source, 0 if there is no task."""
        if self.task is None or self.position.value != self.seen:
            self.seen, self.since = self.position.value, time.monotonic()
        return time.monotonic() - self.since


def start_server() -> None:
    """Start the process that workers are forked from; it loads what they use while we go on."""
    for name, value in _KEEP_MEMORY.items():  # read once, when a process starts
        os.environ.setdefault(name, value)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()


@dataclass
class WorkerPool(Generic[T, R]):
    """Runs a function over tasks in processes.

    A source that a worker was at when it died or hung is tried once more; if that ends the same
    way, the source is excluded from its task, which is then done without it.

    Attributes:
        function: called as function(task, note) in a worker; it tells `note` the place of each
            source in the task before it touches the source.
        size: number of processes.
        patience: seconds on one source after which a worker counts as hung.
    """

    function: Callable[[T, Note], R]
    size: int
    patience: float = 120.0

    def map(self, waiting: deque[T]) -> Iterator[R]:
        """The results, in the order in which they are ready.

        Args:
            waiting: the tasks; they are taken out, so that those done are not kept in memory.

        Raises:
            PipelineError: the function raised it.
            WorkerFailed: the function raised anything else; its traceback is the message.
        """
        losses: Counter[str] = Counter()  # by the source at hand, "" for none
        start_server()
        context = multiprocessing.get_context("forkserver")
        workers = [self._start(context) for _ in range(min(self.size, len(waiting)))]
        try:
            while waiting or any(worker.task is not None for worker in workers):
                for worker in workers:
                    if worker.task is None and waiting:
                        _give(worker, waiting.popleft())
                for worker in _ready(workers):
                    for result in _receive(worker):
                        del losses[""]
                        yield result
                for place, worker in enumerate(workers):
                    reason = self._failure(worker)
                    if reason is not None:
                        _stop(worker)
                        workers[place] = self._start(context)
                        if worker.task is not None:
                            waiting.appendleft(_retry(worker, reason, losses))
        finally:
            for worker in workers:
                _stop(worker)

    def _start(self, context: ForkServerContext) -> _Worker:
        for _ in range(_DEATHS_ALLOWED):
            ours, theirs = context.Pipe()
            position = context.RawValue("q", -1)
            process = context.Process(
                target=_serve, args=(self.function, theirs, position), daemon=True
            )
            with suppress(BrokenPipeError):  # killed before it read what to do
                process.start()
            theirs.close()
            if process.pid is not None:
                return _Worker(process, ours, position)
            ours.close()
        raise WorkerFailed("worker processes die before they can be told what to do")

    def _failure(self, worker: _Worker) -> Reason | None:
        if not worker.process.is_alive():
            return Reason.DECODER_CRASHED
        if worker.stalled_for() > self.patience:
            return Reason.DECODER_TIMED_OUT
        return None


def _give(worker: _Worker, task: Task) -> None:
    worker.task, worker.position.value = task, -1
    worker.seen, worker.since = -1, time.monotonic()
    with suppress(BrokenPipeError, ConnectionResetError):  # a dead worker is found as such
        worker.pipe.send(task)


def _ready(workers: list[_Worker]) -> list[_Worker]:
    busy = [worker.pipe for worker in workers if worker.task is not None]
    ready = wait(busy, _POLL_SECONDS)
    return [worker for worker in workers if worker.pipe in ready]


def _receive(worker: _Worker) -> Iterator[Any]:
    try:
        kind, content = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(_POLL_SECONDS)
        return
    if kind == "refused":
        raise content
    if kind == "failed":
        raise WorkerFailed(content)
    worker.task = None
    yield content


def _retry(worker: _Worker, reason: Reason, losses: Counter[str]) -> Any:
    """The task to do again, without the source at hand if it was lost there before."""
    hung = reason is Reason.DECODER_TIMED_OUT
    logging.getLogger(__name__).warning(
        "A worker process %s; going on with another.", "hung" if hung else "died"
    )
    position = worker.position.value
    source = worker.task.sources[position] if position >= 0 else ""
    losses[source] += 1
    if not source and losses[source] > _DEATHS_ALLOWED:
        raise WorkerFailed("worker processes die before they touch a file")
    if source and losses[source] > 1:
        return worker.task.excluding(source, reason)
    return worker.task


def _stop(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.pipe.close()


def _serve(function: Callable[[Any, Note], Any], pipe: Connection, position: Any) -> None:
    """Do tasks until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    gc.freeze()  # the modules stay: no need to look through them for garbage again and again

    def note(place: int) -> None:
        position.value = place

    with suppress(EOFError, BrokenPipeError):
        while True:
            task = pipe.recv()
            pipe.send(_outcome(function, task, note))


def _outcome(function: Callable[[Any, Note], Any], task: Any, note: Note) -> tuple[str, Any]:
    try:
        return "result", function(task, note)
    except PipelineError as error:
        return "refused", error
    except Exception:  # a bug: its traceback goes to where the user can see it
        return "failed", traceback.format_exc()


def _exit_with_parent() -> None:
    """A worker whose parent was killed must not go on writing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
