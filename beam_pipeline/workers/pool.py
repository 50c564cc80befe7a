"""Pool of worker processes; the tasks of a lost process are retried in another."""

import gc
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from itertools import pairwise
from multiprocessing import forkserver, util
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any, Generic, TypeVar

from beam_pipeline.workers.serve import (
    INPUT_VARIABLE,
    NOWHERE,
    Later,
    SharedNumbers,
    Watch,
    WorkerFailed,
    serve,
)
from headct.errors import StoreError, UsageError
from headct.reasons import Reason
from headct.stores import DEFAULT_PATIENCE, load_archive

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
    *("beam_pipeline.workers.serve", "beam_pipeline.shards.writer"),
    *("beam_pipeline.planning.inventory", "pydicom.filereader"),
]
# Libraries that may have started threads, which Python does not count.
_THREADED = frozenset({"apache_beam", "grpc", "obstore", "tensorflow"})
# A socket's path has at most 107 bytes (unix(7)), and 103 on macOS; multiprocessing uses 32 of them
# for "/pymp-xxxxxxxx/listener-xxxxxxxx".
_LONGEST_FOLDER = 103 - 32
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/run")  # mkdtemp makes a folder in one of them

_starting = threading.Lock()
_slots: dict[int, threading.Semaphore] = {}


@dataclass
class _Job:
    """A task, and the failures of its earlier attempts by item."""

    task: Any
    excluded: dict[int, Reason] = field(default_factory=dict)
    losses: Counter[int] = field(default_factory=Counter)


def shared_slots(number: int) -> threading.Semaphore:
    """Return the semaphore of `number` slots that all pools of this process share."""
    return _slots.setdefault(number, threading.Semaphore(number))


@dataclass
class WorkerPool(Generic[T, R]):
    """Runs a function over tasks in processes, started on demand.

    If a process dies or hangs while it works on an item, the pool retries the item once. After a
    second failure the task runs without the item. After a kill from outside, the pool retries the
    item up to three times.

    Attributes:
        function: called as function(task, watch) in a process; reports every item to `watch`, and
            returns the task's result or a `Later` that returns the result.
        size: number of processes.
        patience: timeout of one item, seconds; a slower process counts as hung.
        storage_patience: timeout of the store, seconds; most stores report a failure long before.
        storage: name of the store in the timeout's message.
        slots: limit on processes, shared by several pools; a pool waits for its first slot, and
            takes further slots only if they are free.
    """

    function: Callable[[T, Watch], R | Later[R]]
    size: int
    patience: float = 120.0
    storage_patience: float = 2 * DEFAULT_PATIENCE
    storage: str = "storage"
    slots: threading.Semaphore | None = None
    _workers: "list[_Worker]" = field(default_factory=list, init=False)
    _queue: deque[_Job] = field(default_factory=deque, init=False)  # the next, and those to retry
    _idle_deaths: int = field(default=0, init=False)

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
        while self._queue or any(worker.jobs for worker in self._workers):
            yield from self._wait()

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:  # all at once: the end of a process takes milliseconds
            worker.process.kill()
        while self._workers:
            self._workers.pop().stop()
            if self.slots is not None:
                self.slots.release()
        self._queue.clear()

    def _hand_out(self) -> None:
        while self._queue:
            free = next((worker for worker in self._workers if not worker.is_working), None)
            if free is None:
                if len(self._workers) >= self.size:
                    return
                if self.slots and not self.slots.acquire(blocking=not self._workers):
                    return
                try:
                    free = _start_worker(self.function)
                except BaseException:
                    if self.slots:
                        self.slots.release()
                    raise
                self._workers.append(free)
            free.give(self._queue.popleft())

    def _wait(self) -> Iterator[R]:
        """Wait for a message; yield results and replace lost processes."""
        ready = wait([worker.pipe for worker in self._workers if worker.jobs], _POLL_SECONDS)
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
                self._workers[number] = _start_worker(self.function)
        self._hand_out()

    def _loss(self, worker: "_Worker") -> Reason | None:
        """Return why a process is lost, None if it is alive; raise if its store failed."""
        if not worker.process.is_alive():
            return Reason.DECODER_CRASHED
        stalled = worker.stalled_for()
        if worker.item != NOWHERE:
            return Reason.DECODER_TIMED_OUT if stalled > self.patience else None
        if stalled > self.storage_patience:
            raise StoreError(self.storage, f"no answer for {stalled:.0f} s")
        return None

    def _retry(self, worker: "_Worker", loss: Reason) -> None:
        """Queue the tasks of a lost process; exclude its item if the item failed before."""
        if worker.item == NOWHERE:
            self._idle_deaths += bool(worker.jobs)
            if self._idle_deaths > _DEATHS_ALLOWED:
                raise WorkerFailed("worker processes die before they touch a file")
        elif worker.is_working:
            job = worker.jobs[-1]
            killed = loss is Reason.DECODER_CRASHED and worker.process.exitcode == -signal.SIGKILL
            job.losses[worker.item] += 1
            if job.losses[worker.item] > (_KILLS_ALLOWED if killed else 1):
                job.excluded[worker.item] = loss
        self._queue.extendleft(worker.jobs)


