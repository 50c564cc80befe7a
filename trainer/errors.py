"""What can end a command on purpose; everything else is a bug and keeps its traceback.

TrainerError
├── DeviceFailed exit code 1: a GPU, its driver or its compiler failed
├── BadInput     exit code 2: options, shards or a run directory that cannot be used
├── Diverged     exit code 3: the loss stopped being a finite number
└── StoreFailed  exit code 5: a disk is full, a store failed or refused access, or has no room
"""


class TrainerError(Exception):
    """Ends the command with one line on stderr and `exit_code`."""

    exit_code = 1


class DeviceFailed(TrainerError):
    """What computes failed: not the data, and nothing that was given."""


class BadInput(TrainerError):
    """What the user gave cannot be used; the message says what would be right."""

    exit_code = 2


class Diverged(TrainerError):
    """The loss became infinite or not a number."""

    exit_code = 3


class StoreFailed(TrainerError):
    """An object store failed or refused access, or the disk takes no more."""

    exit_code = 5
