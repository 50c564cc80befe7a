"""Errors that only a preprocessing run raises; `headct.errors` has the others.

HeadctError
 ├── RunnerError      the runner failed                    (exit code 1)
 ├── TooManyRejects   more rejected files than allowed     (exit code 3)
 ├── Refusal          an error that a worker recorded      (its exit code)
 └── AlreadyComplete  another run finished the output      (exit code 0)
"""

from collections.abc import Mapping

from headct.errors import HeadctError

# Errors that ended runs in this process, by output: an output that fails cannot record them.
ENDED_BY: dict[str, HeadctError] = {}


class RunnerError(HeadctError):
    """The runner failed, or cannot be reached."""


class TooManyRejects(HeadctError):
    """More files were rejected than the user allows."""

    exit_code = 3

    def __init__(
        self, files: int, by_reason: Mapping[str, int], allowed: float, explanation: str
    ) -> None:
        super().__init__(files, by_reason, allowed, explanation)
        self.files = files
        self.by_reason = by_reason
        self.allowed = allowed
        self.explanation = explanation

    def __str__(self) -> str:
        counts = ", ".join(f"{reason} {count}" for reason, count in sorted(self.by_reason.items()))
        return (
            f"{sum(self.by_reason.values())} of {self.files} files were rejected ({counts}), "
            f"more than the allowed fraction {self.allowed:g}. {self.explanation}; correct that "
            "and start again, or raise --max_reject_fraction"
        )


class Refusal(HeadctError):
    """An error that a worker recorded in the output."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message, exit_code)
        self.message = message
        self.exit_code = exit_code

    def __str__(self) -> str:
        return self.message


class AlreadyComplete(HeadctError):
    """Another run with the same options has completed the output in the meantime."""

    exit_code = 0
