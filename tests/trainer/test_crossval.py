import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from tests.trainer.test_odd_paths import ODD
from trainer.__main__ import main
from trainer.data.image_cache import CacheWriter
from trainer.training import crossval
from trainer.training.crossval import mean_and_spread, summarize, summary_table


def test_mean_and_spread_by_hand() -> None:
    assert mean_and_spread([1.0, None, 3.0]) == {"mean": 2.0, "deviation": pytest.approx(2**0.5)}
    assert mean_and_spread([1.0]) == {"mean": 1.0, "deviation": None}
    assert mean_and_spread([None]) == {"mean": None, "deviation": None}


FOLDS: list[dict[str, Any]] = [
    {
        "split": "fold0", "examples": 3, "best_epoch": 4, "weighted_log_loss": 0.25,
        "mean_roc_auc": 0.5, "mean_average_precision": 0.125, "labels": {},
    },
    {
        "split": "fold1", "examples": 1, "best_epoch": 7, "weighted_log_loss": 0.75,
        "mean_roc_auc": None, "mean_average_precision": None, "labels": {},
    },
]  # fmt: skip


@pytest.fixture
def summary(tmp_path: Path) -> dict[str, Any]:
    """Of two folds of two labels, and four slices of two patients."""
    setups = []
    for fold in FOLDS:
        path = tmp_path / f"{fold['split']}.json"
        path.write_text(json.dumps(fold))
        shards = SimpleNamespace(labels=("a", "any"))
        setups.append(
            SimpleNamespace(shards=shards, weights=(1, 3), run=SimpleNamespace(metrics=path))
        )
    columns = {
        "patient_id": ["p", "p", "q", "q"],
        "label_any": [1, 1, 0, 0], "label_a": [1, 0, 1, 0],
        "probability_any": [0.5] * 4, "probability_a": [0.75, 0.25, 0.75, 0.25],
    }  # fmt: skip
    made: Any = tuple(setups)
    return summarize(made, pd.DataFrame(columns))


def test_a_summary_by_hand(summary: dict[str, Any]) -> None:
    kept = ("examples", "best_epoch", "weighted_log_loss", "mean_roc_auc", "mean_average_precision")
    assert summary["folds"] == {
        fold["split"]: {name: fold[name] for name in kept} for fold in FOLDS
    }
    assert summary["over_folds"] == {
        "weighted_log_loss": {"mean": 0.5, "deviation": pytest.approx(0.125**0.5)},
        "mean_roc_auc": {"mean": 0.5, "deviation": None},
        "mean_average_precision": {"mean": 0.125, "deviation": None},
    }
    every = summary["out_of_fold"]
    # Each `a` costs log 4/3, each `any` log 2.
    expected = (np.log(4 / 3) + 3 * np.log(2)) / 4
    assert every["examples"] == 4
    assert every["weighted_log_loss"] == pytest.approx(expected)
    assert (every["labels"]["a"]["roc_auc"], every["labels"]["any"]["roc_auc"]) == (1, 0.5)
    assert every["intervals_95"]["patients"] == 2
    assert every["intervals_95"]["weighted_log_loss"] == pytest.approx([expected, expected])


def test_a_summarys_table(summary: dict[str, Any]) -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(summary_table(summary, "cv"))
    text = console.file.getvalue()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    assert text.startswith("cv ")
    heads = [cell.strip() for cell in text.splitlines()[2].split("┃")[1:-1]]
    assert heads == ["", "examples", "log loss", "mean ROC AUC", "mean avg. precision"]
    assert [row for row in rows if row] == [
        ["fold0", "3", "0.2500", "0.5000", "0.1250"],
        ["fold1", "1", "0.7500", "-", "-"],
        ["mean", "", "0.5000", "0.5000", "0.1250"],
        ["deviation", "", "0.3536", "-", "-"],
        ["out of fold, pooled", "4", "0.5918", "0.7500", "0.7500"],
    ]


def test_every_slice_is_answered_by_a_model_that_never_saw_it(
    edit_manifest: Callable[..., Path],
    shards: Path,
    tiny: dict[str, Any],
    split_rows: dict[str, list[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = tiny | {"epochs": 1, "image_size": 16, "cache": "disk"}
    flags = [f"--{name}={value}" for name, value in options.items()]
    splits = json.loads((shards / "manifest.json").read_text())["splits"]
    two = edit_manifest(splits={name: splits[name] for name in ("fold0", "fold1")})
    run = tmp_path / ODD
    argv = ["crossval", "--shards", str(two), "--run", str(run), *flags]
    made: set[Path] = set()

    def note(writer: CacheWriter, *arguments: Any) -> Any:
        cached = fill(writer, *arguments)
        assert writer.folder is not None
        made.update(writer.folder.glob("*-images.npy"))
        return cached

    fill = CacheWriter.fill
    monkeypatch.setattr(CacheWriter, "fill", note)
    assert main([*argv, "--no-report"]) == 0
    assert len(made) == 2, "one file a fold, for all runs together"
    assert not any(path.exists() for path in made)
    frame = pd.read_parquet(run / "out_of_fold.parquet")
    folds = [f"fold{i}" for i in range(2)]
    expected = {row["image_id"]: fold for fold in folds for row in split_rows[fold]}
    assert dict(zip(frame["image_id"], frame["split"], strict=True)) == expected
    summary = json.loads((run / "crossval.json").read_text())
    losses = []
    for fold in folds:
        described = json.loads((run / fold / "run.json").read_text())
        assert described["options"]["fold"] == int(fold[4:])
        metrics = json.loads((run / fold / "metrics.json").read_text())
        losses.append(metrics["weighted_log_loss"])
    over = summary["over_folds"]["weighted_log_loss"]
    assert over["mean"] == pytest.approx(np.mean(losses))
    assert over["deviation"] == pytest.approx(np.std(losses, ddof=1))
    assert summary["out_of_fold"]["examples"] == 41
    assert summary["out_of_fold"]["pooled_over"] == 2
    told = capsys.readouterr().out
    assert "pooled over all networks" in " ".join(told.split())
    assert f"\n{run}\n" in told
    (line,) = (line for line in told.splitlines() if line.startswith("Next: "))
    compare = ["Next:", "python", "-m", "trainer", "compare", "--runs"]
    assert shlex.split(line) == [*compare, str(run)]
    # More runs than `compare` has colors for: another next step.
    monkeypatch.setattr(crossval, "SERIES", crossval.SERIES[:1])
    assert main([*argv, "--no-report"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(line)[-3:] == ["evaluate", "--run", str(run)]
