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
from itertools import islice

import tensorflow as tf

from headct.errors import UsageError
from headct.layout import INDEX
from headct.manifest import ImageSpec
from headct.tfrecord import read_records
from trainer.data.input_pipeline import CORES, Evaluation, lowest_label
from trainer.data.shards import Shard, Split

# What a pipeline raises whose records are damaged, or too few; some of it a device raises, too.
# TensorFlow quotes a record that it cannot parse, which Python takes for text.
_FAILURES = (
    UnicodeDecodeError,
    tf.errors.DataLossError,
    tf.errors.FailedPreconditionError,
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    # A TensorFlow exception that a function of ours has raised.
    tf.errors.UnknownError,
)
_LONGEST_REASON = 200
_OF_A_GRAPH = (
    "Graph execution error:"  # then where in Python's code, and what in the last paragraph
)
# Records that are looked at together, until some of them cannot be read.
AT_ONCE = 16


@contextmanager
def damage_reported(splits: tuple[Split, ...], image: ImageSpec, labels: int) -> Iterator[None]:
    """Says in one line which record of `splits` is damaged, if that is what went wrong.

    Args:
        splits: all that is read.
        image: what the manifest says of each image.
        labels: how many an example has.

    Raises:
        UsageError: a record is damaged, or a shard has more or fewer than the manifest says.
    """
    try:
        yield
    except _FAILURES as error:
        if not is_of_data(error):
            raise
        found = find_damage(splits, image, labels)
        lost = re.search(r"DataLossError: (.*)", f"{type(error).__name__}: {error}")
        if found is None and lost:
            # Of whole shards: where the index says that a record is, there is none.
            found = f"shards or {INDEX} are damaged ({lost[1]}); `make verify` says how"
        if found is None:
            raise
        raise UsageError(found) from None


def is_of_data(error: Exception) -> bool:
    """Whether records can be to blame: TensorFlow says that an error comes from an iterator."""
    certain = (UnicodeDecodeError, tf.errors.DataLossError)
    return isinstance(error, certain) or "Iterator" in str(error)


def find_damage(splits: tuple[Split, ...], image: ImageSpec, labels: int) -> str | None:
    """The first record that is damaged, and how; several shards are read at once."""
    tasks = [
        partial(_find_in_shard, shard, Evaluation(image, labels, AT_ONCE, lowest_label(split)).read)
        for split in splits
        for shard in split.shards
    ]
    threads = ThreadPoolExecutor(CORES)
    try:
        return next(filter(None, threads.map(lambda task: task(), tasks)), None)
    finally:
        threads.shutdown(cancel_futures=True)


def _find_in_shard(shard: Shard, read: Callable[[list[bytes]], object]) -> str | None:
    """What is wrong with the first record that `read` cannot read; None if all are well."""
    found = 0
    try:
        with shard.path.open("rb") as file:
            records = read_records(file)
            while some := list(islice(records, AT_ONCE)):
                read(some)
                found += len(some)
    except OSError as error:
        return f"{shard.path.name}: cannot be read ({error.strerror})"
    except (ValueError, tf.errors.OpError):
        return _find_among(shard, read)
    if found != shard.examples:
        return f"{shard.path.name}: {found} records where the manifest has {shard.examples}"
    return None


def _find_among(shard: Shard, read: Callable[[list[bytes]], object]) -> str | None:
    """As `find_in_shard`, one record after the other."""
    number = 0
    try:
        with shard.path.open("rb") as file:
            for record in read_records(file):
                read([record])
                number += 1
    except (ValueError, tf.errors.OpError) as error:
        return f"{shard.path.name}: record {number}: {reason(error)}"
    return None


def reason(error: Exception) -> str:
    """What an exception says, in one line, without what TensorFlow puts around it."""
    if isinstance(error, UnicodeDecodeError) or "Could not parse example" in str(error):
        # The rest is the record itself, with a patient's ids.
        return "it is no tf.train.Example"
    said = error.message if isinstance(error, tf.errors.OpError) else str(error)
    if str(said).startswith(_OF_A_GRAPH):
        said = str(said).strip().split("\n\n")[-1]
    line = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(said)).strip().split("\n")[0]
    return line[:_LONGEST_REASON].strip().encode("ascii", "backslashreplace").decode()
