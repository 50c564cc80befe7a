import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from trainer.__main__ import main
from trainer.data.shards import ImageSpec
from trainer.report.slices import gray_levels, worst_mistakes


def test_the_worst_mistakes_by_hand() -> None:
    labels = np.array([[1, 0], [0, 1], [0, 0]])
    predicted = np.array([[0.5, 0.1], [0.2, 0.01], [0.9, 0.3]])
    found = worst_mistakes(labels, predicted, 2)
    assert [(each.row, each.label) for each in found] == [(1, 1), (2, 0)]
    assert found[0].loss == pytest.approx(-np.log(0.01))


def test_hounsfield_units_are_shown_in_the_brain_window() -> None:
    image = np.array([[[1024], [1064], [1104]]], np.uint16)
    spec = ImageSpec(1, 3, 1, "uint16", -1024)
    assert gray_levels(image, spec).tolist() == [[0, 127.5, 255]]


def test_a_page_that_needs_nothing_else(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    assert main(["report", "--run", str(run), "--mistakes", "2"]) == 0
    page = (run / "report.html").read_text()
    HTMLParser().feed(page)
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == 6
    assert all(each.startswith("data:image/png;base64,") for each in sources)
    assert "Worst mistakes" in page
    assert "learning_rate" in page
    assert "P0_00" not in page


def test_a_run_that_is_not_complete(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "metrics.json").unlink()
    assert main(["report", "--run", str(run)]) == 2
    assert "training is not complete" in capsys.readouterr().err
