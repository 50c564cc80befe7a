"""Requests that are tried again until patience is at an end."""

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
_FOREIGN_SECONDS = 20.0  # a proxy that restarts may take so long; a wrong address stays wrong

T = TypeVar("T")


class Transient(Exception):
    """A request failed in a way that may pass; the message says how, in a few words."""


class Foreign(Transient):
    """An answer that is none of the store's protocol: a web page, another service.

    Args:
        what: the answer is.
        remedy: what to do if it stays so.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


def run_in_daemon_thread(request: Callable[[], T]) -> "Future[T]":
    """Start a request; Ctrl-C ends a program that waits for the result while a store is silent."""
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
    """Repeats requests to one store while they fail in ways that may pass.

    Args:
        store: its URL or path, for messages.
        seconds: after which a request is given up.
    """

    def __init__(self, store: str, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._warned_at = float("-inf")

    def request(self, attempt: Callable[[], T]) -> T:
        """The result of an attempt that did not raise Transient.

        The waits between attempts grow, and are random, so that many workers do not ask a store
        that comes back all at once.

        Raises:
            StoreError: none did in time; the message names the store and the last failure.
        """
        try:
            return attempt()  # nearly always
        except Transient as failure:
            self._warn(failure)
        import tenacity  # takes longer to load than most runs fail

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Transient),
            wait=tenacity.wait_random_exponential(multiplier=0.25, max=_LONGEST_WAIT),
            stop=self._is_over,
            before_sleep=self._before_sleep,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except Foreign as failure:
            raise StoreError(self._store, str(failure), failure.remedy) from None
        except Transient as failure:
            raise StoreError(
                self._store, f"no answer for {self._seconds:g} s ({failure})"
            ) from None

    def _is_over(self, state: Any) -> bool:
        return bool(state.seconds_since_start >= self._longest(state.outcome.exception()))

    def _longest(self, failure: BaseException | None) -> float:
        """Seconds for which requests are repeated that fail so."""
        foreign = isinstance(failure, Foreign)
        return min(self._seconds, _FOREIGN_SECONDS) if foreign else self._seconds

    def _before_sleep(self, state: Any) -> None:
        if state.outcome is not None:
            self._warn(state.outcome.exception())

    def _warn(self, failure: BaseException | None) -> None:
        now = time.monotonic()
        if now - self._warned_at >= _SECONDS_BETWEEN_WARNINGS:
            self._warned_at = now
            logging.getLogger(__name__).warning(
                "%s: %s; trying again for up to %g s.",
                self._store,
                failure,
                self._longest(failure),
            )
