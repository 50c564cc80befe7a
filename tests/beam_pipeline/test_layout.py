import pytest

from beam_pipeline.layout import ShardFile


@pytest.mark.parametrize(
    ("shard", "name"),
    [
        (ShardFile("fold0", 0, 3), "ich-fold0.tfrecord-00000-of-00003"),
        (ShardFile("holdout", 123_456, 200_000), "ich-holdout.tfrecord-123456-of-200000"),
    ],
)
def test_a_shard_is_found_again_in_its_name(shard: ShardFile, name: str) -> None:
    assert shard.name == name
    assert ShardFile.parse(name) == shard
