"""Other people's code on other people's bytes: kept quiet, and its failures made ours."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pydicom import config

from headct.reasons import Reason, Rejected

# Two threads that change and put back the same settings would put back each other's.
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def contained(reason: Reason) -> Iterator[None]:
    """Run a parser or a decoder on bytes that may be anything.

    Parsers raise whatever a broken file makes them meet, from IndexError to RecursionError, and
    their messages, warnings and log lines quote the header. Nothing of that leaves: a failure is
    told by the name of its type, and warnings and pydicom's log lines are dropped. What is changed
    of pydicom, `warnings` and `logging` for that is put back at the end; one thread at a time.

    Raises:
        Rejected: with `reason`, for any exception but a Rejected.
        MemoryError: of the machine's state, not of the bytes: limits were checked before.
    """
    with _ONE_AT_A_TIME, _hushed():
        try:
            yield
        except (Rejected, MemoryError):
            raise
        except Exception as error:
            raise Rejected(reason, type(error).__name__) from None


@contextmanager
def _hushed() -> Iterator[None]:
    logger = logging.getLogger("pydicom")
    propagate = logger.propagate
    # Its own handlers stay, for whoever added one; the root's, and with it the terminal, does not.
    logger.propagate = False
    try:
        with warnings.catch_warnings(), config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.propagate = propagate
