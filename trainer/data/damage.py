"""Location of damaged records, searched for only after a failure.

Records come shuffled from several shards, so the failing code does not know their location.
After a failure, the shards are read again, in order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf

from headct.errors import UsageError
from headct.manifest import ShardEntry
from headct.tfrecord import read_records
from trainer.data.input_pipeline import CORES, ExampleReader, lowest_label
from trainer.data.shards import ShardDirectory, Split

_LONGEST_REASON = 200
_OF_A_GRAPH = "Graph execution error:"  # a stack trace follows; the cause is in the last paragraph


@contextmanager
def damage_reported(shards: ShardDirectory, splits: tuple[Split, ...]) -> Iterator[None]:
    """Report the damaged record of `splits` in one line if damage caused the failure.

    Raises:
        UsageError: a record is damaged, or a shard's record count is not the manifest's.
    """
    try:
        yield
    except (UnicodeDecodeError, tf.errors.OpError) as error:
        if not is_of_data(error):
            raise
        # Random access knows the record.
        known = re.search(r"UsageError: (.*)", str(error))
        found = known[1] if known else find_damage(shards, splits)
        if found is None:
            raise
        raise UsageError(found) from None


def is_of_data(error: Exception) -> bool:
    """Return whether data can be the cause: TensorFlow's message names an iterator.

    Or it quotes an unparsable record, which is no text.
    """
    certain = (UnicodeDecodeError, tf.errors.DataLossError)
    return isinstance(error, certain) or "Iterator" in str(error)


def find_damage(shards: ShardDirectory, splits: tuple[Split, ...]) -> str | None:
    """Describe the first damaged record; read several shards in parallel."""

    def find(task: tuple[ShardEntry, ExampleReader]) -> str | None:
        return _find_in_shard(shards.path, *task)

    tasks = [
        (shard, ExampleReader(shards, 1, lowest_label(split)))
        for split in splits
        for shard in split.shards
    ]
    threads = ThreadPoolExecutor(CORES)
    try:
        return next(filter(None, threads.map(find, tasks)), None)
    finally:
        threads.shutdown(cancel_futures=True)


def _find_in_shard(folder: Path, shard: ShardEntry, read: ExampleReader) -> str | None:
    """Describe the first record that `read` cannot read; None if there is no such record."""
    number = 0
    try:
        with (folder / shard.file).open("rb") as file:
            for record in read_records(file):
                read([record])
                number += 1
    except OSError as error:
        return f"{shard.file}: cannot be read ({error.strerror})"
    except (ValueError, tf.errors.OpError) as error:
        return f"{shard.file}: record {number}: {reason(error)}"
    if number != shard.examples:
        return f"{shard.file}: {number} records where the manifest has {shard.examples}"
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
