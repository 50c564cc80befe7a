"""Head-CT DICOM files to windowed PNG tensors in stratified TFRecord shards."""

import os

# Read when pyarrow is first imported, here or in a worker: Arrow's own allocator would keep 30 MB
# more than it gives.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

from headct import __version__ as __version__
