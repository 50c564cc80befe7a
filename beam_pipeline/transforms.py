"""The Beam steps: each keys, counts and wires; the work is in the function that it names."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import apache_beam as beam
import pandas as pd
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from beam_pipeline.assignment import read_assignment
from beam_pipeline.errors import PipelineError
from beam_pipeline.finish import finish_directory
from beam_pipeline.inventory import Batch, inspect_batch, inventory_frame, list_batches
from beam_pipeline.labels import LabelFile
from beam_pipeline.options import LeakCheck, Options
from beam_pipeline.plan import Plan, ShardPlan, plan_shards
from beam_pipeline.progress import report
from beam_pipeline.shards import ShardResult, write_shard
from beam_pipeline.storage import InputFiles
from beam_pipeline.twins import find_twins
from beam_pipeline.workers import WorkerPool

_NAMESPACE = "beam_pipeline"


class InspectFiles(beam.PTransform):
    """Lists the input and reads every header."""

    def __init__(self, options: Options, *, local: bool) -> None:
        super().__init__()
        self._options = options
        self._local = local

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[pd.DataFrame]:
        """Frames with a row a file."""
        files = InputFiles.parse(self._options.input)
        inspect = partial(inspect_batch, files=files, options=self._options)
        batches = (
            begin
            | "Start listing" >> beam.Create([files])
            | "List files" >> beam.FlatMap(_list_files)  # Batch, or what made listing impossible
        )
        return (
            batches
            | "Spread batches" >> _Spread(local=self._local)
            | "Read headers"
            >> beam.ParDo(_MapTasks(inspect, _report_inspected, self._options, self._local))
        )


class PlanShards(beam.PTransform):
    """Decides, from all rows at once, which slice goes to which shard."""

    PLAN = "plan"

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._options = options

    def expand(self, inventory: beam.PCollection[pd.DataFrame]) -> Any:
        """ShardPlans, and under `PLAN` the Plan as a whole or the PipelineError instead of it."""
        return (
            inventory.pipeline
            | "Start planning" >> beam.Create([self._options])
            | "Plan shards"
            >> beam.ParDo(_PlanShards(), beam.pvalue.AsIter(inventory)).with_outputs(
                PlanShards.PLAN, main="shards"
            )
        )


class WriteShards(beam.PTransform):
    """Reads, converts and writes the slices of every shard."""

    def __init__(self, options: Options, *, local: bool) -> None:
        super().__init__()
        self._options = options
        self._local = local

    def expand(
        self, shards: beam.PCollection[ShardPlan]
    ) -> beam.PCollection[ShardResult | PipelineError]:
        """The result of every shard, or why one could not be written."""
        files = InputFiles.parse(self._options.input)
        write = partial(write_shard, files=files, options=self._options)
        return (
            shards
            | "Spread shards" >> _Spread(local=self._local)
            | "Convert and write"
            >> beam.ParDo(_MapTasks(write, _report_written, self._options, self._local))
        )


class FinishDirectory(beam.PTransform):
    """Writes what describes the shards, the manifest last; or why there is none."""

    def __init__(
        self, options: Options, results: beam.PCollection[ShardResult | PipelineError]
    ) -> None:
        super().__init__()
        self._options = options
        self._results = results

    def expand(self, plan: beam.PCollection[Plan | PipelineError]) -> beam.PCollection[None]:
        """Nothing: the directory is the result."""
        return plan | "Describe shards" >> beam.Map(
            finish_directory, beam.pvalue.AsList(self._results), self._options
        )


class _Spread(beam.PTransform):
    """Spreads tasks over a runner's workers.

    On one machine the next step spreads them over processes itself, and Beam's local runner would
    keep every task's bytes to the end.
    """

    def __init__(self, *, local: bool) -> None:
        super().__init__()
        self._local = local

    def expand(self, tasks: beam.PCollection[Any]) -> beam.PCollection[Any]:
        return tasks if self._local else tasks | beam.Reshuffle()


def _list_files(files: InputFiles) -> Iterator[Batch | PipelineError]:
    for batch in list_batches(files):
        if isinstance(batch, Batch):
            report(f"listed {len(batch.sources)} files", files_listed=len(batch.sources))
        yield batch


def _report_inspected(inventory: pd.DataFrame) -> None:
    rejected = int((inventory["reason"] != "").sum())
    report(
        f"inspected {len(inventory)} files, rejected {rejected}",
        files_inspected=len(inventory),
        rejected_by_header=rejected,
    )


def _report_planned(plan: Plan) -> None:
    report(
        f"planned {plan.shard_count} shards",
        shards_planned=plan.shard_count,
        slices_planned=sum(len(shard.slices) for shard in plan.shards),
    )


def _report_written(result: ShardResult) -> None:
    written, rejected = result.examples, len(result.rejects)
    report(
        f"wrote {result.file}: {written} slices, rejected {rejected}",
        shards_written=1,
        slices_written=written,
        rejected_while_writing=rejected,
    )


class _MapTasks(beam.DoFn):
    """Maps tasks: on one machine in worker processes, elsewhere where the runner puts them.

    A PipelineError that a function raises is its result; one that comes instead of a task goes on.
    """

    def __init__(
        self,
        function: Callable[[Any, Callable[[int], None]], Any],
        report_result: Callable[[Any], None],
        options: Options,
        local: bool,
    ) -> None:
        super().__init__()
        self._function = function
        self._report_result = report_result
        self._workers = options.workers if local else 0
        self._tasks: list[Any] = []
        self._done = Metrics.counter(_NAMESPACE, function.func.__name__)  # type: ignore[attr-defined]

    def start_bundle(self) -> None:
        """Forget the tasks of a bundle that failed."""
        self._tasks = []

    def process(self, task: Any) -> Iterable[Any]:
        """Do the task, or keep it until all are known that the worker processes can share."""
        if isinstance(task, PipelineError):
            yield task
            return
        if self._workers:
            self._tasks.append(task)
            return
        try:
            yield self._report(self._function(task, lambda place: None))
        except PipelineError as error:
            yield error

    def finish_bundle(self) -> Iterable[WindowedValue]:
        """Do the tasks that were kept."""
        pool: WorkerPool[Any, Any] = WorkerPool(self._function, self._workers)
        window = GlobalWindows.windowed_value
        tasks, self._tasks = deque(self._tasks), []
        try:
            for result in pool.map(tasks):
                yield window(self._report(result))
        except PipelineError as error:
            yield window(error)

    def _report(self, result: Any) -> Any:
        self._report_result(result)
        self._done.inc()
        return result


class _PlanShards(beam.DoFn):
    """Plans once, from a side input, so that no step but this one sees all rows."""

    def process(
        self, options: Options, inventory: Iterable[pd.DataFrame | PipelineError]
    ) -> Iterable[Any]:
        """The shards to write; apart from them the plan, or why there is none."""
        try:
            plan = _plan(options, inventory)
        except PipelineError as error:
            yield beam.pvalue.TaggedOutput(PlanShards.PLAN, error)
        else:
            yield beam.pvalue.TaggedOutput(PlanShards.PLAN, plan.without_shards())
            # Where too many are rejected the end of the run says so, and no shard is needed.
            if len(plan.rejects) <= options.max_reject_fraction * plan.files_seen:
                _report_planned(plan)
                yield from plan.shards


def _plan(options: Options, inventory: Iterable[pd.DataFrame | PipelineError]) -> Plan:
    frames = [inventory_frame([])]
    for rows in inventory:
        if isinstance(rows, PipelineError):
            raise rows
        frames.append(rows)
    whole = pd.concat(frames, ignore_index=True)
    frames.clear()  # planning makes copies enough
    if options.leak_check is not LeakCheck.OFF:
        whole["twin"] = find_twins(whole, InputFiles.parse(options.input))
    labels = None
    if options.labels:
        labels = LabelFile(options.labels, options.id_column, options.label_columns).read()
    earlier = read_assignment(options.folds_from) if options.folds_from else None
    return plan_shards(whole, labels, options, earlier)
