"""A slice with the slices below and above as channels: which they are, and runs with them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest

import trainer
from headct.errors import UsageError
from headct.reader import Shards
from headct.scans import find_scans
from trainer.__main__ import main
from trainer.data.input_pipeline import evaluation_batches, examples_as_read
from trainer.data.neighbors import Neighbors, stack
from trainer.data.shards import read_shard_directory
from trainer.evaluation.predict_models import predict_models
from trainer.networks.image_layers import ApplyWindows, Augment
from trainer.options import EvaluateOptions, TrainOptions
from trainer.report.slices import Chosen, draw_slices
from trainer.runs.evaluation_setup import prepare_evaluation
from trainer.runs.training_setup import prepare_training
from trainer.training.train import train

NAN = float("nan")
# Positions of slices a, b, c, ...; neighbors on each side and their mm; then of each slice what it
# is seen with, from bottom to top.
SCANS: dict[str, tuple[list[float], int, float, str]] = {
    "none": ([0, 5, 10], 0, 0, "a b c"),
    "one": ([0, 5, 10], 1, 0, "aab abc bcc"),
    "two": ([0, 5, 10, 15], 2, 0, "aaabc aabcd abcdd bcddd"),
    "in reversed order": ([10, 5, 0], 1, 0, "baa cba ccb"),
    "of one slice": ([7], 2, 0, "aaaaa"),
    "after a rejected slice": ([0, 5, 15], 1, 0, "aab abc bcc"),
    "of two reconstructions": ([0, 0, 5, 5, 10, 10], 1, 0, "aac bbc ace ade cee cff"),
    "without a position": ([0, NAN, 5], 1, 0, "aac bbb acc"),
    "without positions": ([NAN, NAN], 1, 0, "aaa bbb"),
    "coronal": ([3, 3], 1, 0, "aaa bbb"),
    "5 mm of 5": ([0, 5, 10], 1, 5, "aab abc bcc"),
    "5 mm of 2.5": ([0, 2.5, 5, 7.5, 10], 1, 5, "aac abd ace bde cee"),
    "2 mm of 5: itself": ([0, 5, 10], 1, 2, "aaa bbb ccc"),
    "2.5 mm of 5: the outer": ([0, 5, 10], 1, 2.5, "aab abc bcc"),
    "1 mm of 0.9999 and 1.0001": ([-0.9999, 0, 1.0001, 2], 1, 1, "aab abc bcd cdd"),
    "5 mm, twice": ([0, 5, 10, 15], 2, 5, "aaabc aabcd abcdd bcddd"),
    "10 mm of gaps": ([0, 2, 11, 30], 1, 10, "aac abc acd cdd"),
}


@pytest.mark.parametrize("name", SCANS)
def test_neighbors_of_a_scan_by_hand(name: str) -> None:
    positions, count, mm, expected = SCANS[name]
    letters = [chr(ord("a") + i) for i in range(len(positions))]
    # Another scan among the rows: a neighbor is never of it.
    table = pd.DataFrame(
        {
            "image_id": [*letters, "x", "y"],
            "series_id": ["s"] * len(positions) + ["t", "t"],
            "patient_id": "p",
            "position_z": np.float32([*positions, 1, 6]),
        }
    )
    neighbors = Neighbors(count, mm)
    for shown in (table, table[::-1], table.sample(frac=1, random_state=3)):
        ids = shown["image_id"].to_numpy()
        found = neighbors.rows(find_scans(shown, "here"))
        assert found.shape == (len(table), neighbors.slices)
        seen = {ids[row[count]]: "".join(ids[row]) for row in found}
        assert [seen[letter] for letter in letters] == expected.split()
        assert set(seen["x"] + seen["y"]) == {"x", "y"}


def test_channels_of_slices_by_hand() -> None:
    images = np.uint8([[[[[1, 2]]], [[[3, 4]]], [[[5, 6]]]]])  # slices of one pixel, two windows
    assert stack(images).tolist() == [[[[1, 2, 3, 4, 5, 6]]]]


def test_the_order_of_caches_and_predictions_is_known(
    shards_writer: Callable[..., Path], rows_maker: Callable[..., Any], tmp_path: Path
) -> None:
    """Also of more shards than are read at once, some of which end before others."""
    rows = rows_maker(9, 4, 1)
    folder = shards_writer(tmp_path / "s", {f"fold{i}": rows for i in range(3)})
    path, index = folder / "manifest.json", pd.read_parquet(folder / "index.parquet")
    manifest, names = json.loads(path.read_text()), []
    splits = list(manifest["splits"].values())
    for number in range(20):  # in turn of 5 and 4 examples, and an empty one
        shard = splits[number % 3]["shards"][number % 2] | {"file": f"copy-{number:02d}"}
        (folder / shard["file"]).symlink_to(splits[number % 3]["shards"][number % 2]["file"])
        names.append((shard, splits[number % 3]["shards"][number % 2]["file"]))
    parts = []
    for shard, file in names:
        part = index[index["shard"] == file].assign(shard=shard["file"])
        parts.append(part.assign(image_id=part["image_id"] + shard["file"]))
    whole = [shard for shard, _ in names]
    manifest["splits"] = {
        "fold0": {
            "examples": sum(each["examples"] for each in whole),
            "patients": 3,
            "shards": whole,
        }
    }
    path.write_text(json.dumps(manifest))
    pd.concat(parts).to_parquet(folder / "index.parquet", index=False)
    data = read_shard_directory(folder)
    batches = evaluation_batches(data, data.split("fold0"), 8).as_numpy_iterator()
    read = [each.decode() for batch in batches for each in batch["image_id"]]
    examples = examples_as_read(data, (data.split("fold0"),))
    known = [text[: len(read[0])] for text in examples.rows["image_id"]]
    assert known == read


@pytest.fixture(scope="module")
def run(shards: Path, tiny: dict[str, Any], made_once: Callable[..., Path]) -> Path:
    """A finished run with neighbors."""

    def make(folder: Path) -> None:
        options = tiny | {"neighbors": 1, "cache": "device", "epochs": 1, "report": False}
        train(prepare_training(TrainOptions(shards=shards, run=folder, **options)))

    return made_once("with_neighbors", make)


def test_a_run_is_evaluated_predicted_and_shown_as_it_was_trained(
    run: Path, shards: Path, split_rows: dict[str, Any], tmp_path: Path
) -> None:
    history, metrics = (json.loads((run / f"{n}.json").read_text()) for n in ("history", "metrics"))
    # from the cache, and from the shards
    assert metrics["weighted_log_loss"] == pytest.approx(history[0]["val_loss"], abs=1e-6)
    trained, opened = trainer.load_run(run), trainer.open_shards(shards)
    rows = split_rows["fold0"]
    expected = {}
    for i, row in enumerate(rows):
        series = [j for j, other in enumerate(rows) if other["series_id"] == row["series_id"]]
        around = [rows[min(max(j, series[0]), series[-1])]["image"] for j in (i - 1, i, i + 1)]
        expected[row["image_id"]] = trained.predict(np.concatenate(around, axis=-1)[None])[0]
    columns = [f"probability_{name}" for name in trained.labels]
    plain = evaluation_batches(opened, opened.split("fold0"), 8).as_numpy_iterator()
    order = [each.decode() for batch in plain for each in batch["image_id"]]
    written = pd.read_parquet(run / "predictions-fold0.parquet")
    for table in (written, *(trained.predict_split(opened, "fold0", size) for size in (4, 32))):
        assert table["image_id"].tolist() == order
        found = table[columns].to_numpy()
        np.testing.assert_allclose(found, [expected[each] for each in order], atol=1e-5)
    labels = {row["image_id"]: row["label"] for row in rows}
    known = written[[f"label_{name}" for name in trained.labels]].to_numpy()
    np.testing.assert_array_equal(known, [labels[each] for each in order])
    assert np.ptp(written[columns].to_numpy(), axis=0).min() > 0
    with pytest.raises(UsageError, match=r"must be of shape \[N, 32, 32, 9\]"):
        trained.predict(rows[0]["image"][None])


def test_models_that_see_different_neighbors_answer_together(
    run: Path, finished: Path, shards: Path
) -> None:
    data = read_shard_directory(shards)
    split, runs = (
        data.split("fold0"),
        [trainer.load_run(each) for each in (finished, run, finished)],
    )
    seen = [Neighbors(), Neighbors(1), Neighbors()]
    together = predict_models(
        [each.network for each in runs], data, split, data.labels, 8, neighbors=seen
    )
    assert together[0].rows.equals(together[1].rows)
    for each, found in zip(runs, together, strict=True):
        alone = each.predict_split(data, "fold0")
        np.testing.assert_allclose(found.frame().iloc[:, 6:9], alone.iloc[:, 6:9], atol=1e-6)


def test_the_report_shows_the_slice_itself(
    run: Path, split_rows: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("trainer.report.slices.embed", lambda *each: drawn.append(each) or "")
    setup = prepare_evaluation(EvaluateOptions(run=run))
    rows = [split_rows["fold0"][i] for i in (5, 20, 3)]
    draw_slices(setup, [Chosen(row["image_id"], 2, "", "", "") for row in rows])
    for (gray, _), row in zip(drawn, rows, strict=True):
        np.testing.assert_array_equal(gray, row["image"][..., 0])


def test_an_exported_model_takes_the_channels_that_its_description_names(
    run: Path, shards: Path, tmp_path: Path
) -> None:
    argv = ["export", f"--run={run}", f"--output={tmp_path}/e", "--formats=keras"]
    assert main(argv) == 0  # having compared it with the run's model on slices of the shards
    described = json.loads((tmp_path / "e" / "description.json").read_text())
    assert described["input"]["shape"] == [None, 32, 32, 9]
    assert [(each["slice"], each["name"]) for each in described["channels"]] == [
        (place, name) for place in (-1, 0, 1) for name in ("brain", "subdural", "bone")
    ]
    assert (described["neighbors"]["count"], described["neighbors"]["mm"]) == (1, 0)
    model = keras.models.load_model(tmp_path / "e" / "model.keras")
    data = read_shard_directory(shards)
    images = Neighbors(1).images(data.examples((data.split("fold0"),)), np.arange(5))
    expected = trainer.load_run(run).predict(images)
    np.testing.assert_allclose(model.predict_on_batch(images), expected, atol=1e-5)


def test_all_slices_of_a_sample_change_alike() -> None:
    one = np.random.default_rng(0).uniform(0, 1200, (2, 16, 16, 1)).astype(np.float32)
    windows = ApplyWindows([40, 600], [80, 2800], -1024, 0.2, 0)
    augment = Augment(1.0, 0)
    found = np.asarray(augment(windows(np.repeat(one, 3, -1), training=True), training=True))
    assert found.shape == (2, 16, 16, 6)
    np.testing.assert_array_equal(found[..., :2], found[..., 2:4])
    np.testing.assert_array_equal(found[..., :2], found[..., 4:])
    assert windows.compute_output_shape((None, 4, 4, 3)) == (None, 4, 4, 6)
    alone = np.asarray(ApplyWindows([40, 600], [80, 2800], -1024, 0.0, 0)(one))
    still = ApplyWindows([40, 600], [80, 2800], -1024, 0.0, 0)
    together = np.asarray(still(np.concatenate([one + 9, one, one], -1)))
    np.testing.assert_array_equal(together[..., 2:4], alone)


def test_what_cannot_be_is_said_at_once(
    run: Path,
    finished: Path,
    shards: Path,
    tiny: dict[str, Any],
    edit_manifest: Callable[..., Path],
    tmp_path: Path,
) -> None:
    def refused(**changes: Any) -> str:
        given = {"shards": shards, "run": tmp_path / "new", **tiny, **changes}
        with pytest.raises(UsageError) as raised:
            prepare_training(TrainOptions(**given))
        assert not (tmp_path / "new").exists()
        return str(raised.value)

    assert refused(neighbors=1).startswith("--neighbors 1: ")
    assert "--cache ram, disk or device" in refused(neighbors=1)
    with pytest.raises(UsageError, match="--neighbors_mm: applies to --neighbors 1 or more"):
        TrainOptions(**{"shards": shards, "run": "r", **tiny, "neighbors_mm": 5})
    for origin, count in ((run, 2), (finished, 1)):
        said = refused(continue_from=origin, neighbors=count, cache="ram")
        assert f"--neighbors {count}: --continue_from {origin} has" in said
    # What earlier versions wrote, and a series on both sides of the border.
    folder = edit_manifest()
    rows = Shards.read(shards).rows
    (folder / "index.parquet").unlink()
    for index, told in (
        (rows.drop(columns="position_z"), "has no position_z, so which slices are a scan"),
        (rows.assign(series_id="one", study_id="one", patient_id="one"), "in several splits"),
    ):
        index.to_parquet(folder / "index.parquet", index=False)
        assert told in refused(shards=folder, neighbors=1, cache="ram")
    rows.drop(columns="position_z").to_parquet(folder / "index.parquet", index=False)
    assert main(["evaluate", f"--run={run}", f"--shards={folder}", "--split=fold0"]) == 2
