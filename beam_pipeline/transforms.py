"""The Beam steps: each keys, counts and wires; the work is in the function that it names.

What is known of files lies in tables of the output folder, which workers write and read. Elements
are numbers and names of these tables, or a HeadctError that ends the run: the steps behind it
pass it on, and the last leaves word of it.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from beam_pipeline.options import Options
from beam_pipeline.planning.inventory import Inspected, inspect_part, list_parts
from beam_pipeline.planning.plan_shards import plan_shards
from beam_pipeline.progress import report, say
from beam_pipeline.shards.finish import finish_directory
from beam_pipeline.shards.writer import Written, write_shard
from beam_pipeline.workers import WorkerPool, shared_slots
from headct.errors import HeadctError

_NAMESPACE = "beam_pipeline"

_ERROR = "error"  # the key of what ends the run, instead of a task's

Task = tuple[str, int | HeadctError]  # with a key that spreads them over workers
Outcome = tuple[None, int | HeadctError]  # with the only key there is
Gathered = tuple[None, Iterable[int | HeadctError]]


class InspectFiles(beam.PTransform):
    """Lists the input and reads every header."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._options = options

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[Gathered]:
        """One element: what became of each part of the inventory."""
        inspect = partial(inspect_part, options=self._options)
        return (
            begin
            | "Start" >> beam.Create([None])
            | "List files" >> beam.FlatMap(_list_files, self._options)  # a part's number
            | "Spread parts" >> beam.GroupByKey()
            | "Read headers" >> beam.ParDo(_RunTasks(inspect, _report_inspected, self._options))
            | "Gather parts" >> beam.GroupByKey()
        )


class PlanShards(beam.PTransform):
    """Decides, for all files at once, which slice goes to which shard."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._options = options

    def expand(self, parts: beam.PCollection[Gathered]) -> beam.PCollection[Task]:
        """Numbers of shards in the plan."""
        return parts | "Plan shards" >> beam.FlatMap(_plan_shards, self._options)


class WriteShards(beam.PTransform):
    """Reads, converts and writes the slices of every shard."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._options = options

    def expand(self, shards: beam.PCollection[Task]) -> beam.PCollection[Gathered]:
        """One element: what became of each shard."""
        write = partial(write_shard, options=self._options)
        return (
            shards
            | "Spread shards" >> beam.GroupByKey()
            | "Convert and write" >> beam.ParDo(_RunTasks(write, _report_written, self._options))
            | "Gather shards" >> beam.GroupByKey()
        )


class FinishDirectory(beam.PTransform):
    """Writes what describes the shards, the manifest last; or why there is none."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._options = options

    def expand(self, shards: beam.PCollection[Gathered]) -> beam.PCollection[None]:
        """Nothing: the directory is the result."""
        return shards | "Describe shards" >> beam.Map(_finish_directory, self._options)


def _list_files(_: None, options: Options) -> Iterator[Task]:
    try:
        for number, files in enumerate(list_parts(options.files)):
            report(f"listed {files} files", files_listed=files)
            yield str(number), number
    except HeadctError as error:
        yield _ERROR, error


def _plan_shards(parts: Gathered, options: Options) -> Iterator[Task]:
    try:
        plan = plan_shards(_count_done(parts), options)
    except HeadctError as error:
        yield _ERROR, error
        return
    for note in plan.notes:
        say(note)
    report(
        f"planned {len(plan.shards)} shards",
        shards_planned=len(plan.shards),
        slices_planned=plan.slices,
    )
    for number in range(len(plan.shards)):
        yield str(number), number


def _finish_directory(shards: Gathered, options: Options) -> None:
    try:
        written: int | HeadctError = _count_done(shards)
    except HeadctError as error:
        written = error
    finish_directory(written, options)


def _count_done(gathered: Gathered) -> int:
    """How many tasks were done.

    Raises:
        HeadctError: one was not, or what came before; the first of several by its message.
    """
    outcomes = list(gathered[1])
    errors = [outcome for outcome in outcomes if isinstance(outcome, HeadctError)]
    if errors:
        raise min(errors, key=str)
    return len(outcomes)


def _report_inspected(part: Inspected) -> None:
    known = f", {part.reused} of them known from before" if part.reused else ""
    report(
        f"inspected {part.files} files{known}, rejected {part.rejected}",
        files_inspected=part.files,
        rejected_by_header=part.rejected,
        headers_reused=part.reused,
    )


def _report_written(shard: Written) -> None:
    report(
        f"wrote {shard.file}: {shard.examples} slices, rejected {shard.rejected}",
        shards_written=1,
        slices_written=shard.examples,
        rejected_while_writing=shard.rejected,
    )


class _RunTasks(beam.DoFn):
    """Runs tasks in processes beside the worker's own.

    A decoder that crashes or hangs costs its slice, whatever the runner. A runner may give a worker
    several bundles at once: together they have no more processes than one.
    """

    def __init__(
        self, function: Callable[..., Any], report_result: Callable[[Any], None], options: Options
    ) -> None:
        super().__init__()
        self._function = function
        self._report_result = report_result
        self._options = options
        self._pool: WorkerPool[Any, Any] | None = None
        self._failed = False
        self._done = Metrics.counter(_NAMESPACE, function.func.__name__)  # type: ignore[attr-defined]

    def start_bundle(self) -> None:
        """Forget the tasks of a bundle that failed."""
        self.teardown()
        self._failed = False

    def process(self, group: tuple[str, Iterable[Any]]) -> Iterable[Outcome]:
        """Give tasks to the processes; yields the outcomes of those that are done by then."""
        for task in group[1]:
            if isinstance(task, HeadctError):
                yield None, task
            elif not self._failed:
                yield from self._outcomes(self._open().submit(task))

    def finish_bundle(self) -> Iterable[WindowedValue]:
        """Wait for the tasks that are not done."""
        if self._pool is not None and not self._failed:
            for outcome in self._outcomes(self._pool.finish()):
                yield GlobalWindows.windowed_value(outcome)
        self.teardown()

    def teardown(self) -> None:
        """End the processes: a worker keeps none that has nothing to do."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _open(self) -> WorkerPool[Any, Any]:
        if self._pool is None:
            self._pool = WorkerPool(
                self._function,
                self._options.run.workers,
                patience=self._options.run.decode_timeout,
                storage_patience=2 * self._options.files.storage_patience + 60,
                storage=self._options.files.input,
                slots=shared_slots(self._options.run.workers),
            )
        return self._pool

    def _outcomes(self, results: Iterator[Any]) -> Iterator[Outcome]:
        try:
            for result in results:
                self._report_result(result)
                self._done.inc()
                yield None, 1
        except HeadctError as error:
            self._failed = True
            yield None, error
