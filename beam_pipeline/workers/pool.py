"""Pool of worker processes; the tasks of a lost process are retried in another."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

from beam_pipeline.workers.serve import NOWHERE, Later, Watch, serve
from beam_pipeline.workers.shared import SharedNumbers, place_sockets
from headct.errors import StoreError
from headct.reasons import Reason
from headct.stores import DEFAULT_PATIENCE

T = TypeVar("T")
R = TypeVar("R")

_logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_KILL_SECONDS = 10.0
_DEATHS_ALLOWED = 10  # consecutive deaths of processes before their first item
# Kills per item. SIGKILL comes from outside, such as from a kernel that is short of memory; a
# decoder's fault ends the process by another signal.
_KILLS_ALLOWED = 3
_LOSSES = {Reason.DECODER_CRASHED: "died", Reason.DECODER_TIMED_OUT: "hung"}

# Imported once, in a fork server without threads: a fork of this process might inherit a lock that
# a thread of Beam or gRPC holds.
_PRELOADED = [
    "beam_pipeline.shards.writer",
    "beam_pipeline.planning.inventory",
    "beam_pipeline.workers.preloaded",
]
INPUT_VARIABLE = "HEADCT_SHARDS_INPUT"  # the input, for `preloaded`
# glibc returns free large blocks to the kernel and gets the next blocks zeroed: a tenth of the time
# of converting slices, because slices reuse blocks of the same size.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 26),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 26),
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # Arrow's own allocator would keep 30 MB more
}

_starting = threading.Lock()
_slots: "WeakValueDictionary[int, threading.Semaphore]" = WeakValueDictionary()
_slots_lock = threading.Lock()


class WorkerFailed(RuntimeError):
    """A function raised in a worker, or workers keep dying."""


@dataclass
class _Job:
    """A task, and the failures of its earlier attempts by item."""

    task: Any
    excluded: dict[int, Reason] = field(default_factory=dict)
    losses: Counter[int] = field(default_factory=Counter)


def shared_slots(number: int) -> threading.Semaphore:
    """Return a semaphore of `number` slots; pools in use at the same time share the semaphore."""
    with _slots_lock:
        slots = _slots.get(number)
        if slots is None:
            _slots[number] = slots = threading.Semaphore(number)
        return slots


class WorkerPool(Generic[T, R]):
    """Runs a function over tasks in processes, started on demand.

    If a process dies or hangs while it works on an item, the pool retries the item once. After a
    second failure the task runs without the item. After a kill from outside, the pool retries the
    item up to three times.

    Args:
        function: called as function(task, watch) in a process; reports every item to `watch`, and
            returns the task's result or a `Later` that returns the result.
        size: number of processes.
        patience: timeout of one item, seconds; a slower process counts as hung.
        storage_patience: timeout of the store, seconds; most stores report a failure long before.
        storage: name of the store in the timeout's message.
        slots: limit on processes, shared by several pools; a pool waits for its first slot, and
            takes further slots only if they are free.
    """

    def __init__(
        self,
        function: Callable[[T, Watch], R | Later[R]],
        size: int,
        patience: float = 120.0,
        storage_patience: float = 2 * DEFAULT_PATIENCE,
        storage: str = "storage",
        slots: threading.Semaphore | None = None,
    ) -> None:
        self._function = function
        self._size = size
        self._patience = patience
        self._storage_patience = storage_patience
        self._storage = storage
        self._slots = slots
        self._workers: list[_Worker] = []
        self._queue: deque[_Job] = deque()  # the next task, and tasks to retry
        self._idle_deaths = 0

    def map(self, tasks: Iterable[T]) -> Iterator[R]:
        """Yield results as they become ready; raise as `submit` does."""
        try:
            for task in tasks:
                yield from self.submit(task)
            yield from self.finish()
        finally:
            self.close()

    def submit(self, task: T) -> Iterator[R]:
        """Send a task to a process; yield results that arrive while all processes are busy.

        Raises:
            HeadctError: the function raised this error.
            WorkerFailed: the function raised anything else; its traceback is the message.
        """
        self._queue.append(_Job(task))
        self._hand_out()
        while self._queue:
            yield from self._wait()

    def finish(self) -> Iterator[R]:
        """Yield the results of all unfinished tasks; raise as `submit` does."""
        while self._queue or any(worker.is_busy for worker in self._workers):
            yield from self._wait()

    def close(self) -> None:
        """End the processes."""
        while self._workers:
            self._workers.pop().stop()
            self._release_slot()
        self._queue.clear()

    def _hand_out(self) -> None:
        while self._queue and (worker := self._free_worker()) is not None:
            worker.give(self._queue.popleft())

    def _free_worker(self) -> "_Worker | None":
        for worker in self._workers:
            if worker.job is None:
                return worker
        if len(self._workers) < self._size and self._take_slot():
            try:
                self._workers.append(_start_worker(self._function))
            except BaseException:
                self._release_slot()
                raise
            return self._workers[-1]
        return None

    def _take_slot(self) -> bool:
        return self._slots is None or self._slots.acquire(blocking=not self._workers)

    def _release_slot(self) -> None:
        if self._slots is not None:
            self._slots.release()

    def _wait(self) -> Iterator[R]:
        """Wait for a message; yield results and replace lost processes."""
        ready = wait([worker.pipe for worker in self._workers if worker.is_busy], _POLL_SECONDS)
        for worker in [worker for worker in self._workers if worker.pipe in ready]:
            for result in worker.receive():
                self._idle_deaths = 0
                yield result
        for number, worker in enumerate(self._workers):
            loss = self._loss(worker)
            if loss is not None:
                _logger.warning("A worker process %s; going on with another.", _LOSSES[loss])
                self._retry(worker, loss)
                worker.stop()
                self._workers[number] = _start_worker(self._function)
        self._hand_out()

    def _loss(self, worker: "_Worker") -> Reason | None:
        """Return why a process is lost, None if it is alive; raise if its store failed."""
        if not worker.process.is_alive():
            return Reason.DECODER_CRASHED
        stalled = worker.stalled_for()
        if worker.item != NOWHERE:
            return Reason.DECODER_TIMED_OUT if stalled > self._patience else None
        if stalled > self._storage_patience:
            raise StoreError(self._storage, f"no answer for {stalled:.0f} s")
        return None

    def _retry(self, worker: "_Worker", loss: Reason) -> None:
        """Queue the tasks of a lost process; exclude its item if the item failed before."""
        if worker.item == NOWHERE:
            self._idle_deaths += worker.is_busy
            if self._idle_deaths > _DEATHS_ALLOWED:
                raise WorkerFailed("worker processes die before they touch a file")
        elif worker.job is not None:
            killed = loss is Reason.DECODER_CRASHED and worker.process.exitcode == -signal.SIGKILL
            worker.job.losses[worker.item] += 1
            if worker.job.losses[worker.item] > (_KILLS_ALLOWED if killed else 1):
                worker.job.excluded[worker.item] = loss
        self._queue.extendleft(job for job in (worker.uploading, worker.job) if job is not None)


@dataclass
class _Worker:
    """The parent's view of a worker process.

    Attributes:
        process: the process.
        pipe: connection to the process.
        state: number of the process's current item, and a count of the process's reports.
        job: its current task.
        uploading: an earlier task whose upload is still running in a thread.
    """

    process: multiprocessing.process.BaseProcess
    pipe: Connection
    state: SharedNumbers
    job: _Job | None = None
    uploading: _Job | None = None
    _seen: int = -1
    _since: float = field(default_factory=time.monotonic)

    @property
    def item(self) -> int:
        """Number of the current item in the task; NOWHERE while the process cannot crash."""
        return int(self.state[0])

    @property
    def is_busy(self) -> bool:
        """Whether a task of the process is unfinished."""
        return self.job is not None or self.uploading is not None

    def stalled_for(self) -> float:
        """Return the seconds since the last report; 0 without a task."""
        reports = int(self.state[1])
        if not self.is_busy or reports != self._seen:
            self._seen, self._since = reports, time.monotonic()
        return time.monotonic() - self._since

    def give(self, job: _Job) -> None:
        """Send a task; `_loss` detects a dead process."""
        self.job = job
        self.state[0], self._seen, self._since = NOWHERE, -1, time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send((job.task, job.excluded))

    def receive(self) -> Iterator[Any]:
        """Read one message; yield the result if the message has one.

        Raises:
            HeadctError: the function raised this error.
            WorkerFailed: the function raised anything else.
        """
        try:
            kind, content = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(_POLL_SECONDS)
            return
        if kind == "refused":
            raise content
        if kind == "failed":
            raise WorkerFailed(content)
        if kind == "later":
            self.job, self.uploading = None, self.job
            return
        if kind == "finished":
            self.uploading = None
        else:
            self.job = None
        yield content

    def stop(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.join(_KILL_SECONDS)  # a process blocked on a dead disk cannot be killed
        self.pipe.close()


def start_server(source: str = "") -> None:
    """Start the fork server of the workers; the server imports modules in the background.

    Args:
        source: the input, if known; the server reads an archive's directory once for all workers.

    Raises:
        UsageError: no folder for temporary files is writable.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOADED)
    place_sockets()
    with _environment(_KEEP_MEMORY | ({INPUT_VARIABLE: source} if source else {})):
        forkserver.ensure_running()


def _start_worker(function: Callable[[Any, Watch], Any]) -> _Worker:
    """Start a process that runs a function over tasks.

    Raises:
        WorkerFailed: processes die at their start.
    """
    start_server()
    context = multiprocessing.get_context("forkserver")
    for _ in range(_DEATHS_ALLOWED):
        ours, theirs = context.Pipe()
        state = SharedNumbers()
        state[0] = NOWHERE
        process = context.Process(target=serve, args=(function, theirs, state), daemon=True)
        with suppress(BrokenPipeError), _neutral_main():  # killed before it read its task
            process.start()
        theirs.close()
        state.close()
        if process.pid is not None:
            return _Worker(process, ours, state)
        ours.close()
    raise WorkerFailed("worker processes die before they can be told what to do")


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while the block runs; keep variables that are already set."""
    added = [name for name in variables if name not in os.environ]
    os.environ.update({name: variables[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _neutral_main() -> Iterator[None]:
    """Keep a new process from importing the main module: in a Beam worker, all of Beam."""
    with _starting:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main
