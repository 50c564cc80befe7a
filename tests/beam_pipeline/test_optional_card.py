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
from beam_pipeline.errors import AlreadyComplete
from beam_pipeline.finish import card_optional, may_try_card
from beam_pipeline.workers import Watch
from headct.errors import OutputError, StoreError, UsageError
from headct.stores import Folder

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


def test_a_card_that_ends_its_process_is_tried_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Folder(str(tmp_path))
    folder.write("report.html", b"of a refused run")
    assert may_try_card(folder)
    assert not folder.exists("report.html")
    assert may_try_card(folder)
    assert caplog.messages == []
    assert not may_try_card(folder)
    assert not may_try_card(folder)
    assert caplog.messages == 2 * [
        "The data card could not be made (the processes that made it ended); "
        f"python -m beam_pipeline.card --shards {tmp_path} makes it."
    ]


def test_a_damaged_count_begins_again(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write(".unfinished/card_attempts", b"\x00")
    assert may_try_card(folder)
    assert folder.read(".unfinished/card_attempts") == b"1"


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (StoreError("s3://out", "gone"), True),
        (OutputError("cannot write report.html: No space left on device"), True),
        (AlreadyComplete("out"), True),
        (UsageError("a shard is missing or damaged"), False),
        (MemoryError(), False),
        (RecursionError(), False),
        (OSError("input"), False),
    ],
)
def test_only_the_output_ends_the_run(tmp_path: Path, error: Exception, passes: bool) -> None:
    folder = Folder(str(tmp_path))
    if not passes:
        with card_optional(folder):
            raise error
        return
    with pytest.raises(type(error)), card_optional(folder):
        raise error


def test_an_interruption_is_none_of_the_cards(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), card_optional(Folder(str(tmp_path))):
        raise KeyboardInterrupt
