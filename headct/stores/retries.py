"""The retry rule: repeat requests that fail in ways that may pass, for a limited time."""

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
_FOREIGN_SECONDS = 20.0  # enough for a proxy that restarts; a wrong address stays wrong

T = TypeVar("T")


class Transient(Exception):
    """A request failed in a way that may pass; the message says how, in a few words."""


class Foreign(Transient):
    """Another service than the store answered, for example with a web page.

    Args:
        what: the answer was.
        remedy: what to do if this lasts.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


def run_in_daemon_thread(request: Callable[[], T]) -> "Future[T]":
    """Start a request; while a store is silent, Ctrl-C ends a program that waits for the result."""
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
        seconds: after which a request is given up.
    """

    def __init__(self, store: str, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._warned_at = float("-inf")

    def request(self, attempt: Callable[[], T]) -> T:
        """Return the result of the first attempt that does not raise Transient.

        The waits between attempts grow, and are random, so that many workers do not return to a
        recovering store all at once.

        Raises:
            StoreError: all attempts failed; the message names the store and the last failure.
        """
        try:
            return attempt()  # nearly always
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
        """Return for how many seconds requests that fail in this way are repeated."""
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
