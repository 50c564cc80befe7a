"""Errors of the trainer; `headct.errors` contains all other errors.

HeadctError
 ├── DeviceFailed   a GPU, its driver or its compiler failed      (exit code 1)
 └── Diverged       the loss stopped being a finite number        (exit code 3)
"""

from headct.errors import HeadctError


class DeviceFailed(HeadctError):
    """The device failed; neither the data nor the options are at fault."""


class Diverged(HeadctError):
    """The loss became infinite or not a number."""

    exit_code = 3
