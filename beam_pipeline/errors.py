"""What can go wrong with what the user gives, and nothing else.

Exception
 ├── Rejected          one file (or its label) is not usable: a row in rejects.jsonl
 └── PipelineError     the run cannot start or go on: one line for the user
      ├── RunnerError      what runs the pipeline failed       (exit code 1)
      ├── Interrupted      Ctrl-C                              (exit code 130)
      ├── UsageError       bad options, input or output        (exit code 2)
      ├── TooManyRejects   more bad files than allowed         (exit code 3)
      ├── StoreError       a store failed                      (exit code 5)
      ├── OutputError      the output could not be written     (exit code 5)
      └── AlreadyComplete  another run has finished the output (exit code 0)

Every other exception is a bug and stops the run with its traceback.
"""

from collections.abc import Mapping
from enum import StrEnum

from beam_pipeline.layout import REJECTS


class Reason(StrEnum):
    """Why a file is not used: a closed list, written to rejects.jsonl."""

    VANISHED = "vanished"
    READ_ERROR = "read_error"
    NOT_DICOM = "not_dicom"
    UNREADABLE = "unreadable"
    MISSING_ATTRIBUTE = "missing_attribute"
    INVALID_ATTRIBUTE = "invalid_attribute"
    UNSUPPORTED_TRANSFER_SYNTAX = "unsupported_transfer_syntax"
    TRUNCATED_PIXELS = "truncated_pixels"
    CORRUPT_PIXELS = "corrupt_pixels"
    NOT_CT = "not_ct"
    NO_PIXELS = "no_pixels"
    SECONDARY_CAPTURE = "secondary_capture"
    LOCALIZER = "localizer"
    MULTI_FRAME = "multi_frame"
    NOT_GRAYSCALE = "not_grayscale"
    TOO_LARGE = "too_large"
    CONSTANT_IMAGE = "constant_image"
    DECODER_CRASHED = "decoder_crashed"
    DECODER_TIMED_OUT = "decoder_timed_out"
    DUPLICATE_ID = "duplicate_id"
    LABEL_MISSING = "label_missing"
    LABEL_INVALID = "label_invalid"
    LABEL_CONFLICT = "label_conflict"


class Rejected(Exception):
    """A file is not usable. `detail` never holds a value from the file's header."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    @classmethod
    def unread(cls, error: OSError) -> "Rejected":
        """What a file that cannot be read is rejected with."""
        if isinstance(error, FileNotFoundError):
            return cls(Reason.VANISHED)
        return cls(Reason.READ_ERROR, error.strerror or type(error).__name__)


class PipelineError(Exception):
    """The run ends with one line for the user and `exit_code`."""

    exit_code = 1


class RunnerError(PipelineError):
    """What was to run the pipeline failed, or cannot be reached."""


class Interrupted(PipelineError):
    """The user does not want to wait any longer."""

    exit_code = 130


class UsageError(PipelineError):
    """The options, the input or the output folder cannot be used as given."""

    exit_code = 2


class TooManyRejects(PipelineError):
    """More files were rejected than the user allows."""

    exit_code = 3

    def __init__(self, files_seen: int, by_reason: Mapping[str, int], allowed: float) -> None:
        super().__init__(files_seen, by_reason, allowed)
        self.files_seen = files_seen
        self.by_reason = by_reason
        self.allowed = allowed

    def __str__(self) -> str:
        counts = ", ".join(f"{reason} {count}" for reason, count in sorted(self.by_reason.items()))
        return (
            f"{sum(self.by_reason.values())} of {self.files_seen} files were rejected ({counts}), "
            f"more than the allowed fraction {self.allowed:g}; see {REJECTS}, or raise "
            "--max_reject_fraction"
        )


class StoreError(PipelineError):
    """A store failed, or refused access: no verdict on any file. The same command resumes.

    Args:
        store: its URL or path.
        what: happened, in a few words; never a value from a header.
    """

    exit_code = 5

    def __init__(self, store: str, what: str) -> None:
        super().__init__(store, what)
        self.store = store
        self.what = what

    def __str__(self) -> str:
        return f"{self.store}: {self.what}; the same command resumes"


class OutputError(PipelineError):
    """The output could not be written; what is whole stays, and a second start resumes."""

    exit_code = 5


class Refusal(PipelineError):
    """One of the errors above, as a worker left word of it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message, exit_code)
        self.message = message
        self.exit_code = exit_code

    def __str__(self) -> str:
        return self.message


class AlreadyComplete(PipelineError):
    """Another run with the same options has completed the output in the meantime."""

    exit_code = 0
