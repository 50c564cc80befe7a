"""Which record of which shard is damaged: looked for only once something has failed.

Records come from several shards at once, and shuffled, so that whoever fails on one cannot say
where it was. The shards are read again then, in order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import tensorflow as tf

from trainer.errors import BadInput
from trainer.input_pipeline import CORES, Evaluation, lowest_label
from trainer.shards import ImageSpec, Shard, Split
from trainer.tfrecord import read_records

# What a pipeline raises whose records are damaged, or too few.
FAILURES = (
    tf.errors.DataLossError,
    tf.errors.FailedPreconditionError,
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
)
LONGEST_REASON = 200


@contextmanager
def damage_reported(splits: tuple[Split, ...], image: ImageSpec, labels: int) -> Iterator[None]:
    """Says in one line which record of `splits` is damaged, if that is what went wrong.

    Args:
        splits: all that is read.
        image: what the manifest says of each image.
        labels: how many an example has.

    Raises:
        BadInput: a record is damaged, or a shard has more or fewer than the manifest says.
    """
    try:
        yield
    except FAILURES as error:
        found = find_damage(splits, image, labels)
        if found is None and isinstance(error, tf.errors.DataLossError):
            found = f"a shard is damaged ({reason(error)}); `make verify` finds which"
        if found is None:
            raise
        raise BadInput(found) from None


def find_damage(splits: tuple[Split, ...], image: ImageSpec, labels: int) -> str | None:
    """The first record that is damaged, and how; several shards are read at once."""
    tasks = [
        partial(find_in_shard, shard, Evaluation(image, labels, 1, lowest_label(split)).read)
        for split in splits
        for shard in split.shards
    ]
    threads = ThreadPoolExecutor(CORES)
    try:
        return next(filter(None, threads.map(lambda task: task(), tasks)), None)
    finally:
        threads.shutdown(cancel_futures=True)


def find_in_shard(shard: Shard, read: Callable[[list[bytes]], object]) -> str | None:
    """What is wrong with the first record that `read` cannot read; None if all are well."""
    number = 0
    try:
        for record in read_records(shard.path):
            read([record])
            number += 1
    except OSError as error:
        return f"{shard.path.name}: cannot be read ({error.strerror})"
    except (ValueError, tf.errors.OpError) as error:
        return f"{shard.path.name}: record {number}: {reason(error)}"
    if number != shard.examples:
        return f"{shard.path.name}: {number} records where the manifest has {shard.examples}"
    return None


def reason(error: Exception) -> str:
    """What an exception says, in one line, without what TensorFlow puts around it."""
    said = error.message if isinstance(error, tf.errors.OpError) else str(error)
    line = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(said)).strip().split("\n")[0]
    return line[:LONGEST_REASON].strip().encode("ascii", "backslashreplace").decode()
