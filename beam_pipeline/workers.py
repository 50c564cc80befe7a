"""Work in processes that may crash, hang or be killed without taking the run along.

Each process has a pipe of its own, so the death of one cannot leave a lock held or a message half
read by another, and a counter in shared memory tells what it was doing.
"""

import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

from beam_pipeline.errors import PipelineError, Reason, StoreError
from beam_pipeline.storage.retries import DEFAULT_PATIENCE

T = TypeVar("T")
R = TypeVar("R")

_logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_NOWHERE = -1  # instead of a place
_KILL_SECONDS = 10.0
_DEATHS_ALLOWED = 10  # one after the other, of processes that were at no item
# At one item. A fault of a decoder ends its process by other signals: this one comes from outside,
# as from a kernel that is short of memory, whatever the process is doing.
_KILLS_ALLOWED = 3
_LOSSES = {Reason.DECODER_CRASHED: "died", Reason.DECODER_TIMED_OUT: "hung"}

# What workers use, imported once in a process without threads that all of them are forked from: a
# fork of this process might inherit a lock that a thread (Beam's, gRPC's) holds.
_PRELOADED = ["beam_pipeline.writing.shards", "beam_pipeline.planning.inventory"]
# glibc gives large blocks back to the kernel as soon as they are free, and gets the next zeroed: a
# tenth of the time of converting slices, which need the same blocks again and again.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 26),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 26),
}


class Watch:
    """What a process tells of itself while it does a task, and what it knows of the task.

    Attributes:
        excluded: places in the task that are not to be touched, and why: earlier processes crashed
            or hung there.
    """

    def __init__(self, excluded: Mapping[int, Reason] | None = None, state: Any = None) -> None:
        self.excluded = dict(excluded or {})
        self._state = state

    def waiting(self) -> None:
        """The process waits for a store, or does work that cannot crash."""
        self._tell(_NOWHERE)

    def working(self, place: int) -> None:
        """The process begins to work on what may crash or hang it: the task's item at a place."""
        self._tell(place)

    def _tell(self, place: int) -> None:
        if self._state is not None:
            self._state[0] = place
            self._state[1] += 1


@dataclass(frozen=True)
class Later(Generic[R]):
    """What is left of a task that waits for a store: a thread does it, beside the next task.

    Attributes:
        finish: gives the task's result; it touches no item.
    """

    finish: Callable[[], R]


_STARTING = threading.Lock()

_SLOTS: "WeakValueDictionary[int, threading.Semaphore]" = WeakValueDictionary()
_SLOTS_CHANGE = threading.Lock()


def shared_slots(number: int) -> threading.Semaphore:
    """Slots for that many processes, the same for all pools of this process that use them now."""
    with _SLOTS_CHANGE:
        slots = _SLOTS.get(number)
        if slots is None:
            _SLOTS[number] = slots = threading.Semaphore(number)
        return slots


class WorkerFailed(RuntimeError):
    """A function raised in a worker, or workers die whatever they do."""


@dataclass
class _Job:
    """A task, and what became of it before."""

    task: Any
    excluded: dict[int, Reason] = field(default_factory=dict)
    losses: Counter[int] = field(default_factory=Counter)  # processes, by the place they were at


@dataclass
class _Worker:
    """A process, what it was given, and where it was when last looked at."""

    process: multiprocessing.process.BaseProcess
    pipe: Connection
    state: Any  # shared: the place in the task, and how often it was told
    job: _Job | None = None
    leaving: _Job | None = None  # of which a thread does what is left
    seen: int = -1
    since: float = field(default_factory=time.monotonic)

    @property
    def place(self) -> int:
        return int(self.state[0])

    @property
    def is_busy(self) -> bool:
        return self.job is not None or self.leaving is not None

    def stalled_for(self) -> float:
        """Seconds without a word, 0 if there is no task."""
        told = int(self.state[1])
        if not self.is_busy or told != self.seen:
            self.seen, self.since = told, time.monotonic()
        return time.monotonic() - self.since


def start_server() -> None:
    """Start the process that workers are forked from; it loads what they use while we go on."""
    for name, value in _KEEP_MEMORY.items():  # read once, when a process starts
        os.environ.setdefault(name, value)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()


