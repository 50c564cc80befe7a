"""Choices among the series of a study: enough slices, and the reconstruction that is written."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

SERIES = ["study_id", "series_id"]


def few_slices(slices: pd.DataFrame, least: int) -> NDArray[np.bool_]:
    """Return which slices are in series with fewer slices than `least`.

    Args:
        slices: columns SERIES.
        least: number of slices.
    """
    sizes = slices.groupby(SERIES)["series_id"].transform("size")
    return np.asarray(sizes < least)


def other_series(slices: pd.DataFrame, thickness: float) -> tuple[NDArray[np.bool_], pd.DataFrame]:
    """Choose one series per study: by kernel, then thickness, then number of slices.

    Args:
        slices: columns SERIES; `kernel`, a `Kernel`; `slice_thickness` in mm or NaN; in the order
            of the input.
        thickness: preferred thickness, mm.

    Returns:
        Which slices are in other series, and the chosen series: one row per study with its
        `kernel`, the worst of its slices, the median `slice_thickness` and the number of `slices`.
        A series with a soft kernel is before one with an unknown kernel, and that before one with a
        bone kernel; then the thickness nearest the preferred, an unknown one last; then the most
        slices; then the series whose first slice is first in the input.
    """
    series = slices.groupby(SERIES, sort=False).agg(
        kernel=("kernel", "max"),
        slice_thickness=("slice_thickness", "median"),
        slices=("kernel", "size"),
    )
    # Rounded: 4.9 and 5.1 mm are equally near to 5 mm.
    series["off"] = (series["slice_thickness"] - thickness).abs().round(3)
    ranked = series.assign(fewer=-series["slices"]).sort_values(
        ["kernel", "off", "fewer"], kind="stable", na_position="last"
    )
    chosen = ranked[~ranked.index.get_level_values("study_id").duplicated()]
    own = pd.MultiIndex.from_frame(slices[SERIES])
    return ~np.asarray(own.isin(chosen.index)), chosen
