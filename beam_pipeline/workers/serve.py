"""What runs in a worker process, and what the process reports about its task."""

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

NOWHERE = -1  # in place of an item's number


class Watch:
    """Reports which item of its task a process works on.

    Attributes:
        excluded: items not to touch, by number, and why: earlier processes crashed or hung there.
        last: the item that the process worked on last.
    """

    def __init__(self, excluded: Mapping[int, Reason] | None = None, state: Any = None) -> None:
        self.excluded = dict(excluded or {})
        self._state = state
        self.last = NOWHERE

    def waiting(self) -> None:
        """Report that no decoder is running: the process waits for a store, or cannot crash."""
        self._report(NOWHERE)

    def working(self, item: int) -> None:
        """Report that work on an item begins, which may crash or hang the process."""
        self.last = item
        self._report(item)

    def _report(self, item: int) -> None:
        if self._state is not None:
            self._state[0] = item
            self._state[1] += 1


@dataclass(frozen=True)
class Later(Generic[R]):
    """The rest of a task that waits for a store; it runs in a thread, beside the next task.

    Attributes:
        finish: returns the task's result; it touches no item.
    """

    finish: Callable[[], R]


def serve(function: Callable[[Any, Watch], Any], pipe: Connection, state: Any) -> None:
    """Do tasks until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    gc.freeze()  # modules stay: do not search them for garbage again and again
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
                upload.result()  # one upload at a time: each keeps its shard in memory
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
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does; the parent starts another
        raise
    except Exception:  # a bug: its traceback goes to where the user can see it
        return "failed", traceback.format_exc()


def _exit_with_parent() -> None:
    """End a worker whose parent was killed: it must not go on writing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