@dataclass
class _Worker:
    """The parent's view of a worker process.

    Attributes:
        process: the process.
        pipe: connection to the process.
        state: number of the process's current item, and a count of the process's reports.
        jobs: its unfinished tasks: perhaps one whose end runs in a thread, then the current one.
        is_working: whether the last of `jobs` is the current one.
    """

    process: multiprocessing.process.BaseProcess
    pipe: Connection
    state: SharedNumbers
    jobs: list[_Job] = field(default_factory=list)
    is_working: bool = False
    _seen: int = -1
    _since: float = field(default_factory=time.monotonic)

    @property
    def item(self) -> int:
        """Number of the current item in the task; NOWHERE while the process cannot crash."""
        return int(self.state[0])

    def stalled_for(self) -> float:
        """Return the seconds since the last report; 0 without a task."""
        reports = int(self.state[1])
        if not self.jobs or reports != self._seen:
            self._seen, self._since = reports, time.monotonic()
        return time.monotonic() - self._since

    def give(self, job: _Job) -> None:
        """Send a task; `_loss` detects a dead process."""
        self.jobs.append(job)
        self.is_working = True
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
        if isinstance(content, Exception):
            raise content
        if kind != "finished":
            self.is_working = False
        if kind != "later":
            self.jobs.pop(0 if kind == "finished" else -1)
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
    # Arrow's own allocator would keep an extra 30 MB.
    variables = {"ARROW_DEFAULT_MEMORY_POOL": "system", INPUT_VARIABLE: source}
    added = [name for name in variables if name not in os.environ]
    os.environ.update({name: variables[name] for name in added})
    try:
        forkserver.ensure_running()
    finally:
        for name in added:
            os.environ.pop(name, None)


def fork_server(source: str) -> None:
    """Start the fork server as a fork of this process, which inherits all imports.

    For a command that has just begun. `start_server` still starts the server of a process that may
    have threads, whose locks a fork would inherit: a notebook, or a worker of Beam's.

    Args:
        source: as of `start_server`.

    Raises:
        UsageError: no folder for temporary files is writable.
    """
    threads = threading.active_count() > 1 or not _THREADED.isdisjoint(sys.modules)
    if threads or sys.platform != "linux":  # macOS's frameworks do not survive a fork
        return
    for module in _PRELOADED:
        import_module(module)
    load_archive(source)
    # multiprocessing starts its fork server and its resource tracker by this function.
    spawn, util.spawnv_passfds = util.spawnv_passfds, _fork
    try:
        start_server(source)
    finally:
        util.spawnv_passfds = spawn


def _fork(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
    """Fork a process that runs the code which a new interpreter would be given; return its id."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    process = os.fork()
    if process:
        return process
    try:
        gc.disable()  # until `serve`
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for lower, upper in pairwise([2, *sorted(passfds), os.sysconf("SC_OPEN_MAX")]):
            os.closerange(lower + 1, upper)
        exec(args[-1], {})
    except Exception:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)


def place_sockets() -> None:
    """Make multiprocessing create its sockets in a folder with a short path.

    Raises:
        UsageError: no folder with a short path can be written.
    """
    try:
        folder = tempfile.gettempdir()
    except OSError:
        raise UsageError(
            "no folder for temporary files can be written: set TMPDIR to one"
        ) from None
    if len(os.fsencode(folder)) <= _LONGEST_FOLDER:
        return
    for short in _SHORT_FOLDERS:
        with suppress(OSError):
            tempfile.tempdir = short
            try:
                util.get_temp_dir()  # creates a folder, and returns the same folder from now on
            finally:
                tempfile.tempdir = folder
            return
    raise UsageError(
        f"TMPDIR {folder} is too long for the path of a socket: want a folder of at most "
        f"{_LONGEST_FOLDER} bytes"
    )


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
def _neutral_main() -> Iterator[None]:
    """Keep a new process from importing the main module: in a Beam worker, all of Beam."""
    with _starting:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main
