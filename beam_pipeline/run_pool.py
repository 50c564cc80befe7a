"""A pool of a run's worker processes, by the options of the run."""

from collections.abc import Callable
from typing import Any

from beam_pipeline.options import Options
from beam_pipeline.workers import WorkerPool, shared_slots


def open_pool(function: Callable[..., Any], options: Options) -> WorkerPool[Any, Any]:
    """Return a pool of a run's worker processes; all pools of this process share one limit."""
    return WorkerPool(
        function,
        options.run.workers,
        patience=options.run.decode_timeout,
        storage_patience=2 * options.files.storage_patience + 60,
        storage=options.files.input,
        slots=shared_slots(options.run.workers),
    )
