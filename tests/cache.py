"""Where tests keep the servers and jars that they build: in the user's cache, for every clone."""

import os
from pathlib import Path

SERVERS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headct-test-servers"
