"""What a worker process tells of the task that it is doing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from headct.reasons import Reason

R = TypeVar("R")

NOWHERE = -1  # instead of a place


class Watch:
    """What a process tells of itself while it does a task, and what it knows of the task.

    Attributes:
        excluded: places in the task that are not to be touched, and why: earlier processes crashed
            or hung there.
        last: the place in the task that was last worked on.
    """

    def __init__(self, excluded: Mapping[int, Reason] | None = None, state: Any = None) -> None:
        self.excluded = dict(excluded or {})
        self._state = state
        self.last = NOWHERE

    def waiting(self) -> None:
        """The process waits for a store, or does work that cannot crash."""
        self._tell(NOWHERE)

    def working(self, place: int) -> None:
        """The process begins to work on what may crash or hang it: the task's item at a place."""
        self.last = place
        self._tell(place)

    def _tell(self, place: int) -> None:
        if self._state is not None:
            self._state[0] = place
            self._state[1] += 1


@dataclass(frozen=True)
class Later(Generic[R]):
    """What is left of a task that waits for a store: a thread does it, beside the next task.

    Attributes:
        finish: gives the task's result; it touches no item.
    """

    finish: Callable[[], R]
