"""`headct convert`: what hubs' own libraries load is what the shards hold."""

import hashlib
import io
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import webdataset

import headct
from headct import convert
from headct.layout import CONVERSION, MANIFEST, README
from headct.reader import Shards
from tests.headct.scripted_store import ScriptedStore, serve

FORMATS = ("parquet", "webdataset")


def run(source: Path | str, output: Path | str, *more: str, to: str = "parquet") -> int:
    return convert.main([str(source), "--to", to, "--output", str(output), *more])


def files(folder: Path) -> dict[str, bytes]:
    """All files by their paths, also hidden ones."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def converted(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """KIND-FORMAT, with the ids of the shards."""
    folder = tmp_path_factory.mktemp("converted")
    for kind, to in itertools.product(("windows", "hu", "unlabeled"), FORMATS):
        output = folder / f"{kind}-{to}"
        assert run(sample_shards / kind, output, "--yes_identifiers", to=to) == 0
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The library of the Hugging Face Hub, without a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        import datasets

        datasets.disable_progress_bars()
        yield datasets


def check_row(found: dict[str, Any], shards: Shards, row: pd.Series) -> None:
    """Compare ids, labels and geometry with the index."""
    assert {name: found[name] for name in row.index if name in found} == row[
        [name for name in row.index if name in found]
    ].to_dict()
    assert "source" not in found
    assert "shard" not in found
    assert {"image_id", "patient_id", "position_z", "repair"} <= found.keys()


@pytest.mark.filterwarnings("ignore")  # of a library that is only a witness here
@pytest.mark.parametrize("kind", ["windows", "hu", "unlabeled"])
def test_the_library_of_the_hub_loads_images_and_labels(
    sample_shards: Path, converted: Path, hub: Any, kind: str
) -> None:
    shards = headct.open(sample_shards / kind)
    loaded = hub.load_dataset(str(converted / f"{kind}-parquet"))
    assert {name: len(split) for name, split in loaded.items()} == shards.splits
    for name, split in loaded.items():
        rows = shards.split(name).rows
        assert split["image_id"] == rows["image_id"].tolist(), "in the order of the records"
        for found, (_, row) in zip(split, rows.iterrows(), strict=True):
            image = np.asarray(found["image"])
            assert image.dtype == shards.dtype
            expected = shards[found["image_id"]]["image"]
            np.testing.assert_array_equal(np.atleast_3d(image), expected)
            check_row(found, shards, row)
            assert [found[f"label_{label}"] for label in shards.labels] == [
                row[f"label_{label}"] for label in shards.labels
            ]


@pytest.mark.filterwarnings("ignore")  # of a library that is only a witness here
def test_a_split_without_slices_does_not_keep_the_others_from_being_loaded(
    sample_shards: Path, tmp_path: Path, hub: Any
) -> None:
    source = copied(sample_shards / "windows", tmp_path / "in")
    manifest = json.loads((source / MANIFEST).read_text())
    name = "ich-empty.tfrecord-00000-of-00001"
    (source / name).write_bytes(b"")
    shard = {"file": name, "examples": 0, "bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    manifest["splits"] = {
        "empty": {"examples": 0, "patients": 0, "shards": [shard]},
        **manifest["splits"],
    }
    (source / MANIFEST).write_text(json.dumps(manifest))
    assert run(source, tmp_path / "out", "--yes_identifiers") == 0
    loaded = hub.load_dataset(str(tmp_path / "out"))
    assert {name: len(split) for name, split in loaded.items()} == {"fold0": 4, "fold1": 8}
    assert 'split="fold0"' in (tmp_path / "out" / README).read_text()


@pytest.mark.filterwarnings("ignore")  # of a library that is only a witness here
@pytest.mark.parametrize("kind", ["windows", "hu", "unlabeled"])
def test_webdataset_reads_images_and_labels(
    sample_shards: Path, converted: Path, kind: str
) -> None:
    shards, found = headct.open(sample_shards / kind), 0
    for path in sorted((converted / f"{kind}-webdataset" / "data").iterdir()):
        for sample in webdataset.WebDataset(str(path), shardshuffle=False):
            row = shards.rows.set_index("image_id", drop=False).loc[sample["__key__"]]
            position = shards.rows["image_id"].tolist().index(sample["__key__"])
            assert sample["png"] == shards.png(position)
            values = json.loads(sample["json"])
            labels = {label: row[f"label_{label}"] for label in shards.labels}
            assert values.pop("labels") == labels
            check_row(values, shards, row)
            assert path.name.startswith(f"{row['split']}-")
            found += 1
    assert found == len(shards)


@pytest.mark.parametrize("to", FORMATS)
def test_an_interrupted_conversion_continues_to_the_same_bytes(
    sample_shards: Path,
    converted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    to: str,
) -> None:
    source, output, yes = sample_shards / "windows", tmp_path / "out", "--yes_identifiers"
    whole, files_of_shards = convert._FORMATS[to].write, []

    def stop_in_the_second(file: Any, *args: Any) -> None:
        whole(file, *args)
        files_of_shards.append(file)
        if len(files_of_shards) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        changed = convert._FORMATS[to]._replace(write=stop_in_the_second)
        patch.setitem(convert._FORMATS, to, changed)
        assert run(source, output, yes, to=to) == 130
    assert "the same command resumes" in capsys.readouterr().err
    expected = files(converted / f"windows-{to}")
    first, _ = sorted(name for name in expected if name.startswith("data/"))
    assert files(output).keys() == {CONVERSION, first}
    stamp = (output / first).stat().st_mtime_ns
    # left by a killed process
    (output / "data" / f".{Path(first).name}.{'0' * 32}.partial").write_bytes(b"half")
    for other in (["--image_id", "ordinal"], ["--license", "mit"]):
        assert run(source, output, yes, *other, to=to) == 2
        assert "with other options; choose another folder, or --over" in capsys.readouterr().err
    assert run(source, output, yes, to=to) == 0
    assert files(output) == expected
    assert (output / first).stat().st_mtime_ns == stamp
    (output / README).write_text("mine")
    assert run(source, output, yes, to=to) == 0
    assert f"{output} is complete; --overwrite makes it again" in capsys.readouterr().out
    assert (output / README).read_text() == "mine"
    assert run(source, output, yes, "--overwrite", to=to) == 0
    assert files(output) == expected


def test_images_can_be_numbered(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    numbered = ["--image_id", "ordinal", "--license", "cc-by-4.0"]
    assert run(sample_shards / "windows", output, *numbered) == 0
    shards = headct.open(sample_shards / "windows")
    tables = [pd.read_parquet(path) for path in sorted((output / "data").iterdir())]
    found = pd.concat(tables)["image_id"].tolist()
    assert found == [f"image_{number + 1:06d}" for number in range(len(shards))]
    assert 'license: "cc-by-4.0"' in (output / README).read_text()
    for name, data in files(output).items():
        for image_id in shards.rows["image_id"]:
            assert image_id.encode() not in data, name


def test_only_some_images_are_in_memory(
    sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "_IMAGE_BYTES", 3 * 64 * 64 * 3)
    assert run(sample_shards / "windows", tmp_path / "out", "--yes_identifiers") == 0
    for path in (tmp_path / "out" / "data").iterdir():
        parquet = pq.ParquetFile(path)
        sizes = [parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)]
        assert sizes[:-1] == [3] * (len(sizes) - 1)
        assert len(sizes) > 1


def copied(source: Path, target: Path, **options: str) -> Path:
    """A copy of a shard directory with other options in its manifest."""
    shutil.copytree(source, target)
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["options"] |= options
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


IMAGE_IDS = "image ids of the shards are names of the DICOM files: number the images with"


@pytest.mark.parametrize(
    ("options", "flags", "message"),
    [
        (
            {},
            [],
            f"{IMAGE_IDS} --image_id ordinal, or write them as they are with --yes_identifiers",
        ),
        ({"identifiers": "keep"}, ["--image_id=ordinal"], "ids of the shards are those of the DIC"),
        ({"identifiers": "hash", "identifier_key_check": "1"}, [], "ids of the shards are keyed h"),
        ({"image_id": "ordinal"}, [], None),
        ({}, ["--image_id=ordinal"], None),
        ({"identifiers": "keep"}, ["--yes_identifiers"], None),
    ],
)
def test_identifiers_are_published_only_on_demand(
    sample_shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, str],
    flags: list[str],
    message: str | None,
) -> None:
    source = copied(sample_shards / "windows", tmp_path / "in", **options)
    assert run(source, tmp_path / "out", *flags) == (2 if message else 0)
    told = capsys.readouterr().err
    if message:
        assert message in told
        assert told.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_a_mistake_is_one_line_and_changes_nothing(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, yes = sample_shards / "windows", "--yes_identifiers"
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "README.md").write_text("mine")
    cases = [
        ((source, tmp_path / "thesis", yes, "--overwrite"), "holds something else (README.md); ch"),
        ((source, source, yes), "holds something else ("),
        ((source, tmp_path / "file", yes), "is a file, not a folder"),
        ((tmp_path / "none", tmp_path / "out", yes), "no manifest.json, so no finished shard dir"),
        ((source, tmp_path / "out", yes, "--image_id", "uid"), "want one of keep, ordinal"),
    ]
    for arguments, message in cases:
        assert run(*arguments) == 2
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1
    assert run(source, tmp_path / "out", to="zarr") == 2
    assert "--to zarr: want one of parquet, webdataset" in capsys.readouterr().err
    assert files(tmp_path / "thesis") == {"README.md": b"mine"}
    assert not (tmp_path / "out").exists()


def test_damage_is_found_before_and_after_it_is_written(
    sample_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = copied(sample_shards / "windows", tmp_path / "in")
    place = headct.open(source).rows.iloc[2]
    shard = bytearray((source / place["shard"]).read_bytes())
    shard[place["image_offset"] + place["image_bytes"] // 2] ^= 1
    (source / place["shard"]).write_bytes(shard)
    assert run(source, tmp_path / "out", "--yes_identifiers") == 2
    where = f"{place['shard']}: record {place['record']}: its PNG is damaged; `headct verify`"
    assert where in capsys.readouterr().err
    assert files(tmp_path / "out").keys() == {CONVERSION}

    def lose_the_last(file: io.BytesIO) -> Iterator[bytes]:
        return iter([*convert._read_tar(file)][:-1])

    changed = convert._FORMATS["webdataset"]._replace(read_pngs=lose_the_last)
    monkeypatch.setitem(convert._FORMATS, "webdataset", changed)
    arguments = sample_shards / "windows", tmp_path / "tar", "--yes_identifiers"
    assert run(*arguments, to="webdataset") == 5
    assert "other images than were written" in capsys.readouterr().err
    assert files(tmp_path / "tar").keys() == {CONVERSION}


def test_an_index_that_lacks_a_slice_is_no_smaller_data_set(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = copied(sample_shards / "windows", tmp_path / "in")
    rows = pd.read_parquet(source / "index.parquet")
    other = rows["shard"].iloc[-1]
    rows.loc[0, "shard"] = other
    rows.to_parquet(source / "index.parquet")
    assert run(source, tmp_path / "out", "--yes_identifiers") == 2
    examples = (rows["shard"] == rows["shard"].iloc[1]).sum()
    message = f"index.parquet has {examples} of {examples + 1} slices"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("to", FORMATS)
def test_a_bucket_gets_the_bytes_of_a_folder(sample_shards: Path, converted: Path, to: str) -> None:
    shards = {f"in/{name}": data for name, data in files(sample_shards / "windows").items()}
    store = ScriptedStore(dict(shards))
    with serve(store):
        assert run("s3://data/in", "s3://data/out", "--yes_identifiers", to=to) == 0
        assert run("s3://data/in", "s3://data/out", "--yes_identifiers", to=to) == 0
    made = {key: data for key, data in store.objects.items() if key not in shards}
    expected = files(converted / f"windows-{to}")
    assert made == {f"out/{name}": data for name, data in expected.items()}


@pytest.mark.parametrize("image_id", ["a.b", "a_b", "../x", "/etc/x", "ä ö", "%2E", "x" * 300])
def test_a_key_is_one_name_without_dots(image_id: str) -> None:
    key = convert._key(image_id)
    assert not {*"./ "} & {*key}
    assert key.isascii()
    others = {convert._key(other) for other in ("a.b", "a_b", "a%2Eb", "%2E", ".")}
    assert len(others) == 5, "different ids have different keys"
