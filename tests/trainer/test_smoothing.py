"""Smoothing of logits along z: laws, by hand-worked weights, and its file."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headct.errors import UsageError
from headct.scans import Scans, find_scans
from trainer.runs.run import Calibration, Run, choose_calibration, write_calibration
from trainer.runs.smoothing import NO_SMOOTHING, Smoothing, choose_smoothing, write_smoothing

NAN = float("nan")
A, B, C = np.exp(-1 / 2), np.exp(-2), np.exp(-9 / 2)  # weights at one, two and three widths


def scans_of(z: list[float], series: str = "") -> Scans:
    ids = [f"{i:05d}" for i in range(len(z))]
    names = [*series] if series else "s"
    return find_scans(pd.DataFrame({"image_id": ids, "series_id": names, "position_z": z}), "here")


# name: positions, series of the slices, logits, and the means over a width of 5 mm.
MEANS: dict[str, tuple[list[float], str, list[float], list[float]]] = {
    "5 mm apart": (
        [0, 5, 10],
        "sss",
        [0, 1, 0],
        [A / (1 + A + B), 1 / (1 + 2 * A), A / (1 + A + B)],
    ),
    "2.5 mm apart: by mm, not by slices": (
        [0, 2.5, 5],
        "sss",
        [0, 0, 1],
        [A, np.exp(-1 / 8), 1]
        / np.array([1 + np.exp(-1 / 8) + A, 1 + 2 * np.exp(-1 / 8), 1 + np.exp(-1 / 8) + A]),
    ),
    "a slice is missing": ([0, 10], "ss", [1, 0], [1 / (1 + B), B / (1 + B)]),
    "just near enough": ([0, 15], "ss", [1, 0], [1 / (1 + C), C / (1 + C)]),
    "too far apart": ([0, 15.1], "ss", [1, 0], [1, 0]),
    "one slice": ([3], "s", [0.3], [0.3]),
    "no positions": ([NAN, NAN], "ss", [1, 0], [1, 0]),
    "one without a position": ([0, NAN, 5], "sss", [1, 7, 0], [1 / (1 + A), 7, A / (1 + A)]),
    "at one place with another": (
        [0, 0, 5],
        "sss",
        [1, 0, 0],
        [1 / (2 + A), 1 / (2 + A), A / (1 + 2 * A)],
    ),
    "two series": ([0, 0, 5, 5], "stst", [1, 3, 0, 3], [1 / (1 + A), 3, A / (1 + A), 3]),
}


@pytest.mark.parametrize("name", MEANS)
def test_weights_go_by_distance(name: str) -> None:
    z, series, logits, expected = MEANS[name]
    x = np.array(logits, np.float32)[:, None] * [1.0, -2.0]
    smoothed = Smoothing(5.0, 1.0).apply(x, scans_of(z, series))
    np.testing.assert_allclose(smoothed, np.outer(expected, [1, -2]), atol=1e-6)
    half = Smoothing(5.0, 0.5).apply(x, scans_of(z, series))
    np.testing.assert_allclose(half, (x + smoothed) / 2, atol=1e-6)
    np.testing.assert_array_equal(NO_SMOOTHING.apply(x, scans_of(z, series)), x)


def test_laws() -> None:
    random = np.random.default_rng(0)
    series = "".join(random.choice([*"abc"], 60))
    z, x = random.uniform(0, 100, 60), random.normal(size=(60, 3))
    z[7] = NAN
    smoothing = Smoothing(8.0, 0.7)
    smoothed = smoothing.apply(x, scans_of([*z], series))
    # Whatever the order of the rows, bit for bit; reversed along z.
    order = random.permutation(60)
    ids = np.array([f"{i:05d}" for i in range(60)])
    rows = pd.DataFrame({"image_id": ids, "series_id": [*series], "position_z": z}).iloc[order]
    np.testing.assert_array_equal(smoothing.apply(x[order], find_scans(rows, "")), smoothed[order])
    np.testing.assert_allclose(smoothing.apply(x, scans_of([*-z], series)), smoothed, atol=1e-12)
    # A constant stays; a temperature and a bias may be applied before or after.
    np.testing.assert_allclose(smoothing.apply(x * 0 + 3, scans_of([*z], series)), 3)
    calibration = Calibration((2.0, 0.5, 1.0), (1.0, 0.0, -1.0))
    before = smoothing.apply(calibration.apply(x), scans_of([*z], series))
    np.testing.assert_allclose(before, calibration.apply(smoothed), atol=1e-12)


def test_thin_and_thick_slices_of_one_head_are_smoothed_alike() -> None:
    thin, thick = np.arange(0, 150.5), np.arange(0, 151, 5.0)
    truth = [np.sin(z / 10)[:, None] for z in (thin, thick)]
    of_thin, of_thick = (
        Smoothing(6.0, 1.0).apply(x, scans_of([*z]))
        for x, z in zip(truth, (thin, thick), strict=True)
    )
    inside = slice(4, -4)
    assert np.abs(of_thick - truth[1]).max() > 0.1
    np.testing.assert_allclose(of_thin[::5][inside], of_thick[inside], atol=0.01)
    assert Smoothing(6.0, 1.0).apply(np.ones((1500, 1)), scans_of([*np.arange(1500) / 5])).all()


def test_the_file_of_a_run(tmp_path: Path) -> None:
    path = Run(tmp_path).smoothing
    assert Smoothing(9.0, 0.0).kernel == NO_SMOOTHING.kernel == (1.0, 0.0)
    assert asdict(NO_SMOOTHING) == {"width_mm": 1.0, "amount": 0.0, "split": "", "digest": ""}
    assert choose_smoothing(path, wanted=False) is NO_SMOOTHING
    with pytest.raises(UsageError, match=r"--smooth_z: .* `evaluate --fit_smooth_z` fits it"):
        choose_smoothing(path, wanted=True)
    for fitted in (
        Smoothing(5.6, 0.4, "fold0", "d" * 64),
        Smoothing(0.1, 1.0),
        Smoothing(1000.0, 0.0, "s" * 64, "d" * 200),
    ):
        write_smoothing(path, fitted)
        assert choose_smoothing(path, wanted=True) == fitted
    for text, message in {
        '{"width_mm": 0, "amount": 0.4}': "width_mm: 0: must be a number from 0.1 to 1000",
        '{"width_mm": 1000.1, "amount": 0.4}': "width_mm: 1000.1: must be a number from 0.1",
        '{"width_mm": "5", "amount": 0.4}': 'width_mm: "5": must be a number from 0.1',
        '{"width_mm": 5, "amount": 2}': "amount: 2: must be a number from 0 to 1",
        '{"width_mm": 5, "amount": -0.1}': "amount: -0.1: must be a number from 0 to 1",
        '{"width_mm": 5, "amount": true}': "amount: true: must be a number from 0 to 1",
        '{"width_mm": 5, "split": 1}': "split: 1: must be text",
        f'{{"split": "{"s" * 65}"}}': "split: .*: must be text",
        f'{{"digest": "{"d" * 201}"}}': "digest: .*: must be text",
    }.items():
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            choose_smoothing(path, wanted=True)


def test_temperatures_go_with_the_smoothing_of_their_fit(tmp_path: Path) -> None:
    run, smoothing = Run(tmp_path), Smoothing(4.0, 0.5)
    smoothed = Calibration((2.0,), (0.1,), "fold0", "", smoothing.kernel)
    write_calibration(run, ("any",), smoothed)
    kept = choose_calibration(run, ("any",), wanted=True)
    assert kept == smoothed
    plain = Calibration((2.0,), (0.1,))
    for fits, other in ((kept, smoothing), (plain, NO_SMOOTHING), (plain, Smoothing(9.0, 0.0))):
        fits.check_smoothing(other)
    Calibration.none(1).check_smoothing(smoothing)
    for calibration, now, message in (
        (kept, NO_SMOOTHING, "fitted with --smooth_z; `evaluate --fit_temperature` fits"),
        (
            kept,
            Smoothing(4.0, 0.6),
            "fitted with another smoothing along z; `evaluate --smooth_z -",
        ),
        (plain, smoothing, "fitted without --smooth_z; `evaluate --smooth_z --fit_temperature`"),
    ):
        with pytest.raises(UsageError, match=message):
            calibration.check_smoothing(now)
