"""Crops of scans: which slices a step sees, in which order, and with which labels."""

import numpy as np
import pytest

from headct.scans import Scans
from trainer.networks.scan_model import SCAN, SLICES, control_scans
from trainer.training.scan_crops import Batches, ImageBatches
from trainer.training.scan_features import ScanFeatures, ScanSlices


def test_crops_are_of_one_scan_thinned_and_reversed_with_their_labels() -> None:
    number = np.arange(62)
    features = number[:, None].astype(np.float16)
    labels = (number[:, None] % 7 == 0).astype(np.int64)
    scans = Scans(number, np.array([0, 40, 41, 60, 62]), number * 2.5)
    one = ScanFeatures(labels, scans, features.astype(np.float32), features)
    batches = Batches([one], crop=8, size=4, seed=1)
    # 5, 1, 3 and 1 crops.
    assert batches.steps == 3
    steps, backward, lengths, lone = set(), set(), set(), set()
    thinned: list[bool] = []
    for epoch in range(20):
        for inputs, truth, weights in batches.epoch(epoch):
            for i in range(4):
                seen = inputs["features"][i, inputs["mask"][i, :, 0] > 0, 0].astype(int)
                lengths.add(len(seen))
                lone |= {*seen.tolist()} if len(seen) == 1 else set()
                assert len({*np.searchsorted([40, 41, 60], seen, "right").tolist()}) == 1
                steps |= {*np.abs(np.diff(seen)).tolist()}
                thinned += [abs(seen[1] - seen[0]) == 2] if len(seen) > 2 else []
                backward |= {*(np.diff(seen) < 0).tolist()}
                expected = (seen % 7 == 0).astype(int)
                assert truth[SLICES][i, : len(seen), 0].tolist() == expected.tolist()
                assert truth[SCAN][i, 0] == expected.max()
                gaps = inputs["gaps"][i, 1 : len(seen), 0]
                assert gaps == pytest.approx(np.abs(np.diff(seen)) * 2.5)
            assert weights[SLICES].sum() == pytest.approx(inputs["mask"].size)
    assert (steps, backward, lengths) == ({1, 2}, {True, False}, {1, 2, 8})
    assert lone == {40}  # a pair is never thinned
    assert np.mean(thinned) == pytest.approx(0.25, abs=0.1)
    first, second = (next(batches.epoch(3))[0]["features"] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_what_controls_see() -> None:
    scans = Scans(np.array([3, 1, 0, 4, 2]), np.array([0, 3, 5]), np.arange(5.0))
    assert control_scans(scans, "none") is scans
    alone = control_scans(scans, "alone")
    assert [each.tolist() for each in alone] == [[3], [1], [0], [4], [2]]
    shuffled, again = (control_scans(scans, "shuffled") for _ in range(2))
    assert shuffled.order.tolist() == again.order.tolist() != scans.order.tolist()
    assert [sorted(each.tolist()) for each in shuffled] == [[0, 1, 3], [2, 4]]
    assert np.isnan([*alone.z, *shuffled.z]).all()
    number = np.arange(60)
    features = number[:, None].astype(np.float32)
    whole = Scans(number, np.array([0, 40, 60]), number * 1.0)
    for control, steps, length in (("alone", 2, 1), ("shuffled", 2, 8)):
        one = ScanFeatures(features * 0, control_scans(whole, control), *[features] * 2)
        batches = Batches([one], crop=8, size=4, seed=0, control=control)
        assert batches.steps == steps
        for inputs, _, _ in batches.epoch(0):
            assert inputs["mask"].shape[1] == length
            assert not inputs["gaps"].any()
            apart = np.abs(np.diff(inputs["features"][..., 0]))
            assert length == 1 or (apart > 2).any()


def test_crops_of_images_repeat_the_last_one_where_a_scan_is_too_short() -> None:
    number = np.arange(3)
    found = ScanSlices(np.zeros((3, 1), np.int64), Scans(number, np.array([0, 3]), number * 5.0))
    batches = ImageBatches(found, np.array([30, 10, 20]), lambda rows: rows * 2, 6, 1, seed=0)
    seen = set()
    for epoch in range(30):
        ((inputs, _, _),) = batches.epoch(epoch)
        (samples,), (mask,) = inputs["samples"], inputs["mask"][..., 0]
        there = int(mask.sum())
        assert (samples[there:] == samples[there - 1]).all()
        seen.add(tuple(samples[:there].tolist()))
    assert seen == {(60, 20, 40), (40, 20, 60), (60, 40), (40, 60), (20,)}
