"""`train_scans --end_to_end`: both networks start where RUN is, and answer as one run."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from headct.errors import UsageError
from trainer.__main__ import main
from trainer.networks.saved_models import load_model
from trainer.options import TrainScansOptions
from trainer.runs import checkpoint
from trainer.runs.scan_setup import prepare_scans
from trainer.training import train_scans
from trainer.training.end_to_end import InParts, Joined

# TensorFlow says of `eagerly` that its data sets are not meant.
pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")

FEW = ["--end_to_end", "--epochs", "2", "--units", "8", "--scans_a_step", "5", "--crop", "3"]
FEW += ["--slice_learning_rate", "3e-3", "--learning_rate", "3e-3", "--no-report"]


@pytest.fixture(scope="module")
def trained(train_scans: Any) -> tuple[Path, dict[str, Any]]:
    """A slice run, and the metrics of RUN/end_to_end."""
    made: tuple[Path, dict[str, Any]] = train_scans("end_to_end", FEW)
    return made


def test_it_is_a_run_with_a_slice_network_of_its_own(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, metrics = trained
    slices = json.loads((run / "metrics.json").read_text())
    start = metrics["against_start"]
    assert start["weighted_log_loss"] == pytest.approx(slices["weighted_log_loss"], rel=1e-5)
    # An epoch is only kept if it is better; here, one is.
    assert metrics["weighted_log_loss"] < start["weighted_log_loss"] - 0.01
    assert metrics["against_slices"]["weighted_log_loss"] != start["weighted_log_loss"]
    joint = run / "end_to_end"
    assert (joint / "model.keras").read_bytes() != (run / "model.keras").read_bytes()
    assert main(["evaluate", "--run", str(joint)]) == 0
    found = json.loads((joint / "evaluation-fold0.json").read_text())
    for name in ("weighted_log_loss", "mean_roc_auc", "trained_on"):
        assert found[name] == pytest.approx(metrics[name], rel=1e-5)
    to_keras = ["--output", f"{tmp_path}/e", "--formats", "keras"]
    assert main(["export", "--run", str(joint), *to_keras]) == 0
    # Further from there: the scan model is taken over, too.
    values = {"run": joint, "end_to_end": True, "output": str(tmp_path / "further")}
    (setup,) = prepare_scans(TrainScansOptions(**values))
    begun = train_scans.begin_end_to_end(setup)
    assert begun.before == pytest.approx(metrics["weighted_log_loss"], rel=1e-5)
    assert setup.options.units == 8
    with pytest.raises(
        UsageError, match=r"--kind gru: .*end_to_end has convolutions; leave it out"
    ):
        prepare_scans(TrainScansOptions(**values, kind="gru"))
    capsys.readouterr()
    for case, message in {
        ("--tta", "--end_to_end"): "--tta and --end_to_end: choose one",
        ("--accumulate", "2"): "--accumulate: applies to --end_to_end",
        (*FEW, "--seed", "1"): "--seed 0 there, 1 now",
    }.items():
        assert main(["train_scans", str(run), *case]) == 2
        assert message in capsys.readouterr().err


def test_a_training_killed_at_any_step_resumes_with_the_same_figures(
    trained: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, _ = trained
    again = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(again / "end_to_end")
    monkeypatch.setattr(train_scans, "_CHECKPOINT_SECONDS", 0)
    save, saved = checkpoint.save, []

    def stop(folder: Path, state: checkpoint.Checkpoint) -> None:
        save(folder, state)
        saved.append((state.progress.epoch, state.progress.step))
        if saved[-1] in ((0, 2), (1, 3)):
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", stop)
    monkeypatch.setattr(train_scans, "finish", lambda *_: None)
    for _ in range(2):
        assert main(["train_scans", str(again), *FEW]) == 130
    capsys.readouterr()
    assert main(["train_scans", str(again), *FEW]) == 0
    assert "resumes after epoch 1, step 3" in capsys.readouterr().out
    one, two = (
        [
            {name: value for name, value in row.items() if name != "images_per_second"}
            for row in json.loads((path / "end_to_end" / "history.json").read_text())
        ]
        for path in (run, again)
    )
    assert two == one
    for name in ("model.keras", "scan_model.keras"):
        first, second = (
            load_model(path / "end_to_end" / name).get_weights() for path in (run, again)
        )
        for array, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(array, other)


def test_laws_of_the_joined_network(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run, _ = trained
    options = TrainScansOptions(
        run=run, output=str(tmp_path / "run"), end_to_end=True, crop=6, scans_a_step=4, units=8
    )
    (setup,) = prepare_scans(options)
    joined = Joined(setup)
    inputs, labels, _ = next(joined.batches.epoch(0))
    mask = inputs["mask"][..., 0] > 0
    assert 4 <= mask.sum() < mask.size  # scans have 4 slices at most
    core = joined.classifier.get_layer("core")
    alone = np.asarray(core(inputs["samples"].reshape(-1, 32, 32, 3).astype(np.float32)))
    answers = joined.model(inputs)
    # Untrained: the logits of the slices, and their maximum.
    slices = np.asarray(answers["slices"])
    np.testing.assert_allclose(slices[mask], alone.reshape(slices.shape)[mask], atol=1e-5)
    highest = np.where(mask[..., None], slices, -np.inf).max(axis=1)
    np.testing.assert_allclose(np.asarray(answers["scan"]), highest, atol=1e-5)
    # Labels are those of the images: bright squares at the bottom.
    bottoms = inputs["samples"][:, :, -8:, 8:-8].mean(axis=(2, 3, 4))
    np.testing.assert_array_equal((bottoms > 128)[mask], labels["slices"][mask][:, 1])
    # Trained: padding changes nothing.
    random = np.random.default_rng(1)
    for weight in joined.scan_model.trainable_weights:
        weight.assign(random.normal(0, 0.3, weight.shape))
    samples = np.where(mask[..., None, None, None], inputs["samples"], 255 - inputs["samples"])
    one, two = (joined.model({**inputs, "samples": each}) for each in (samples, inputs["samples"]))
    for name, of in (("slices", mask), ("scan", slice(None))):
        np.testing.assert_array_equal(np.asarray(one[name])[of], np.asarray(two[name])[of])
    # The slices of a crop change alike, those of another one otherwise.
    image = np.tile(inputs["samples"][0, 0].astype(np.float32), (24, 1, 1, 1))
    changed = np.asarray(joined.model.get_layer("changes")(image, training=True))
    crops = changed.reshape(4, 6, *changed.shape[1:])
    np.testing.assert_array_equal(crops, np.repeat(crops[:, :1], 6, axis=1))
    assert np.abs(crops[0] - crops[1]).mean() > 1
    # Computed in parts, and again for the gradients: the same.
    parts = joined.model.get_layer("parts")
    found = []
    for at_once in (0, 5):
        layer = InParts(parts.network, at_once)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(changed, training=True) ** 2)
        weights = [weight.value for weight in parts.network.trainable_weights]
        found.append([loss, *tape.gradient(loss, weights)])
    for whole, in_parts in zip(*found, strict=True):
        np.testing.assert_allclose(in_parts, whole, rtol=1e-3, atol=1e-4)
