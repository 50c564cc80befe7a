import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from trainer.__main__ import main
from trainer.data.image_cache import fill_cache
from trainer.training.crossval import mean_and_spread


def test_mean_and_spread_by_hand() -> None:
    assert mean_and_spread([1.0, None, 3.0]) == {"mean": 2.0, "deviation": pytest.approx(2**0.5)}
    assert mean_and_spread([1.0]) == {"mean": 1.0, "deviation": None}
    assert mean_and_spread([None]) == {"mean": None, "deviation": None}


def test_every_slice_is_answered_by_a_model_that_never_saw_it(
    edit_manifest: Callable[..., Path],
    shards: Path,
    tiny: dict[str, Any],
    split_rows: dict[str, list[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = tiny | {"epochs": 1, "image_size": 16, "cache": "disk"}
    flags = [f"--{name}={value}" for name, value in options.items()]
    splits = json.loads((shards / "manifest.json").read_text())["splits"]
    two = edit_manifest(splits={name: splits[name] for name in ("fold0", "fold1")})
    argv = ["crossval", "--shards", str(two), "--run", str(tmp_path / "cv"), *flags]
    made: set[Path] = set()

    def note(splits: Any, image: Any, size: int, folder: Path, on_image: Any) -> Any:
        cached = fill_cache(splits, image, size, folder, on_image)
        made.update(folder.glob("*-images.npy"))
        return cached

    monkeypatch.setattr("trainer.training.feeds.fill_cache", note)
    assert main([*argv, "--no-report"]) == 0
    assert len(made) == 2, "one file a fold, for all runs together"
    assert not any(path.exists() for path in made)
    frame = pd.read_parquet(tmp_path / "cv" / "out_of_fold.parquet")
    folds = [f"fold{i}" for i in range(2)]
    expected = {row["image_id"]: fold for fold in folds for row in split_rows[fold]}
    assert dict(zip(frame["image_id"], frame["split"], strict=True)) == expected
    summary = json.loads((tmp_path / "cv" / "crossval.json").read_text())
    losses = []
    for fold in folds:
        run = tmp_path / "cv" / fold
        assert json.loads((run / "run.json").read_text())["options"]["fold"] == int(fold[4:])
        losses.append(json.loads((run / "metrics.json").read_text())["weighted_log_loss"])
    over = summary["over_folds"]["weighted_log_loss"]
    assert over["mean"] == pytest.approx(np.mean(losses))
    assert over["deviation"] == pytest.approx(np.std(losses, ddof=1))
    assert summary["out_of_fold"]["examples"] == 41
