"""Main loop of a worker process, and the process's reports about its current item."""

import gc
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from headct.errors import HeadctError
from headct.reasons import Reason

R = TypeVar("R")

NOWHERE = -1  # stands for an item's number


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
    """Run tasks until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    gc.freeze()  # modules stay: later collections skip them
    sending = threading.Lock()

    def send(outcome: tuple[str, Any]) -> None:
        with sending, suppress(BrokenPipeError, ConnectionResetError):
            pipe.send(outcome)

    def finish(later: Later[Any]) -> None:
        send(_outcome("finished", later.finish, Watch()))

    upload: Future[None] | None = None
    with ThreadPoolExecutor(1) as thread, suppress(EOFError, ConnectionResetError):
        while True:
            task, excluded = pipe.recv()
            watch = Watch(excluded, state)
            kind, content = _outcome("result", partial(function, task, watch), watch)
            watch.waiting()
            if upload is not None:
                upload.result()  # one upload at a time: an upload keeps its shard in memory
            if kind == "result" and isinstance(content, Later):
                send(("later", None))
                upload = thread.submit(finish, content)
            else:
                send((kind, content))


def _outcome(kind: str, action: Callable[[], Any], watch: Watch) -> tuple[str, Any]:
    try:
        return kind, action()
    except HeadctError as error:
        return "refused", error
    except MemoryError:
        watch.working(watch.last)
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does; the parent starts a new process
        raise
    except Exception:  # a bug: the user sees its traceback
        return "failed", traceback.format_exc()


def _exit_with_parent() -> None:
    """End the worker when its parent is killed: the worker must stop writing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
