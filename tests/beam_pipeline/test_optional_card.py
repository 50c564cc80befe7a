"""A data card that cannot be made costs the card, and nothing else."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from beam_pipeline.__main__ import main
from beam_pipeline.card import pictures, tables
from beam_pipeline.card.__main__ import main as make_card
from beam_pipeline.workers import Watch

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning:apache_beam.*")


def die(task: Any, watch: Watch) -> None:
    """As when the kernel is short of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail(*_: Any) -> None:
    raise KeyError("Secret^Name")


@pytest.fixture
def argv(small_data_set: Path, tmp_path: Path) -> list[str]:
    where = {"input": small_data_set / "slices", "labels": small_data_set / "labels.csv"}
    how = {"output": tmp_path / "out", "image_size": 32, "folds": 2, "max_reject_fraction": 0.1}
    return [f"--{name}={value}" for name, value in (where | how).items()]


@pytest.mark.parametrize(
    ("module", "name", "failure", "why"),
    [(tables, "contents", fail, "KeyError"), (pictures, "view_slices", die, "WorkerFailed")],
)
def test_a_run_ends_well_without_its_card(
    argv: list[str],
    tmp_path: Path,
    module: Any,
    name: str,
    failure: Any,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(module, name, failure)
        assert main(argv) == 0
    said = [record.message for record in caplog.records if "data card" in record.message]
    command = f"python -m beam_pipeline.card --shards {output}"
    assert said == [f"The data card could not be made ({why}); {command} makes it."]
    assert f"Without a data card: {command} makes it" in capsys.readouterr().out
    assert json.loads((output / "manifest.json").read_text())["counts"]["written"] == 30
    assert not (output / "report.html").exists()
    assert not (output / ".unfinished").exists()
    assert make_card(["--shards", str(output)]) == 0
    assert (output / "report.html").exists()
    assert main(argv) == 0
    assert f"What is in them: {output}/report.html" in capsys.readouterr().out
