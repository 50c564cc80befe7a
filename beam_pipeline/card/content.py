"""What a card tells, before it is a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from beam_pipeline.card.choice import Choice
from beam_pipeline.card.totals import Totals
from beam_pipeline.card.views import Views
from beam_pipeline.directory.rejects import Reject


@dataclass(frozen=True)
class Seen:
    """A slice that was looked at again.

    Attributes:
        row: of the index.
        views: what was found.
    """

    row: dict[str, Any]
    views: Views


@dataclass(frozen=True)
class Content:
    """What a card tells.

    Attributes:
        manifest: of the directory, as JSON values.
        rejects: one row per file that was not used.
        totals: of the index.
        choice: the slices that were looked at again.
        seen: what was found of them, by their numbers in the index.
    """

    manifest: dict[str, Any]
    rejects: Sequence[Reject]
    totals: Totals
    choice: Choice
    seen: dict[int, Seen]
