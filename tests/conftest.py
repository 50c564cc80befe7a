"""What tests of several packages need."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import Phase, settings

# How long an example takes says more of the machine than of the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
# Of `make mutants`: the same examples for every mutant, and that one fails is enough.
settings.register_profile(
    "mutants",
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)

# What a shell runs in the background ignores it, and so do the processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data named by ICH_REAL_DATA."""
    folder = os.environ.get("ICH_REAL_DATA")
    if not folder:
        pytest.skip("ICH_REAL_DATA is not set: no real data")
    if not Path(folder).is_dir():
        pytest.skip(f"ICH_REAL_DATA={folder} is not a folder: no real data")
    return Path(folder)
