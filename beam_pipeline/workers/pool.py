"""Tasks spread over worker processes; what is lost with a process is done again by another."""

import logging
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from beam_pipeline.workers.process import (
    DEATHS_ALLOWED,
    POLL_SECONDS,
    Job,
    Worker,
    WorkerFailed,
    start_worker,
)
from beam_pipeline.workers.watch import NOWHERE, Later, Watch
from headct.errors import StoreError
from headct.reasons import Reason
from headct.stores.retries import DEFAULT_PATIENCE

T = TypeVar("T")
R = TypeVar("R")

_logger = logging.getLogger(__name__)

# At one item. A fault of a decoder ends its process by other signals: this one comes from outside,
# as from a kernel that is short of memory, whatever the process is doing.
_KILLS_ALLOWED = 3
_LOSSES = {Reason.DECODER_CRASHED: "died", Reason.DECODER_TIMED_OUT: "hung"}

_SLOTS: "WeakValueDictionary[int, threading.Semaphore]" = WeakValueDictionary()
_SLOTS_CHANGE = threading.Lock()


def shared_slots(number: int) -> threading.Semaphore:
    """Slots for that many processes, the same for all pools of this process that use them now."""
    with _SLOTS_CHANGE:
        slots = _SLOTS.get(number)
        if slots is None:
            _SLOTS[number] = slots = threading.Semaphore(number)
        return slots


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
        self._workers: list[Worker] = []
        self._queue: deque[Job] = deque()  # one, and those that are to be done again
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
            HeadctError: the function raised it.
            WorkerFailed: the function raised anything else; its traceback is the message.
        """
        self._queue.append(Job(task))
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
            self._workers.pop().stop()
            self._give_back()
        self._queue.clear()

    def _hand_out(self) -> None:
        while self._queue and (worker := self._free_worker()) is not None:
            worker.give(self._queue.popleft())

    def _free_worker(self) -> Worker | None:
        for worker in self._workers:
            if worker.job is None:
                return worker
        if len(self._workers) < self._size and self._take_slot():
            try:
                self._workers.append(start_worker(self._function))
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
            for result in worker.receive():
                self._idle_deaths = 0
                yield result
        for place, worker in enumerate(self._workers):
            lost = self._loss(worker)
            if lost is not None:
                _logger.warning("A worker process %s; going on with another.", _LOSSES[lost])
                self._do_again(worker, lost)
                worker.stop()
                self._workers[place] = start_worker(self._function)
        self._hand_out()

    def _loss(self, worker: Worker) -> Reason | None:
        if not worker.process.is_alive():
            return Reason.DECODER_CRASHED
        stalled = worker.stalled_for()
        if worker.place != NOWHERE:
            return Reason.DECODER_TIMED_OUT if stalled > self._patience else None
        if stalled > self._storage_patience:
            raise StoreError(self._storage, f"no answer for {stalled:.0f} s")
        return None

    def _do_again(self, worker: Worker, lost: Reason) -> None:
        """What a lost process was to do, without the item at hand if another was lost there."""
        if worker.place == NOWHERE:
            self._idle_deaths += worker.is_busy
            if self._idle_deaths > DEATHS_ALLOWED:
                raise WorkerFailed("worker processes die before they touch a file")
        elif worker.job is not None:
            killed = lost is Reason.DECODER_CRASHED and worker.process.exitcode == -signal.SIGKILL
            worker.job.losses[worker.place] += 1
            if worker.job.losses[worker.place] > (_KILLS_ALLOWED if killed else 1):
                worker.job.excluded[worker.place] = lost
        self._queue.extendleft(job for job in (worker.leaving, worker.job) if job is not None)


def _ready(workers: list[Worker]) -> list[Worker]:
    busy = [worker.pipe for worker in workers if worker.is_busy]
    ready = wait(busy, POLL_SECONDS)
    return [worker for worker in workers if worker.pipe in ready]
