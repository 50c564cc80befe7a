"""Main loop of a worker process, and the process's reports about its current item."""

import ctypes
import gc
import mmap
import multiprocessing
import os
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

INPUT_VARIABLE = "HEADCT_SHARDS_INPUT"  # the input, or empty; set only in the workers' fork server
if INPUT_VARIABLE in os.environ:
    gc.disable()  # while it imports: nothing is garbage then

from headct.errors import HeadctError
from headct.reasons import Reason
from headct.stores import load_archive

R = TypeVar("R")

NOWHERE = -1  # stands for an item's number
_BYTES = 16  # of two integers

# glibc returns free large blocks to the kernel and gets the next blocks zeroed: a tenth of the time
# of converting slices, because slices reuse blocks of the same size.
_THRESHOLDS = (-3, -1)  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD in malloc.h
_KEPT_BYTES = 1 << 25  # the most that all versions of glibc accept

# The fork server reads an archive's directory once for all workers.
load_archive(os.environ.get(INPUT_VARIABLE, ""))


class WorkerFailed(RuntimeError):
    """A function raised in a worker, or workers keep dying."""


class SharedNumbers:
    """Two integers that this process and its child processes read and change.

    `multiprocessing` would keep the integers in `/dev/shm`, which some containers lack.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            with tempfile.TemporaryFile() as file:
                file.truncate(_BYTES)
                descriptor = os.dup(file.fileno())
        self._descriptor = descriptor
        self._numbers = memoryview(mmap.mmap(descriptor, _BYTES)).cast("q")

    def __getitem__(self, index: int) -> int:
        return int(self._numbers[index])

    def __setitem__(self, index: int, number: int) -> None:
        self._numbers[index] = number

    def close(self) -> None:
        """Close the file: no further process can open the numbers. The numbers stay."""
        os.close(self._descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_numbers, (reduction.DupFd(self._descriptor),)


def _open_numbers(descriptor: Any) -> SharedNumbers:
    numbers = SharedNumbers(descriptor.detach())
    numbers.close()
    return numbers


class Watch:
    """Reports the current item of a process's task.

    Attributes:
        excluded: numbers of items to skip, and why: earlier processes crashed or hung on them.
        last: number of the process's last item.
    """

    def __init__(self, excluded: Mapping[int, Reason] | None = None, state: Any = None) -> None:
        self.excluded = dict(excluded or {})
        self._state = state
        self.last = NOWHERE

    def waiting(self) -> None:
        """Report that no decoder is running: the process cannot crash, or waits for a store."""
        self._report(NOWHERE)

    def working(self, item: int) -> None:
        """Report the start of work on an item; the work may crash or hang the process."""
        self.last = item
        self._report(item)

    def _report(self, item: int) -> None:
        if self._state is not None:
            self._state[0] = item
            self._state[1] += 1


@dataclass(frozen=True)
class Later(Generic[R]):
    """The end of a task that waits for a store; runs in a thread, beside the next task.

    Attributes:
        finish: returns the task's result without decoding any item.
    """

    finish: Callable[[], R]


def serve(function: Callable[[Any, Watch], Any], pipe: Connection, state: Any) -> None:
    """Run tasks until the other end of the pipe is closed.

    Sends the kind of each outcome (result; later, and then finished), and the result or an error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for threshold in _THRESHOLDS:
            mallopt(threshold, _KEPT_BYTES)
    gc.freeze()  # modules stay: later collections skip them
    gc.enable()
    sending = threading.Lock()

    def send(kind: str, outcome: Any) -> None:
        with sending, suppress(BrokenPipeError, ConnectionResetError):
            pipe.send((kind, outcome))

    def finish(later: Later[Any]) -> None:
        send("finished", _outcome(later.finish, Watch()))

    upload: Future[None] | None = None
    with ThreadPoolExecutor(1) as thread, suppress(EOFError, ConnectionResetError):
        while True:
            task, excluded = pipe.recv()
            watch = Watch(excluded, state)
            outcome = _outcome(partial(function, task, watch), watch)
            watch.waiting()
            if upload is not None:
                upload.result()  # one upload at a time: an upload keeps its shard in memory
            if isinstance(outcome, Later):
                send("later", None)
                upload = thread.submit(finish, outcome)
            else:
                send("result", outcome)


def _outcome(action: Callable[[], Any], watch: Watch) -> Any:
    """Return an action's result, or the error for the parent to raise."""
    try:
        return action()
    except HeadctError as error:
        return error
    except MemoryError:
        watch.working(watch.last)
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does; the parent starts a new process
        raise
    except Exception:  # a bug: the user sees its traceback
        return WorkerFailed(traceback.format_exc())


def _exit_with_parent() -> None:
    """End the worker when its parent is killed: the worker must stop writing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
