"""The Beam pipeline, in thin wrappers: the named functions do the work.

Workers store results in tables of the output folder. Elements are numbers of tables, or a
HeadctError that ends the run: later steps pass the error on, and the last step records the error.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from beam_pipeline.finish import finish_directory
from beam_pipeline.options import Options
from beam_pipeline.planning.inventory import Inspected, inspect_part, list_parts
from beam_pipeline.planning.plan_shards import plan_shards
from beam_pipeline.run_pool import open_pool
from beam_pipeline.shards.unfinished import ShardResult
from beam_pipeline.shards.writer import write_shard
from beam_pipeline.workers import WorkerPool
from headct.errors import HeadctError

_logger = logging.getLogger(__name__)

Task = tuple[str, int | HeadctError]  # keyed to spread tasks over workers
Outcome = tuple[None, int | HeadctError]  # keyed by None: a single group
Gathered = tuple[None, Iterable[int | HeadctError]]


def build(pipeline: beam.Pipeline, options: Options) -> None:
    """Add the steps from DICOM files to a shard directory, for any runner."""
    written = write_shards(pipeline, options)
    written | "Describe shards" >> beam.Map(_finish_directory, options)  # writes manifest.json


def write_shards(pipeline: beam.Pipeline, options: Options) -> beam.PCollection[Gathered]:
    """Add all steps but the last; return one element: the outcomes of all shards."""
    inspect = _RunTasks(partial(inspect_part, options=options), _log_inspected, options)
    write = _RunTasks(partial(write_shard, options=options), _log_written, options)
    return (
        pipeline
        | "Start" >> beam.Impulse()
        | "List files" >> beam.FlatMap(_tasks, _list_files, options)  # parts of the inventory
        | "Spread parts" >> beam.GroupByKey()
        | "Read headers" >> beam.ParDo(inspect)
        | "Gather parts" >> beam.GroupByKey()
        | "Plan shards" >> beam.FlatMap(_tasks, _plan_shards, options)  # numbers of shards
        | "Spread shards" >> beam.GroupByKey()
        | "Convert and write" >> beam.ParDo(write)
        | "Gather shards" >> beam.GroupByKey()
    )


def run_here(options: Options) -> None:
    """Run the pipeline locally, and wait for its end."""
    # FnApiRunner, because Beam's DirectRunner looks for a binary on the network. Jobs of other
    # runners check the types of the same steps; the check is a tenth of a short run's Beam.
    options_of_beam = PipelineOptions([], pipeline_type_check=False)
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=options_of_beam)
    # In notebooks Beam renames steps by cells, with modules that do not load with pandas 3, and
    # leaves temporary files.
    with (
        patch.multiple(beam.pipeline, is_in_ipython=bool, alter_label_if_ipython=lambda *_: None),
        pipeline,
    ):
        build(pipeline, options)


def _tasks(
    element: Any, step: Callable[[Any, Options], Iterable[int]], options: Options
) -> Iterator[Task]:
    """Yield the numbers of the tasks that a step finds; an error stands for a task."""
    try:
        for number in step(element, options):
            yield str(number), number
    except HeadctError as error:
        yield "error", error


def _list_files(_: bytes, options: Options) -> Iterator[int]:
    for number, files in enumerate(list_parts(options)):
        _logger.info("listed %d files", files)
        yield number


def _plan_shards(parts: Gathered, options: Options) -> Iterable[int]:
    done = _count_done(parts)
    with _system_allocator():
        plan = plan_shards(done, options)
    for note in plan.notes:
        _logger.info("%s", note)
    _logger.info("planned %d shards", len(plan.shards))
    return range(len(plan.shards))


def _finish_directory(shards: Gathered, options: Options) -> None:
    try:
        written: int | HeadctError = _count_done(shards)
    except HeadctError as error:
        written = error
    with _system_allocator():
        finish_directory(written, options)


@contextmanager
def _system_allocator() -> Iterator[None]:
    """Let Arrow use the system allocator: its own takes a fifth more memory.

    The programs set `ARROW_DEFAULT_MEMORY_POOL`; a runner's worker and a caller from Python do not.
    """
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def _count_done(gathered: Gathered) -> int:
    """Return the number of completed tasks.

    Raises:
        HeadctError: a task or an earlier step failed; of several errors, the first by message.
    """
    outcomes = list(gathered[1])
    errors = [outcome for outcome in outcomes if isinstance(outcome, HeadctError)]
    if errors:
        raise min(errors, key=str)
    return len(outcomes)


def _log_inspected(part: Inspected) -> None:
    known = f", {part.reused} of them known from before" if part.reused else ""
    _logger.info(
        "inspected %d files%s, rejected %d, excluded %d",
        *(part.files, known, part.rejected, part.excluded),
    )


def _log_written(shard: ShardResult) -> None:
    rejected = len(shard.rejects)
    _logger.info("wrote %s: %d slices, rejected %d", shard.file, shard.examples, rejected)


class _RunTasks(beam.DoFn):
    """Runs tasks in worker processes: a decoder that crashes or hangs costs one slice.

    A runner may give a worker several bundles at once; the bundles share one process limit.
    """

    def __init__(
        self, function: Callable[..., Any], log: Callable[[Any], None], options: Options
    ) -> None:
        super().__init__()
        self._function = function
        self._log = log
        self._options = options
        self._pool: WorkerPool[Any, Any] | None = None
        self._failed = False
        self._done = Metrics.counter("beam_pipeline", function.func.__name__)  # type: ignore[attr-defined]

    def start_bundle(self) -> None:
        """Drop the tasks of a bundle that failed."""
        self.teardown()
        self._failed = False

    def process(self, group: tuple[str, Iterable[Any]]) -> Iterable[Outcome]:
        """Give tasks to the processes; yield the outcomes that are ready."""
        for task in group[1]:
            if isinstance(task, HeadctError):
                yield None, task
            elif not self._failed:
                yield from self._outcomes(self._open().submit(task))

    def finish_bundle(self) -> Iterable[WindowedValue]:
        """Wait for unfinished tasks."""
        if self._pool is not None and not self._failed:
            for outcome in self._outcomes(self._pool.finish()):
                yield GlobalWindows.windowed_value(outcome)
        self.teardown()

    def teardown(self) -> None:
        """End the processes, so that an idle worker has none."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _open(self) -> WorkerPool[Any, Any]:
        if self._pool is None:
            self._pool = open_pool(self._function, self._options)
        return self._pool

    def _outcomes(self, results: Iterator[Any]) -> Iterator[Outcome]:
        try:
            for result in results:
                self._log(result)
                self._done.inc()
                yield None, 1
        except HeadctError as error:
            self._failed = True
            yield None, error
