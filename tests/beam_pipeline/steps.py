"""The pipeline's steps in this process, without Beam."""

from pathlib import Path

from beam_pipeline.options import Options
from beam_pipeline.planning.inventory import inspect_part, list_parts
from beam_pipeline.planning.plan_shards import plan_shards
from beam_pipeline.shards.output import prepare_output, record_start
from beam_pipeline.shards.unfinished import ShardResult
from beam_pipeline.shards.writer import write_shard
from beam_pipeline.workers import Later, Watch
from headct.reasons import Reason


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a directory but those that say when they were written."""
    dated = ("manifest.json", "report.html")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in dated}


class Witness(Watch):
    """Remembers which places were worked on."""

    def __init__(self, excluded: dict[int, Reason] | None = None) -> None:
        super().__init__(excluded)
        self.places: list[int] = []

    def working(self, place: int) -> None:
        self.places.append(place)


def small_options(
    data_set: Path, output: Path, examples_per_shard: int, **others: object
) -> Options:
    """Options of a run on `small_data_set`: two folds of small images."""
    return Options.of(
        input=str(data_set / "slices"),
        labels=str(data_set / "labels.csv"),
        output=str(output),
        image_size=32,
        folds=2,
        examples_per_shard=examples_per_shard,
        max_reject_fraction=0.1,
        **others,
    )


def inspect_all(options: Options) -> int:
    """List the input and read all headers; how many parts the inventory has."""
    parts = len([*list_parts(options)])
    for part in range(parts):
        inspect_part(part, Watch(), options=options)
    return parts


def write_shards(options: Options) -> int:
    """All steps but the last; how many shards were written."""
    prepare_output(options.files.folder, options)
    record_start(options.files.folder, "local")
    plan = plan_shards(inspect_all(options), options)
    for number in range(len(plan.shards)):
        write_whole(number, options)
    return len(plan.shards)


def write_whole(number: int, options: Options, watch: Watch | None = None) -> ShardResult:
    """Write a shard to its end."""
    written = write_shard(number, watch or Watch(), options=options)
    return written.finish() if isinstance(written, Later) else written
