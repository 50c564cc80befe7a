"""Worker processes that may crash, hang or be killed without ending the run.

`serve` runs in a process; `pool` starts the processes and replaces lost ones. A process shares its
pipe with no other process: its death leaves no lock held and no other message half read. Numbers
in shared memory name the process's current item.
"""

from beam_pipeline.workers.pool import WorkerPool, fork_server, shared_slots, start_server
from beam_pipeline.workers.serve import Later, Watch, WorkerFailed

__all__ = [
    "Later",
    "Watch",
    "WorkerFailed",
    "WorkerPool",
    "fork_server",
    "shared_slots",
    "start_server",
]
