"""What runs in a worker process."""

import gc
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from beam_pipeline.workers.watch import Later, Watch
from headct.errors import HeadctError


def serve(function: Callable[[Any, Watch], Any], pipe: Connection, state: Any) -> None:
    """Do tasks until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    gc.freeze()  # the modules stay: no need to look through them for garbage again and again
    sending = threading.Lock()

    def send(outcome: tuple[str, Any]) -> None:
        with sending, suppress(BrokenPipeError, ConnectionResetError):
            pipe.send(outcome)

    def finish(later: Later[Any]) -> None:
        send(_outcome("finished", later.finish, Watch()))

    left: Future[None] | None = None
    with ThreadPoolExecutor(1) as thread, suppress(EOFError, ConnectionResetError):
        while True:
            task, excluded = pipe.recv()
            watch = Watch(excluded, state)
            kind, content = _outcome("result", partial(function, task, watch), watch)
            watch.waiting()
            if left is not None:
                left.result()  # one at a time: each holds what it writes
            if kind == "result" and isinstance(content, Later):
                send(("later", None))
                left = thread.submit(finish, content)
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
    """A worker whose parent was killed must not go on writing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
