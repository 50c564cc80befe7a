import pytest

from headct.layout import ShardFile


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


@pytest.mark.parametrize(
    "name",
    [
        "",
        "ich-",
        "ich-fold0.tfrecord-00000-of-00001.bak",
        "ich-fold0.tfrecord-00001-of-00001",
        "ich-fold0.tfrecord-0-of-1",
        "ich-fold0.tfrecord-000000-of-00001",
        "ich-fold00.tfrecord-00000-of-00001",
        "ich-fold100.tfrecord-00000-of-00001",
        "ich-train.tfrecord-00000-of-00001",
        "ICH-fold0.tfrecord-00000-of-00001",
        "ich-fold0.tfrecord-00000-of-00001\n",
        "ich-fold\u0660.tfrecord-00000-of-00001",
    ],
)
def test_other_names_are_not_of_shards(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a shard"):
        ShardFile.parse(name)
