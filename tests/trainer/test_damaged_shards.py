"""Shards broken at random: they are read, or one line says which record is damaged."""

import json
import random
import shutil
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from headct.errors import UsageError
from tests.trainer.png_files import plain_png
from tests.trainer.record_files import frame, split_records
from trainer.data.damage import damage_reported
from trainer.data.input_pipeline import (
    TEXTS,
    evaluation_batches,
    training_batches,
)
from trainer.data.sampling import Order
from trainer.data.shards import ShardDirectory, check_files, read_shard_directory

MUTATIONS, ALL_MUTATIONS = 60, 2000
VICTIM = "ich-fold1.tfrecord-00000-of-00002"
LENGTHS = [0, 1, 100, 1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
SIZES = [0, 1, 15, 17, 255, 60000, (1 << 31) - 1, (1 << 32) - 1]
Mutation = Callable[[list[bytes], random.Random], bytes]


def framed(records: list[bytes]) -> bytes:
    return b"".join(map(frame, records))


def in_one_record(mutate: Callable[[bytearray, random.Random], bytes]) -> Mutation:
    """With the right checksum, so that the damage comes further than TFRecord."""

    def mutation(records: list[bytes], source: random.Random) -> bytes:
        which = source.randrange(len(records))
        mutated = mutate(bytearray(records[which]), source)
        return framed([*records[:which], mutated, *records[which + 1 :]])

    return mutation


def in_the_file(mutate: Callable[[bytearray, random.Random], bytes]) -> Mutation:
    return lambda records, source: mutate(bytearray(framed(records)), source)


def flip_bits(data: bytearray, source: random.Random) -> bytes:
    """Few or many; anywhere, in the PNG's header, around it, or among the other features."""
    image = data.find(b"\x89PNG")
    areas = [(0, len(data)), (0, min(60, len(data)))]
    if image >= 0:
        areas += [(max(image - 30, 0), image + 45), (image + 41, min(image + 400, len(data)))]
    first, last = source.choice(areas)
    for _ in range(source.choice([1, 3, 30])):
        data[source.randrange(first, last)] ^= 1 << source.randrange(8)
    return bytes(data)


def cut(data: bytearray, source: random.Random) -> bytes:
    return bytes(data[: source.randrange(len(data))])


def clear(data: bytearray, source: random.Random) -> bytes:
    place = source.randrange(len(data))
    length = min(source.choice([1, 4, 40, 400]), len(data) - place)
    data[place : place + length] = bytes(length)
    return bytes(data)


def splice(data: bytearray, source: random.Random) -> bytes:
    here, there = (source.randrange(len(data)) for _ in range(2))
    length = source.randrange(1, 200)
    data[here : here + length] = data[there : there + length]
    return bytes(data)


def forge_size(data: bytearray, source: random.Random) -> bytes:
    """Of a PNG, with the right CRC."""
    header = data.find(b"IHDR")
    size = struct.pack(">II", *(source.choice([*SIZES, 16, 16, 16]) for _ in range(2)))
    data[header + 4 : header + 12] = size
    if source.random() < 0.3:
        data[header + 12 : header + 17] = bytes(source.choice([0, 1, 2, 3, 8, 16]) for _ in "12345")
    crc = zlib.crc32(data[header : header + 17])
    data[header + 17 : header + 21] = struct.pack(">I", crc)
    return bytes(data)


def deflate_others(data: bytearray, source: random.Random) -> bytes:
    """Another PNG of the right size: filtered, too short, too long, without an end."""
    rows = bytearray(source.randbytes(16 * 49))
    rows[::49] = bytes(source.choice([0, 0, 0, 1, 4, 5, 255]) for _ in range(16))
    rows = rows[: source.choice([len(rows), len(rows) - 1, 49])] + bytes(
        source.choice([0, 0, 1, 1 << 22])
    )
    return replace_image(data, plain_png(np.zeros((16, 16, 3), np.uint8), bytes(rows)))


def replace_image(data: bytearray, png: bytes) -> bytes:

    example = tf.train.Example.FromString(bytes(data))
    example.features.feature["image"].bytes_list.value[0] = png
    return bytes(example.SerializeToString())


def change_feature(data: bytearray, source: random.Random) -> bytes:

    example = tf.train.Example.FromString(bytes(data))
    features = example.features.feature
    name = source.choice(sorted(features))
    match source.randrange(5):
        case 0:
            del features[name]
        case 1:
            features[name].Clear()
        case 2:
            values = [source.choice([-(1 << 63), -1, 0, 1, 2, 7]) for _ in range(3)]
            features[name].int64_list.value[:] = values[: source.choice([1, 2, 3, 3])]
        case 3:
            features[name].float_list.value[:] = [np.nan, np.inf][: source.choice([1, 2])]
        case 4:
            features[name].bytes_list.value[:] = [source.randbytes(source.choice([0, 1, 40]))]
    return bytes(example.SerializeToString())


def forge_length(records: list[bytes], source: random.Random) -> bytes:
    which, length = source.randrange(len(records)), source.choice(LENGTHS)
    near = len(records[which]) + source.choice([-1, 1])
    forged = source.choice([length, near])
    return b"".join(
        frame(record, forged if i == which else None) for i, record in enumerate(records)
    )


def other_number(records: list[bytes], source: random.Random) -> bytes:
    return framed(source.choices([*records, b"", source.randbytes(20)], k=source.randrange(9)))


MUTATIONS_OF = [
    in_the_file(flip_bits),
    in_the_file(cut),
    in_the_file(clear),
    in_the_file(splice),
    in_one_record(flip_bits),
    in_one_record(flip_bits),
    in_one_record(cut),
    in_one_record(clear),
    in_one_record(splice),
    in_one_record(forge_size),
    in_one_record(deflate_others),
    in_one_record(change_feature),
    forge_length,
    other_number,
]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    rows_maker: Callable[..., Any],
    shards_writer: Callable[..., Path],
) -> Path:
    """Small shards of two folds, one of which is broken again and again."""
    splits = {f"fold{i}": rows_maker(8, 16, seed=i) for i in range(2)}
    return shards_writer(tmp_path_factory.mktemp("mutations") / "ich", splits)


