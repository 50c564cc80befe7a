from pathlib import Path

import pytest

from headct.errors import UsageError
from trainer.data.shard_source import LocalShards, find_shards
from trainer.display import Display
from trainer.options import ShardAccess


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (
            "ftp://host/x",
            "ftp://host/x: unknown kind of store ftp://; want a path or one of s3://",
        ),
        ("gs://", "want the name of a bucket or server behind gs://"),
        ("s3://bucket/a/../b", "cannot be read from a store: it has the part '.' or '..'"),
        ("s3://bucket/a//b", "cannot be read from a store: it has '//'"),
        ("s3://bucket/a\tb", "cannot be read from a store: it has a control character"),
        ("gs:/bucket/ich", "gs:/bucket/ich: no such folder; a URL is gs://bucket/ich"),
        ("lost", "lost: no such shard directory"),
        ("x" * 5000, "no such shard directory"),
    ],
)
def test_what_names_no_shards_is_one_line(location: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        find_shards(location, ShardAccess(), Display()).open()
    assert message in str(raised.value)


def test_a_path_is_a_folder_of_this_machine(shards: Path) -> None:
    for location in (shards, str(shards), f"file://{shards}"):
        found = find_shards(location, ShardAccess(), Display())
        assert found == LocalShards(shards)
        assert found.open().path == shards
