"""Which series of a study is written."""

import pandas as pd
import pytest

from beam_pipeline.dicom.kernels import Kernel
from beam_pipeline.planning.choose_series import few_slices, other_series

SOFT, UNKNOWN, BONE = Kernel
NAN = float("nan")
Series = tuple[str, Kernel, float, int]  # name, kernel, thickness and slices


def slices_of(*series: Series, study: int = 0) -> pd.DataFrame:
    """The slices of some series of a study, one series after the other."""
    rows = [(study, name, kernel, mm) for name, kernel, mm, slices in series for _ in range(slices)]
    return pd.DataFrame(rows, columns=["study_id", "series_id", "kernel", "slice_thickness"])


@pytest.mark.parametrize(
    ("series", "chosen"),
    [
        ([("bone", BONE, 5, 30), ("soft", SOFT, 1, 3)], "soft"),
        ([("bone", BONE, 5, 30), ("unknown", UNKNOWN, 1, 3)], "unknown"),
        ([("unknown", UNKNOWN, 5, 30), ("soft", SOFT, 0.6, 3)], "soft"),
        ([("thin", SOFT, 1, 150), ("thick", SOFT, 4.5, 30)], "thick"),
        ([("thin", SOFT, 2.5, 60), ("thick", SOFT, 8, 20)], "thin"),  # 2.5 mm off to 3
        ([("none", SOFT, NAN, 60), ("thin", SOFT, 0.6, 20)], "thin"),
        ([("few", SOFT, 5, 20), ("many", SOFT, 5, 30)], "many"),
        ([("few", SOFT, 5, 20), ("many", SOFT, 5.0000001, 30)], "many"),
        ([("few", SOFT, 5.001, 20), ("many", SOFT, 5.004, 30)], "few"),  # micrometers count
        ([("few", SOFT, 5, 20), ("many", SOFT, 5.0004, 30)], "many"),  # and no less
        ([("few", SOFT, NAN, 20), ("many", SOFT, NAN, 30)], "many"),
        ([("below", SOFT, 4, 20), ("above", SOFT, 6, 20)], "below"),  # the first in the input
        ([("z", SOFT, 5, 20), ("a", SOFT, 5, 20)], "z"),
        ([("only", BONE, NAN, 1)], "only"),
    ],
)
def test_kernel_then_thickness_then_slices_decide(series: list[Series], chosen: str) -> None:
    slices = slices_of(*series)
    others, table = other_series(slices, 5.0)
    assert (others == (slices["series_id"] != chosen)).all()
    (row,) = table.reset_index().to_dict("records")
    (expected,) = [of for of in series if of[0] == chosen]
    assert (row["kernel"], row["slices"]) == (expected[1], expected[3])


def test_each_study_has_a_series_whatever_the_order_of_its_slices() -> None:
    slices = pd.concat(
        [
            slices_of(("a", SOFT, 5, 9), ("b", BONE, 5, 9), study=1),
            slices_of(("a", BONE, 5, 9), ("b", UNKNOWN, NAN, 9), study=2),  # a UID of two studies
            slices_of(("c", BONE, 1, 9), study=3),
        ],
        ignore_index=True,
    )
    expected = {(1, "a"), (2, "b"), (3, "c")}
    for order in (slice(None), slice(None, None, -1)):
        some = slices[order]
        others, table = other_series(some, 5.0)
        kept = some[~others]
        assert {*zip(kept["study_id"], kept["series_id"], strict=True)} == expected
        assert {*table.index} == expected
        assert len(kept) == 27


def test_the_preferred_thickness_is_an_option() -> None:
    slices = slices_of(("thin", SOFT, 1, 90), ("thick", SOFT, 5, 20))
    kept = [slices[~other_series(slices, mm)[0]]["series_id"].iloc[0] for mm in (0.5, 2.9, 3.1)]
    assert kept == ["thin", "thin", "thick"]


def test_one_soft_slice_does_not_make_a_series_of_bone_kernels_soft() -> None:
    slices = slices_of(("mixed", SOFT, 5, 1), ("mixed", BONE, 5, 8), ("other", UNKNOWN, 5, 2))
    assert (other_series(slices, 5.0)[0] == (slices["series_id"] == "mixed")).all()


@pytest.mark.parametrize(
    ("least", "few"), [(1, []), (3, ["c"]), (4, ["a", "c"]), (5, ["a", "b", "c"])]
)
def test_series_of_few_slices_are_found(least: int, few: list[str]) -> None:
    slices = slices_of(("a", SOFT, 5, 3), ("b", SOFT, 5, 4), ("c", SOFT, 5, 1))
    assert slices["series_id"][few_slices(slices, least)].unique().tolist() == few
