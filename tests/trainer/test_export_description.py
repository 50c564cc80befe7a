"""The formulas that an exported folder states, against the pipeline that they are of."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from beam_pipeline.images.convert import HU_OFFSET, PADDING_HU, render
from beam_pipeline.images.windows import VoiFunction, Window
from trainer.evaluation import export_description
from trainer.evaluation.export_description import FORMULAS

HOUNSFIELD = np.concatenate([np.arange(-1100, 3100), np.linspace(-5, 95, 401), [-4000.0, 70000.0]])


def evaluate(formula: str, **values: Any) -> npt.NDArray[Any]:
    names = {name: getattr(np, name) for name in ("clip", "exp", "floor", "maximum")}
    return np.asarray(eval(formula, {"__builtins__": {}}, names | values))


@pytest.mark.parametrize("function", list(VoiFunction))
@pytest.mark.parametrize("window", [Window("brain", 40, 80), Window("thin", 1.5, 0.5)])
def test_gray_levels(function: VoiFunction, window: Window) -> None:
    expected = render(HOUNSFIELD, (window,), (function,))[..., 0]
    formula = FORMULAS[function]
    found = evaluate(formula, hu=HOUNSFIELD, center=window.center, width=window.width)
    np.testing.assert_array_equal(found, expected)


def test_hounsfield_units() -> None:
    expected = render(HOUNSFIELD, (), ())[..., 0]
    found = evaluate(FORMULAS["hu"], hu=HOUNSFIELD, hu_offset=HU_OFFSET)
    np.testing.assert_array_equal(found, expected)


def test_padding() -> None:
    assert export_description.PADDING_HU == PADDING_HU