def read(data: ShardDirectory, streams: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """What comes of opening a directory and of each way to read it; None if nothing is wrong."""
    try:
        check_files(data, data.splits)
    except UsageError as error:
        yield "opening", str(error)
        return
    for name, stream in streams.items():
        try:
            with damage_reported(data, (data.split("fold1"),)):
                for batch in stream.as_numpy_iterator():
                    if name == "evaluation":
                        for text in TEXTS:
                            np.char.decode(batch[text].astype(bytes))
        except UsageError as error:
            yield name, str(error)
        else:
            yield name, None


def test_broken_shards_are_read_or_named(folder: Path, tmp_path: Path, full: bool) -> None:
    mutations = ALL_MUTATIONS if full else MUTATIONS
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    (entry,) = (e for e in manifest["splits"]["fold1"]["shards"] if e["file"] == VICTIM)
    data = read_shard_directory(copy)
    streams = {
        "training": training_batches(data, [data.split("fold1")], 2, Order(0, 0), 8),
        "evaluation": evaluation_batches(data, data.split("fold1"), 4),
    }
    whole = split_records((folder / VICTIM).read_bytes())
    source, outcomes = random.Random(0), Counter[tuple[str, bool]]()
    for _ in range(mutations):
        content = source.choice(MUTATIONS_OF)(whole, source)
        (copy / VICTIM).write_bytes(content)
        # Most often of the size that the manifest has, else it is not read at all.
        entry["bytes"] = len(content) if source.random() < 0.95 else entry["bytes"]
        (copy / "manifest.json").write_text(json.dumps(manifest))
        for name, message in read(read_shard_directory(copy), streams):
            outcomes[name, message is None] += 1
            if message is not None:
                assert VICTIM in message
                assert message.isprintable()
                assert len(message) < 400
    for name in streams:
        assert outcomes[name, False] > mutations / 4
        assert outcomes[name, True] > mutations / 50