class WorkerPool(Generic[T, R]):
    """Runs a function over tasks in processes, which are started when there is work for them.

    An item of a task that a process was working on when it died or hung is tried once more; if that
    ends the same way, the item is excluded from its task, which is then done without it. One whose
    process was killed from outside is tried three times more.

    Args:
        function: called as function(task, watch) in a process; it tells `watch` of each item that
            it works on, and returns the task's result or a `Later` that gives it.
        size: number of processes.
        patience: seconds on one item after which a process counts as hung.
        storage_patience: seconds of waiting after which a store counts as failed; those that can
            tell do so long before.
        storage: what they wait for, in the message of that.
        slots: where several pools of a process share a number of processes; a pool waits for its
            first, and has more as far as there are any.
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
        self._queue: deque[_Job] = deque()  # one, and those that are to be done again
        self._idle_deaths = 0

    def map(self, tasks: Iterable[T]) -> Iterator[R]:
        """The results, in the order in which they are ready; see `submit` for what is raised."""
        try:
            for task in tasks:
                yield from self.submit(task)
            yield from self.finish()
        finally:
            self.close()

    def submit(self, task: T) -> Iterator[R]:
        """Give a task to a process; yields what others have done while none was free.

        Raises:
            PipelineError: the function raised it.
            WorkerFailed: the function raised anything else; its traceback is the message.
        """
        self._queue.append(_Job(task))
        self._hand_out()
        while self._queue:
            yield from self._wait()

    def finish(self) -> Iterator[R]:
        """The results of all tasks that are not done; raises as `submit` does."""
        while self._queue or any(worker.is_busy for worker in self._workers):
            yield from self._wait()

    def close(self) -> None:
        """End the processes."""
        while self._workers:
            _stop(self._workers.pop())
            self._give_back()
        self._queue.clear()

    def _hand_out(self) -> None:
        while self._queue and (worker := self._free_worker()) is not None:
            _give(worker, self._queue.popleft())

    def _free_worker(self) -> _Worker | None:
        for worker in self._workers:
            if worker.job is None:
                return worker
        if len(self._workers) < self._size and self._take_slot():
            try:
                self._workers.append(self._start())
            except BaseException:
                self._give_back()
                raise
            return self._workers[-1]
        return None

    def _take_slot(self) -> bool:
        return self._slots is None or self._slots.acquire(blocking=not self._workers)

    def _give_back(self) -> None:
        if self._slots is not None:
            self._slots.release()

    def _wait(self) -> Iterator[R]:
        """Wait until a process has something to say or is lost, and see to it."""
        for worker in _ready(self._workers):
            for result in _receive(worker):
                self._idle_deaths = 0
                yield result
        for place, worker in enumerate(self._workers):
            lost = self._loss(worker)
            if lost is not None:
                _logger.warning("A worker process %s; going on with another.", _LOSSES[lost])
                self._do_again(worker, lost)
                _stop(worker)
                self._workers[place] = self._start()
        self._hand_out()

    def _loss(self, worker: _Worker) -> Reason | None:
        if not worker.process.is_alive():
            return Reason.DECODER_CRASHED
        stalled = worker.stalled_for()
        if worker.place != _NOWHERE:
            return Reason.DECODER_TIMED_OUT if stalled > self._patience else None
        if stalled > self._storage_patience:
            raise StoreError(self._storage, f"no answer for {stalled:.0f} s")
        return None

    def _do_again(self, worker: _Worker, lost: Reason) -> None:
        """What a lost process was to do, without the item at hand if another was lost there."""
        if worker.place == _NOWHERE:
            self._idle_deaths += worker.is_busy
            if self._idle_deaths > _DEATHS_ALLOWED:
                raise WorkerFailed("worker processes die before they touch a file")
        elif worker.job is not None:
            killed = lost is Reason.DECODER_CRASHED and worker.process.exitcode == -signal.SIGKILL
            worker.job.losses[worker.place] += 1
            if worker.job.losses[worker.place] > (_KILLS_ALLOWED if killed else 1):
                worker.job.excluded[worker.place] = lost
        self._queue.extendleft(job for job in (worker.leaving, worker.job) if job is not None)

    def _start(self) -> _Worker:
        start_server()
        context = multiprocessing.get_context("forkserver")
        for _ in range(_DEATHS_ALLOWED):
            ours, theirs = context.Pipe()
            state = context.RawArray("q", [_NOWHERE, 0])
            process = context.Process(
                target=_serve, args=(self._function, theirs, state), daemon=True
            )
            with suppress(BrokenPipeError), _neutral_main():  # killed before it read what to do
                process.start()
            theirs.close()
            if process.pid is not None:
                return _Worker(process, ours, state)
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


def _give(worker: _Worker, job: _Job) -> None:
    worker.job = job
    worker.state[0], worker.seen, worker.since = _NOWHERE, -1, time.monotonic()
    with suppress(BrokenPipeError, ConnectionResetError):  # a dead worker is found as such
        worker.pipe.send((job.task, job.excluded))


def _ready(workers: list[_Worker]) -> list[_Worker]:
    busy = [worker.pipe for worker in workers if worker.is_busy]
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
    if kind == "later":
        worker.job, worker.leaving = None, worker.job
        return
    if kind == "finished":
        worker.leaving = None
    else:
        worker.job = None
    yield content


def _stop(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join(_KILL_SECONDS)  # one that waits for a dead disk cannot be killed
    worker.pipe.close()


def _serve(function: Callable[[Any, Watch], Any], pipe: Connection, state: Any) -> None:
    """Do tasks until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    gc.freeze()  # the modules stay: no need to look through them for garbage again and again
    sending = threading.Lock()

    def send(outcome: tuple[str, Any]) -> None:
        with sending, suppress(BrokenPipeError, ConnectionResetError):
            pipe.send(outcome)

    def finish(later: Later[Any]) -> None:
        send(_outcome("finished", later.finish))

    left: Future[None] | None = None
    with ThreadPoolExecutor(1) as thread, suppress(EOFError, ConnectionResetError):
        while True:
            task, excluded = pipe.recv()
            watch = Watch(excluded, state)
            kind, content = _outcome("result", partial(function, task, watch))
            watch.waiting()
            if left is not None:
                left.result()  # one at a time: each holds what it writes
            if kind == "result" and isinstance(content, Later):
                send(("later", None))
                left = thread.submit(finish, content)
            else:
                send((kind, content))


def _outcome(kind: str, action: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return kind, action()
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
