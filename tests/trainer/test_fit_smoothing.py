"""The fit of the smoothing along z: found where bleeds span slices, off where they do not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from headct.errors import UsageError
from tests.trainer.made_runs import make_run
from trainer.evaluation.cross_fits import fit_and_cross_fit, fit_and_cross_fit_smoothing
from trainer.evaluation.fit_smoothing import CANDIDATES, SmoothingFit, describe_smoothing
from trainer.evaluation.metrics import weighted_log_loss
from trainer.evaluation.predict_models import Predictions
from trainer.runs.smoothing import NO_SMOOTHING, Smoothing, choose_smoothing

NAMES, WEIGHTS = ("a", "any"), (1.0, 2.0)
PATIENTS, SLICES = 24, 20


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.evaluation.bootstrap.SAMPLES", 100)


def invent(spans: bool) -> Predictions:
    """Slices 5 mm apart; positives in a row if `spans`, else anywhere in the scan."""
    random = np.random.default_rng(3)
    labels = np.zeros((PATIENTS, SLICES), int)
    for scan, begin in zip(labels[::2], random.integers(0, SLICES - 6, PATIENTS // 2), strict=True):
        scan[begin : begin + 6] = 1
    if not spans:
        labels = random.permuted(labels.ravel()).reshape(labels.shape)
    both = np.repeat(labels.reshape(-1, 1), 2, axis=1)
    # The log-odds of a normal score, one standard deviation from 0 for either label.
    logits = 2 * random.normal(both * 2.0 - 1, 1.0) + np.log(labels.mean() / (1 - labels.mean()))
    number = np.arange(PATIENTS * SLICES)
    columns = {
        f"{kind}_id": [f"{kind}{i // SLICES}" for i in number]
        for kind in ("patient", "study", "series")
    }
    rows = {"image_id": [f"ID_{i}" for i in number], **columns, "split": "fold0"}
    rows["position_z"] = (number % SLICES * 5.0).astype(np.float32)
    return Predictions(NAMES, pd.DataFrame(rows), both, logits.astype(np.float32))


def poisoned(predictions: Predictions, patient: int) -> tuple[Predictions, npt.NDArray[np.bool_]]:
    """All labels of a patient turned round."""
    hers = (predictions.rows["patient_id"] == f"patient{patient}").to_numpy()
    labels = np.where(hers[:, None], 1 - predictions.labels, predictions.labels)
    return replace(predictions, labels=labels), hers


def test_the_candidates_are_a_grid() -> None:
    none, *grid = CANDIDATES
    assert none == NO_SMOOTHING
    widths = [1, 1.414, 2, 2.828, 4, 5.657, 8, 11.314, 16, 22.627]
    assert sorted({each.width_mm for each in grid}) == pytest.approx(widths, abs=1e-3)
    amounts = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
    assert sorted({each.amount for each in grid}) == pytest.approx(amounts)
    assert len(grid) == 100
    assert describe_smoothing(none) == {"smooth_z_width_mm": None, "smooth_z_amount": None}
    some = {"smooth_z_width_mm": 2.5, "smooth_z_amount": 0.5}
    assert describe_smoothing(Smoothing(2.5, 0.5)) == some


def test_the_loss_of_a_candidate_is_that_of_its_smoothing() -> None:
    predictions = invent(spans=True)
    fit = SmoothingFit(predictions, WEIGHTS)
    found = fit.fit(np.arange(PATIENTS * SLICES))
    losses = {
        smoothing: weighted_log_loss(
            predictions.labels,
            1 / (1 + np.exp(-smoothing.apply(predictions.logits, predictions.scans))),
            WEIGHTS,
        )
        for smoothing in (found, Smoothing(), Smoothing(2.0, 0.5), Smoothing(16.0, 1.0))
    }
    assert min(losses, key=losses.__getitem__) is found
    assert 2 < found.width_mm < 16
    of_half = fit.fit(np.arange(PATIENTS * SLICES // 2))
    expected = SmoothingFit(
        replace(
            predictions,
            rows=predictions.rows[: PATIENTS * SLICES // 2],
            labels=predictions.labels[: PATIENTS * SLICES // 2],
            logits=predictions.logits[: PATIENTS * SLICES // 2],
        ),
        WEIGHTS,
    ).fit(np.arange(PATIENTS * SLICES // 2))
    assert of_half == expected


def test_it_helps_where_bleeds_span_slices_and_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup, predictions = make_run(tmp_path / "run", NAMES), invent(spans=True)
    smoothed, crossed, told, smooth_by = fit_and_cross_fit_smoothing(setup, predictions)
    shown = capsys.readouterr().out
    assert "It helps: use --smooth_z" in shown
    assert told["helps"]
    assert told["patients"] == PATIENTS
    loss, ends = (
        told[key]["weighted_log_loss"] for key in ("difference", "difference_intervals_95")
    )
    assert ends[0] < loss < ends[1] < 0
    assert loss == pytest.approx(
        told["with"]["weighted_log_loss"] - told["without"]["weighted_log_loss"]
    )
    assert told["difference"]["mean_roc_auc"] > 0
    assert choose_smoothing(setup.run.smoothing, wanted=True) == smoothed.smoothing
    assert smoothed.name == "fold0-smooth_z"
    # No patient is smoothed, or calibrated after it, as her own labels fit.
    assert smooth_by is not None
    _, calibrated, _ = fit_and_cross_fit(smoothed, crossed, smooth_by)
    other, hers = poisoned(predictions, 4)
    again_setup, again, _, again_by = fit_and_cross_fit_smoothing(setup, other)
    _, recalibrated, _ = fit_and_cross_fit(again_setup, again, again_by)
    np.testing.assert_array_equal(again.logits[hers], crossed.logits[hers])
    np.testing.assert_array_equal(recalibrated.logits[hers], calibrated.logits[hers])
    assert not np.allclose(recalibrated.logits, calibrated.logits)


def test_it_is_off_where_it_does_not_help(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup, predictions = make_run(tmp_path / "run", NAMES), invent(spans=False)
    same, unchanged, told, smooth_by = fit_and_cross_fit_smoothing(setup, predictions)
    assert "No clear gain on 24 patients: leave --smooth_z off." in capsys.readouterr().out
    assert not told["helps"]
    assert unchanged is predictions
    assert smooth_by is None
    assert same.name == "fold0"
    assert not choose_smoothing(setup.run.smoothing, wanted=True).changes


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("patient_id", "p", "fold0 has one patient"),
        ("series_id", "", "no slice has a series_id"),
        ("position_z", np.nan, "no slice has a position_z"),
    ],
)
def test_what_cannot_be_smoothed(column: str, value: object, message: str, tmp_path: Path) -> None:
    setup, predictions = make_run(tmp_path / "run", NAMES), invent(spans=True)
    rows = predictions.rows.assign(**{column: value})
    with pytest.raises(UsageError, match=message):
        fit_and_cross_fit_smoothing(setup, replace(predictions, rows=rows))
