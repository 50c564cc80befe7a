from pathlib import Path

import pytest

from headct.errors import UsageError
from trainer.data.shard_source import LocalShards, find_shards
from trainer.options import ShardAccess
from trainer.progress import Display


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("ftp://host/x", "--shards ftp://host/x: no known store; must be a path or start with s3"),
        ("gs://", "--shards gs://: must name a bucket"),
        ("s3://bucket/a/../b", "must name a bucket and a folder in it"),
        ("s3://bucket/a//b", "must name a bucket and a folder in it"),
        ("s3://bucket/a\tb", "must name a bucket and a folder in it"),
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
