"""What can end a command on purpose; everything else is a bug and keeps its traceback.

TrainerError
├── BadInput     exit code 2: options, shards or a run directory that cannot be used
└── Diverged     exit code 3: the loss stopped being a finite number
"""


class TrainerError(Exception):
    """Ends the command with one line on stderr and `exit_code`."""

    exit_code = 1


class BadInput(TrainerError):
    """What the user gave cannot be used; the message says what would be right."""

    exit_code = 2


class Diverged(TrainerError):
    """The loss became infinite or not a number."""

    exit_code = 3
