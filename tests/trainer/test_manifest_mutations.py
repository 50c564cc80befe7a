"""Manifests and run directories with one value wrong: refused in one line, and nothing else.

What is opened meanwhile is seen by an audit hook, which Python calls at every `open`.
"""

import copy
import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headct.errors import UsageError
from trainer.data.shards import read_shard_directory
from trainer.options import (
    CrossvalOptions,
    EvaluateOptions,
    ExportOptions,
    PredictOptions,
    TrainOptions,
)
from trainer.runs.evaluation_setup import prepare_evaluation, prepare_export
from trainer.runs.training_setup import prepare_crossval, prepare_training

MUTANTS, ALL_MUTANTS = 500, 2000
RUNS, ALL_RUNS = 100, 400
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 3.5, 1.0, 10**30, -(10**400), 1e300, float("nan"), float("inf"),
    "", "x", "0", "../other/x", "/etc/passwd", "gs://b/x", "a\\b", "a\nb", "\x00", "\ud800",
    "é" * 400,
    [], [[]], [None], {}, {"a": 1}, {"": None}, ["a", "a"], "fold0",
]  # fmt: skip
Place = tuple[str | int, ...]


class Opened:
    """The paths that are opened while it is told to listen."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.listens = False
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.listens and event == "open" and isinstance(arguments[0], str):
            self.paths.add(arguments[0])


@pytest.fixture(scope="module")
def opened() -> Opened:
    return Opened()


@pytest.fixture
def listening(opened: Opened) -> Iterator[Opened]:
    opened.paths.clear()
    opened.listens = True
    yield opened
    opened.listens = False


def places(value: Any, place: Place = ()) -> list[Place]:
    """All places in a document but the document itself."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    found = []
    for key, each in items:
        found += [(*place, key), *places(each, (*place, key))]
    return found


def mutate(document: Any, chosen: random.Random) -> Any:
    """A copy with one value removed, changed or renamed."""
    mutant = copy.deepcopy(document)
    *parents, last = chosen.choice(places(document))
    holder = mutant
    for key in parents:
        holder = holder[key]
    what = chosen.random()
    if what < 0.2:
        del holder[last]
    elif what < 0.3 and isinstance(holder, dict):
        holder[str(chosen.choice(ODD))] = holder.pop(last)
    elif what < 0.4 and isinstance(holder[last], int | float):
        holder[last] += chosen.choice([-1, 1, 0.5, -(10**6), 10**9])
    elif what < 0.5 and isinstance(holder, list):
        holder.append(holder[last])
    else:
        holder[last] = copy.deepcopy(chosen.choice(ODD))
    return mutant


def refusals(actions: list[Callable[[], Any]]) -> list[str]:
    """What the actions refuse with; any other error is one of the test."""
    found = []
    for action in actions:
        try:
            action()
        except UsageError as error:
            found.append(str(error))
    return found


@pytest.fixture
def directory(shards: Path, tmp_path: Path) -> Path:
    """A copy whose manifest has what the pipeline's has, beside a folder that is not ours."""
    folder = Path(shutil.copytree(shards, tmp_path / "ich"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {"index.parquet": {"bytes": 1, "sha256": "0" * 64}}
    manifest["options"] = {"folds": 3, "windows": manifest["windows"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_bytes(b"secret")
    return folder


def assert_opened_in(opened: Opened, *folders: Path) -> None:
    trainer = Path(__file__).parents[2] / "trainer"
    own = tuple(str(each) for each in (*folders, trainer, sys.prefix, sys.base_prefix))
    # Where a folder is, or is to be made: there it is tried whether it can be written.
    around = {str(each.parent) for each in folders}
    assert not [path for path in opened.paths - around if not path.startswith(own)]


def test_a_manifest_with_one_value_wrong(
    directory: Path,
    finished: Path,
    tmp_path: Path,
    tiny: dict[str, Any],
    listening: Opened,
    full: bool,
) -> None:
    mutants = ALL_MUTANTS if full else MUTANTS
    original = json.loads((directory / "manifest.json").read_text())
    chosen, run = random.Random(20191), tmp_path / "run"
    text = str(directory)
    train = TrainOptions(shards=text, run=run, **tiny)
    crossval = CrossvalOptions(shards=text, run=run, **tiny)
    predict = PredictOptions(shards=text, run=finished, output=tmp_path / "out" / "s.csv")
    actions: list[Callable[[], Any]] = [
        lambda: read_shard_directory(directory),
        lambda: prepare_training(train),
        lambda: prepare_evaluation(predict),
        lambda: prepare_crossval(crossval),
    ]
    assert refusals(actions) == []
    refused = 0
    for number in range(mutants):
        (directory / "manifest.json").write_text(json.dumps(mutate(original, chosen)))
        # To prepare a training is to read the directory, too.
        found = refusals(actions if number % 10 == 0 else actions[1:2])
        assert all(len(line.splitlines()) == 1 and line.isprintable() for line in found), found
        refused += bool(found)
    assert mutants / 2 < refused < mutants
    listening.paths.discard(str(tmp_path))  # whether it can be written
    assert_opened_in(listening, directory, finished, predict.output.parent)


def names_a_bucket(description: Any) -> bool:
    """Whether the shards are said to be somewhere that this test should not ask."""
    return "://" in str(description.get("shards"))


def test_a_run_directory_with_one_value_wrong(
    finished: Path, shards: Path, tmp_path: Path, listening: Opened, full: bool
) -> None:
    runs = ALL_RUNS if full else RUNS
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    description = json.loads((run / "run.json").read_text())
    temperatures = {"upper": 1.5, "lower": {"temperature": 0.5, "bias": -1}, "any": 1}
    tiny = {name: description["options"][name] for name in ("model", "weights", "batch_size")}
    train = TrainOptions(shards=str(shards), run=run, **tiny)
    chosen = random.Random(7)
    actions: list[Callable[[], Any]] = [
        lambda: prepare_evaluation(EvaluateOptions(run=run, shards=str(shards), temperature=True)),
        lambda: prepare_export(
            ExportOptions(run=run, output=tmp_path / "export", temperature=True)
        ),
        lambda: prepare_training(train),
        lambda: prepare_evaluation(EvaluateOptions(run=run)),
    ]
    refused = 0
    listening.paths.clear()
    for number in range(runs):
        documents = {"run.json": description, "temperatures.json": temperatures}
        name = "run.json" if number % 4 else "temperatures.json"
        documents[name] = mutate(documents[name], chosen)
        for each, content in documents.items():
            (run / each).write_text(json.dumps(content))
        found = refusals(actions[:3] if names_a_bucket(documents["run.json"]) else actions)
        assert all(len(line.splitlines()) == 1 for line in found), found
        refused += len(found)
    assert refused > runs
    # Where run.json says that the shards are, a shard directory is looked for; no more.
    looked = {path for path in listening.paths if path.endswith("/manifest.json")}
    listening.paths -= looked | {str(tmp_path)}  # whether it can be written
    assert_opened_in(listening, run, shards)
