import json
import platform
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from headct.page import LAYOUT
from tests.browser import DARK_PHONE, LIGHT_PHONE, VIEWS, faults_of_page
from tests.trainer.made_runs import MANY, make_run
from trainer.__main__ import main
from trainer.command_line import parse_arguments
from trainer.options import TrainOptions, run_identity
from trainer.report.report import link_data_card, training_command, write_report
from trainer.runs.run import Run


class Page(HTMLParser):
    """What a test asks of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def assert_well_formed(page: Page) -> None:
    ids = [each["id"] for _, each in page.tags if "id" in each]
    assert len(set(ids)) == len(ids)
    assert all(each.get("scope") in ("col", "row") for each in page.all("th"))
    assert all(each.get("alt") for each in page.all("img"))
    drawings = [each for each in page.all("div") if each.get("role") == "img"]
    assert all(re.search(r"\d", each.get("aria-label") or "") for each in drawings)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for landmark in ("header", "nav", "main", "footer"):
        assert len(page.all(landmark)) == 1
    targets = [each["href"] for each in page.all("a") if (each["href"] or "").startswith("#")]
    assert all((each or "")[1:] in ids for each in targets)


def test_a_page_that_needs_nothing_else(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    assert main(["report", "--run", str(run), "--mistakes", "2"]) == 0
    page = Page(run / "report.html")
    assert_well_formed(page)
    pictures = [each["src"] or "" for each in page.all("img")]
    assert len(pictures) == 4 + 3  # mistakes, hits, and the slices of three scans
    assert all(each.startswith("data:image/jpeg;base64,") for each in pictures)
    assert not page.all("script")
    assert "Worst mistakes" in page.text
    assert "Scans with the highest loss" in page.text
    assert "learning_rate" in page.text
    for identifier in ("P0_00", "S0_00", "ID_0_"):
        assert identifier not in page.text


def test_the_figures_of_a_page_are_scikit_learns(tmp_path: Path) -> None:
    setup = make_run(tmp_path / "run")
    write_report(setup, 0)
    page = Page(tmp_path / "run" / "report.html")
    frame = pd.read_parquet(tmp_path / "run" / "predictions-fold0.parquet")
    for name in ("upper", "lower"):
        auc = roc_auc_score(frame[f"label_{name}"], frame[f"probability_{name}"])
        assert f"ROC curve of {name}: area {auc:.3f} (" in page.text
        study = frame.groupby("study_id").max()
        by_study = roc_auc_score(study[f"label_{name}"], study[f"probability_{name}"])
        assert f"{by_study:.3f} <small>" in page.text
    assert "was chosen on fold0" in page.text
    assert "Only 30 studies" in page.text
    assert "Worst mistakes" not in page.text
    for identifier in ("SECRET", "STUDY_", "SERIES_", "ID_0"):
        assert identifier not in page.text


@pytest.fixture(scope="session")
def many_labels(made_once: Callable[..., Path]) -> Path:
    """The page of a run with 14 labels."""
    made = made_once("many", lambda run: write_report(make_run(run, MANY, patients=12), 0))
    return made / "report.html"


def test_many_labels_have_a_plot_each(many_labels: Path) -> None:
    page = Page(many_labels)
    assert_well_formed(page)
    for kind in ("ROC curve", "Precision-recall curve", "Calibration"):
        assert all(f"{kind} of {name}" in page.text for name in MANY)
    assert len(page.text) < 1_000_000


def test_labels_without_positives_and_a_single_patient(tmp_path: Path) -> None:
    # All slices are one patient's, who is well.
    setup = make_run(tmp_path / "run", patients=1, slices=40)
    path = setup.run.predictions("fold0")
    frame = pd.read_parquet(path)
    frame["label_upper"] = 0
    frame.to_parquet(path)
    write_report(setup, 0)
    page = Page(tmp_path / "run" / "report.html")
    assert_well_formed(page)
    assert "ROC curve of upper" not in page.text
    assert "n/a" in page.text
    assert not re.search(r"\bnan\b", page.text)


@pytest.mark.usefixtures("without_curves")
def test_other_shards_have_other_slices(tmp_path: Path) -> None:
    setup = replace(make_run(tmp_path / "run"), same_shards=False)
    write_report(setup, 3)
    assert "the shards are not those of the run" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.usefixtures("without_curves")
@pytest.mark.parametrize("trained_on", [False, 3, True, None])
def test_a_page_says_what_was_trained_on(tmp_path: Path, trained_on: bool | int | None) -> None:
    setup = make_run(tmp_path / "run")
    metrics = json.loads(setup.run.metrics.read_text())
    setup.run.metrics.write_text(json.dumps(metrics | {"trained_on": trained_on}))
    write_report(setup, 0)
    text = " ".join(Page(tmp_path / "run" / "report.html").text.split())
    unseen = trained_on is False
    assert ("which the model was not trained on" in text) == unseen
    assert ("fold0 was not trained on, but the epoch" in text) == unseen
    assert ("than guessing" in text) == unseen
    assert ("no verdict, since the run" in text) == (not unseen)
    assert ("fold0 was trained on, 3 of its 30 patients" in text) == (trained_on == 3)


def test_the_command_of_a_page_makes_the_run_again(finished: Path) -> None:
    run = Run(finished)
    words = shlex.split(training_command(run))
    assert words[:3] == ["python", "-m", "trainer"]
    options = parse_arguments(words[3:])
    assert isinstance(options, TrainOptions)
    assert run_identity(options) == dict(run.record.options)
    assert "--optimizer" not in words


def test_the_machine_of_a_run_that_was_trained(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "GiB, Linux" in page
    assert "not recorded" not in page
    assert re.search(r"<dt>Trained</dt><dd>\d{4}-\d\d-\d\d \d\d:\d\d UTC</dd>", page)
    assert platform.node() not in (finished / "machine.json").read_text()


@pytest.mark.usefixtures("without_curves")
def test_a_run_without_a_record_of_its_machine(tmp_path: Path) -> None:
    write_report(make_run(tmp_path / "run"), 0)
    assert "<dt>Machine</dt><dd>not recorded</dd>" in (tmp_path / "run/report.html").read_text()


def test_the_data_card_is_linked_where_there_is_one(tmp_path: Path) -> None:
    shards, run = tmp_path / "my shards", tmp_path / "runs" / "a"
    shards.mkdir()
    assert "none" in link_data_card(run, str(shards), shards)
    (shards / "report.html").touch()
    assert 'href="../../my%20shards/report.html"' in link_data_card(run, str(shards), shards)
    assert "href" not in link_data_card(run, "s3://bucket/shards", shards)


def test_text_and_lines_stand_out_in_both_color_schemes() -> None:
    styles = LAYOUT.read_text()
    light, dark = re.findall(r":root \{(.*?)\}", styles, flags=re.DOTALL)
    for scheme in (light, dark):
        colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", scheme))
        for paper in ("paper", "panel"):
            for text in ("ink", "muted", "link"):
                assert contrast(colors[text], colors[paper]) >= 4.5
        assert contrast(colors["caution"], colors["caution-panel"]) >= 4.5
        for number in range(1, 7):
            assert contrast(colors[f"series-{number}"], colors["paper"]) >= 3


def contrast(first: str, second: str) -> float:
    """The contrast ratio of WCAG 2.2."""

    def luminance(color: str) -> float:
        parts = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.system
def test_the_page_in_a_browser(finished: Path, many_labels: Path, full: bool) -> None:
    views = (VIEWS, VIEWS) if full else (LIGHT_PHONE, DARK_PHONE)
    for page, seen in zip((finished / "report.html", many_labels), views, strict=True):
        assert faults_of_page(page, views=seen, visible=["th:text('ROC AUC')"]) == []


def test_a_run_that_is_not_complete(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "metrics.json").unlink()
    assert main(["report", "--run", str(run)]) == 2
    assert "training is not complete" in capsys.readouterr().err
