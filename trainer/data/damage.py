"""Location of damaged records, searched for only after a failure.

Records come shuffled from several shards, so the failing code does not know their location.
After a failure, the shards are read again, in order.
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

# Exceptions of a pipeline with damaged or missing records; a device raises some of them, too.
# UnicodeDecodeError: TensorFlow's message quotes the unparsable record.
_FAILURES = (
    UnicodeDecodeError,
    tf.errors.DataLossError,
    tf.errors.FailedPreconditionError,
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    # raised for exceptions of our own functions
    tf.errors.UnknownError,
)
_LONGEST_REASON = 200
_OF_A_GRAPH = "Graph execution error:"  # a stack trace follows; the cause is in the last paragraph
# Records read together, until a read fails.
AT_ONCE = 16


@contextmanager
def damage_reported(splits: tuple[Split, ...], image: ImageSpec, labels: int) -> Iterator[None]:
    """Report the damaged record of `splits` in one line if damage caused the failure.

    Args:
        splits: the data that is read.
        image: format of the images.
        labels: number of labels.

    Raises:
        UsageError: a record is damaged, or a shard's record count is not the manifest's.
    """
    try:
        yield
    except _FAILURES as error:
        if not is_of_data(error):
            raise
        found = find_damage(splits, image, labels)
        lost = re.search(r"DataLossError: (.*)", f"{type(error).__name__}: {error}")
        if found is None and lost:
            # all records are readable: an offset in the index is wrong
            found = f"shards or {INDEX} are damaged ({lost[1]}); `make verify` says how"
        if found is None:
            raise
        raise UsageError(found) from None


def is_of_data(error: Exception) -> bool:
    """Return whether data can be the cause: TensorFlow's message names an iterator."""
    certain = (UnicodeDecodeError, tf.errors.DataLossError)
    return isinstance(error, certain) or "Iterator" in str(error)


def find_damage(splits: tuple[Split, ...], image: ImageSpec, labels: int) -> str | None:
    """Describe the first damaged record; read several shards in parallel."""
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
    """Describe the first record that `read` cannot read; None if there is no such record."""
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
    """Do the same as `_find_in_shard`, one record at a time."""
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
    """Return the message of an exception in one line, without TensorFlow's additions."""
    if isinstance(error, UnicodeDecodeError) or "Could not parse example" in str(error):
        # TensorFlow's message has the record, with a patient's ids
        return "it is no tf.train.Example"
    said = error.message if isinstance(error, tf.errors.OpError) else str(error)
    if str(said).startswith(_OF_A_GRAPH):
        said = str(said).strip().split("\n\n")[-1]
    line = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(said)).strip().split("\n")[0]
    return line[:_LONGEST_REASON].strip().encode("ascii", "backslashreplace").decode()
