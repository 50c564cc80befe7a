"""Work in processes that may crash, hang or be killed without ending the run.

`serve` runs in a process, `pool` starts the processes and replaces lost ones. Each process has a
pipe of its own, so that its death leaves no lock held and no message of another half read. Numbers
in shared memory (`shared`) show which item it was working on.
"""

from beam_pipeline.workers.pool import WorkerFailed, WorkerPool, shared_slots, start_server
from beam_pipeline.workers.serve import Later, Watch

__all__ = ["Later", "Watch", "WorkerFailed", "WorkerPool", "shared_slots", "start_server"]
