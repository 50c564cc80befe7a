"""The names of an output folder's files: of a shard directory, and of one that is not finished."""

from dataclasses import dataclass

DATASET = "ich"
UNLABELED_SPLIT = "test"


@dataclass(frozen=True)
class ShardFile:
    """A shard's place in its split.

    Attributes:
        split: its name.
        number: of the shard, from 0.
        of: how many shards the split has.
    """

    split: str
    number: int
    of: int

    @property
    def name(self) -> str:
        """The shard's file name, as TensorFlow Datasets expects it."""
        return f"{DATASET}-{self.split}.tfrecord-{self.number:05d}-of-{self.of:05d}"

    @classmethod
    def parse(cls, name: str) -> "ShardFile":
        """The shard with a file name that `name` made."""
        split, _, numbers = name.removeprefix(f"{DATASET}-").partition(".tfrecord-")
        number, _, of = numbers.partition("-of-")
        return cls(split, int(number), int(of))


MANIFEST = "manifest.json"  # written last: a directory that has it is complete
CARD = "report.html"  # tells when and how fast: no part of what has to be the same again

# Holds what steps leave to others until the directory is finished.
UNFINISHED = ".unfinished"
PLAN = f"{UNFINISHED}/plan.json"
STARTS = f"{UNFINISHED}/starts.json"  # of runs
JOB = f"{UNFINISHED}/job.json"  # that writes the folder, on a runner that outlives its launcher

# Tables in it; see `unfinished`.
REJECTS_TABLE = "rejects"
# Shards in one table of the plan. A task reads all of it for the sake of one: 1 % of what the
# shard's files have, and an eighth of the requests that planning needs.
SHARDS_A_PART = 8


def listing_table(part: int) -> str:
    """A part of the input's listing."""
    return f"listing/{part:05d}"


def inventory_table(part: int) -> str:
    """The same part of the inventory."""
    return f"inventory/{part:05d}"


def plan_table(part: int) -> str:
    """The slices of some shard files, a record batch each."""
    return f"plan/{part:05d}"


def written_table(shard: str) -> str:
    """The rows of a shard file's index, and what else is to be said of it."""
    return f"written/{shard}"
