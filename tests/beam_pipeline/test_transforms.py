"""Steps of the graph, without a runner."""

import multiprocessing
import threading
from functools import partial

from apache_beam.internal import pickler

from beam_pipeline.options import Options
from beam_pipeline.pipeline import _RunTasks
from beam_pipeline.workers import Watch


def square(task: int, watch: Watch, options: Options) -> int:
    return task**2


def nothing(_: int) -> None:
    """Reports nothing."""


def test_bundles_of_one_worker_share_its_processes() -> None:
    options = Options.of(input="in", output="out", workers=1)
    step = pickler.dumps(_RunTasks(partial(square, options=options), nothing, options))
    first, second = (pickler.loads(step) for _ in range(2))
    outcomes = []

    def run_bundle() -> None:
        second.start_bundle()
        outcomes.extend(second.process(("3", [3])))
        outcomes.extend(second.finish_bundle())

    first.start_bundle()
    list(first.process(("2", [2])))
    bundle = threading.Thread(target=run_bundle)
    bundle.start()
    list(first.process(("4", [4])))
    assert len(multiprocessing.active_children()) == 1
    assert not outcomes
    list(first.finish_bundle())
    bundle.join(60)
    assert len(outcomes) == 1
    assert not multiprocessing.active_children()
