"""The data card at the end of a run: a help for people, which must not cost the directory."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from beam_pipeline.errors import AlreadyComplete
from headct.commands import spell
from headct.errors import OutputError, StoreError
from headct.layout import CARD, CARD_ATTEMPTS
from headct.stores import Folder

CARD_PATIENCE = 30.0  # seconds for a slice that was decoded before
_MOST_ATTEMPTS = 2  # a third would end the process a third time

_logger = logging.getLogger(__name__)


def may_try_card(folder: Folder) -> bool:
    """Whether to make the card, which may have ended the processes that tried it before.

    Counts the attempt: one that ends its process, as when memory runs out, leaves no other trace.

    Raises:
        OutputError: the attempt cannot be recorded.
        StoreError: the folder's store fails.
    """
    folder.remove(CARD)  # of a run that was refused
    attempts = 0
    if folder.exists(CARD_ATTEMPTS):
        with suppress(ValueError):
            attempts = int(folder.read(CARD_ATTEMPTS))
    if attempts >= _MOST_ATTEMPTS:
        _warn(folder, "the processes that made it ended")
        return False
    folder.write(CARD_ATTEMPTS, str(attempts + 1).encode(), durable=False)
    return True


@contextmanager
def card_optional(folder: Folder) -> Iterator[None]:
    """Let the block fail with a warning, unless the output cannot be written.

    Raises:
        AlreadyComplete: another run has completed the directory.
        OutputError: the output cannot be written.
        StoreError: the folder's store fails.
    """
    try:
        yield
    except (AlreadyComplete, OutputError, StoreError):
        raise
    except Exception as error:  # whatever a card's bug raises: the shards are good without it
        _logger.debug("The data card", exc_info=True)
        _warn(folder, type(error).__name__)


def _warn(folder: Folder, why: str) -> None:
    _logger.warning(
        "The data card could not be made (%s); %s makes it.", why, spell("card", shards=folder.url)
    )
