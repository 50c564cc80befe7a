"""Retries of transient request failures, with backoff and a time limit."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from headct.errors import StoreError

DEFAULT_PATIENCE = 600.0  # seconds
_LONGEST_WAIT = 15.0  # seconds between two attempts
_SECONDS_BETWEEN_WARNINGS = 30.0
_FOREIGN_SECONDS = 20.0  # enough for a restarting proxy; a wrong address stays wrong

T = TypeVar("T")


class Transient(Exception):
    """A transient failure of a request; the message describes it in a few words."""


class Foreign(Transient):
    """Another service than the store responded, for example with a web page.

    Args:
        what: the response.
        remedy: what to do if this persists.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


def run_in_daemon_thread(request: Callable[[], T]) -> "Future[T]":
    """Start a request; Ctrl-C can end the program while it waits for a silent store."""
    result: Future[T] = Future()

    def run() -> None:
        result.set_running_or_notify_cancel()
        try:
            result.set_result(request())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result


class Patience:
    """Repeats failed requests to a store.

    Args:
        store: its URL or path, for messages.
        seconds: time limit of a request with its retries.
    """

    def __init__(self, store: str, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._warned_at = float("-inf")

    def request(self, attempt: Callable[[], T]) -> T:
        """Return the result of the first attempt that does not raise Transient.

        The waits between attempts grow, with jitter: many workers must not hit a recovering store
        at once.

        Raises:
            StoreError: all attempts failed; the message names the store and the last failure.
        """
        try:
            return attempt()  # the usual case
        except Transient as failure:
            self._warn(failure)
        import tenacity  # imported lazily: most runs never retry

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Transient),
            wait=tenacity.wait_random_exponential(multiplier=0.25, max=_LONGEST_WAIT),
            stop=lambda state: (state.seconds_since_start or 0.0) >= self._limit(_failure(state)),
            before_sleep=lambda state: self._warn(_failure(state)),
            reraise=True,
        )
        try:
            return retrying(attempt)
        except Foreign as failure:
            raise StoreError(self._store, str(failure), failure.remedy) from None
        except Transient as failure:
            what = f"no answer for {self._seconds:g} s ({failure})"
            raise StoreError(self._store, what) from None

    def _limit(self, failure: BaseException) -> float:
        """Return the time limit of retries for a kind of failure, seconds."""
        foreign = isinstance(failure, Foreign)
        return min(self._seconds, _FOREIGN_SECONDS) if foreign else self._seconds

    def _warn(self, failure: BaseException) -> None:
        now = time.monotonic()
        if now - self._warned_at >= _SECONDS_BETWEEN_WARNINGS:
            self._warned_at = now
            logging.getLogger(__name__).warning(
                "%s: %s; trying again for up to %g s.", self._store, failure, self._limit(failure)
            )


def _failure(state: Any) -> BaseException:
    failure: BaseException = state.outcome.exception()
    return failure
