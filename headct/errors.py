"""Errors caused by input or environment; any other exception is a bug with a traceback.

HeadctError                one line for the user, and the exit code
 ├── UsageError            bad options, input, shards or run directory   (exit code 2)
 ├── Interrupted           Ctrl-C                                        (exit code 130)
 └── StorageError          a store or a disk failed                      (exit code 5)
      ├── StoreError       a store failed, or refused access
      │    └── ObjectRefused   perhaps only this object: try other objects
      └── OutputError      the output could not be written

`beam_pipeline.errors` and `trainer.errors` add their own.
"""


class HeadctError(Exception):
    """The command ends with one line for the user and `exit_code`."""

    exit_code = 1


class Interrupted(HeadctError):
    """The user pressed Ctrl-C."""

    exit_code = 130


class UsageError(HeadctError):
    """The options, the input or the output folder cannot be used as given."""

    exit_code = 2


class StorageError(HeadctError):
    """A store or a disk failed, refused access, or is full."""

    exit_code = 5


RESUMES = "the same command resumes"


class StoreError(StorageError):
    """A store failed, or refused access: no verdict on any file.

    Args:
        store: its URL or path.
        what: the failure, in a few words; never a value from a header.
        remedy: what to do.
    """

    def __init__(self, store: str, what: str, remedy: str = RESUMES) -> None:
        super().__init__(store, what, remedy)
        self.store = store
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.store}: {self.what}; {self.remedy}"


class ObjectRefused(StoreError):
    """A store refused to return an object: the object's fault if others can be read.

    Args:
        store: see StoreError.
        what: see StoreError.
        remedy: see StoreError.
        is_foreign: whether another service answered, for example a proxy.
    """

    def __init__(
        self, store: str, what: str, remedy: str = RESUMES, *, is_foreign: bool = False
    ) -> None:
        super().__init__(store, what, remedy)
        self.is_foreign = is_foreign


class OutputError(StorageError):
    """The output could not be written; complete files stay, and the next run resumes."""
