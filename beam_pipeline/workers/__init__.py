"""Work in processes that may crash, hang or be killed without taking the run along.

`watch` is what a process tells of its work, `serve` what runs in it, `process` one of them as the
parent sees it, and `pool` all of them.

Each process has a pipe of its own, so the death of one cannot leave a lock held or a message half
read by another, and a counter in shared memory tells what it was doing.
"""

from beam_pipeline.workers.pool import WorkerPool, shared_slots
from beam_pipeline.workers.process import WorkerFailed, start_server
from beam_pipeline.workers.watch import Later, Watch

__all__ = ["Later", "Watch", "WorkerFailed", "WorkerPool", "shared_slots", "start_server"]
