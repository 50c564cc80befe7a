"""What tests of several packages need."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says more of the machine than of the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data named by ICH_REAL_DATA."""
    folder = os.environ.get("ICH_REAL_DATA")
    if not folder:
        pytest.skip("ICH_REAL_DATA is not set: no real data")
    if not Path(folder).is_dir():
        pytest.skip(f"ICH_REAL_DATA={folder} is not a folder: no real data")
    return Path(folder)
