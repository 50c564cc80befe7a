"""Which of the patients that a run is measured on it was trained on."""

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import trainer
from headct.errors import UsageError
from trainer.__main__ import main
from trainer.data.shards import read_shard_directory
from trainer.runs.trained_on import COMPARED_IDS, comparable_ids, hash_ids, read_trained_on

Rows = dict[str, list[dict[str, Any]]]
ORDINALS = {"identifiers": "ordinal", "image_id": "auto"}


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, which left fold0 out."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def renumbered(rows: list[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    """The same slices under other ids."""
    names = {name: f"other_{i}" for i, name in enumerate(dict.fromkeys(r[column] for r in rows))}
    return [row | {column: names[row[column]]} for row in rows]


def test_a_run_holds_hashes_of_what_it_was_trained_on(
    finished: Path, shards: Path, split_rows: Rows
) -> None:
    found = read_trained_on(finished / "trained_on.parquet")
    rows = [*split_rows["fold1"], *split_rows["fold2"]]
    digest = read_shard_directory(shards).digest()
    for name in COMPARED_IDS:
        expected = hash_ids([row[name] for row in rows], name, digest)
        assert sorted(found[name]) == sorted(expected)
    for path in finished.rglob("*"):
        if path.is_file() and not path.name.startswith("predictions-"):
            data = path.read_bytes()
            assert not any(row[name].encode() in data for row in rows for name in COMPARED_IDS)


def test_hashes_are_of_a_column_of_one_directory() -> None:
    one = hash_ids(["a", "b", "a"], "patient_id", "digest")
    assert one.dtype == np.uint64
    assert one[0] == one[2] != one[1]
    assert not {*one} & {*hash_ids(["a", "b"], "image_id", "digest")}
    assert not {*one} & {*hash_ids(["a", "b"], "patient_id", "other")}


# The folds of these shards have slices of these folds of the run's; what `trained_on` becomes, and
# how many patients of fold0 were trained on.
DEALT = {
    "other folds": ({"fold0": ["fold1"], "fold1": ["fold0"]}, True, 5),
    "mixed folds": ({"fold0": ["fold0", "fold1"], "fold1": ["fold2"]}, 5, 5),
    "other patients": ({"fold0": ["new"], "fold1": ["fold1"]}, False, 0),
    "the same fold": ({"fold0": ["fold0"], "fold1": ["new"]}, False, 0),
}


@pytest.mark.parametrize(
    ("case", "moved"),
    [
        pytest.param(case, moved, marks=[] if moved or case == "mixed folds" else pytest.mark.full)
        for case, moved in product(DEALT, (True, False))
    ],
)
def test_shards_that_were_dealt_anew(
    run: Path,
    split_rows: Rows,
    rows_maker: Callable[..., Any],
    shards_writer: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    case: str,
    moved: bool,
) -> None:
    """Whether they are named, or lie where the run's were."""
    splits, trained_on, patients = DEALT[case]
    rows = split_rows | {"new": rows_maker(12, 32, seed=77)}
    dealt = {name: [row for each in parts for row in rows[each]] for name, parts in splits.items()}
    other = shards_writer(tmp_path / "other", dealt)
    argv = ["evaluate", "--run", str(run)]
    if moved:
        argv += ["--shards", str(other)]
    else:
        description = json.loads((run / "run.json").read_text())
        description["shards"]["path"] = str(other)
        (run / "run.json").write_text(json.dumps(description))
    assert main(argv) == 0
    told = capsys.readouterr().out.replace("\n", " ")
    (path,) = run.glob("evaluation-fold0-*.json")
    found = json.loads(path.read_text())
    assert found["trained_on"] == trained_on
    assert isinstance(found["trained_on"], type(trained_on))
    assert found["overlap"]["patients"] == patients
    assert found["overlap"]["examples"] == 4 * patients
    assert ("fold0 was trained on" in told) == (trained_on is not False)
    assert (f"{patients} of its {found['patients']} patients" in told) == (trained_on == 5)
    assert ("than guessing" in told) == (trained_on is False)
    assert main(["predict", *argv[1:], "--shards", str(other), "--split", "fold0",
                 "--output", str(tmp_path / "p.csv")]) == 0  # fmt: skip
    said = "fold0: the run was trained on"
    assert (said in capsys.readouterr().out) == (trained_on is not False)


# Kinds of ids where the run was trained and in other shards of the same slices, whose patients have
# other ids there; whether that is found, and by what.
KINDS: dict[str, tuple[Any, Any, list[str] | None]] = {
    "ordinals": (ORDINALS, ORDINALS, ["image_id"]),
    "ordinals all": (ORDINALS | {"image_id": "ordinal"}, ORDINALS, None),
    "two keys": (
        {"identifiers": "hash", "identifier_key_check": "1", "image_id": "ordinal"},
        {"identifiers": "hash", "identifier_key_check": "2", "image_id": "ordinal"},
        None,
    ),
    "nothing known": ({}, {}, ["patient_id", "image_id"]),
}


@pytest.mark.parametrize("case", KINDS)
def test_ids_of_another_directory(
    run: Path,
    split_rows: Rows,
    shards_writer: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    there, here, by = KINDS[case]
    trained = shards_writer(tmp_path / "there", split_rows, options=there)
    description = json.loads((run / "run.json").read_text())
    data = read_shard_directory(trained).manifest
    description["shards"] |= {"patient_ids": data.patient_ids, "image_ids": data.image_ids}
    (run / "run.json").write_text(json.dumps(description))
    rows = renumbered(split_rows["fold1"], "patient_id")
    other = shards_writer(tmp_path / "other", {"fold0": rows}, options=here)
    assert main(["evaluate", "--run", str(run), "--shards", str(other)]) == 0
    told = capsys.readouterr().out.replace("\n", " ")
    (path,) = run.glob("evaluation-fold0-*.json")
    found = json.loads(path.read_text())
    if by is None:
        assert (found["trained_on"], found["overlap"]) == (None, None)
        assert "Whether the run was trained on patients of fold0 is not known" in told
    else:
        assert found["trained_on"] is True
        assert found["overlap"] == {"patients": 5, "examples": 20, "by": by}
        assert ("known by image_id alone" in told) == (by == ["image_id"])
    assert "than guessing" not in told


def made(patient_ids: str, image_ids: str) -> Any:
    return SimpleNamespace(digest="d", patient_ids=patient_ids, image_ids=image_ids)


@pytest.mark.parametrize(
    ("there", "here", "columns"),
    [
        (("keep", "file_name"), ("keep", "file_name"), ("patient_id",)),
        (("hash 1", "file_name"), ("hash 1", "ordinal"), ("patient_id",)),
        (("hash 1", "file_name"), ("hash 2", "file_name"), ("image_id",)),
        (("keep", "sop_instance_uid"), ("hash 1", "hash 1"), ()),
        (("ordinal", "file_name"), ("keep", "file_name"), ("image_id",)),
        (("ordinal", "ordinal"), ("ordinal", "ordinal"), ()),
        (("", ""), ("keep", "file_name"), ("patient_id", "image_id")),
        (("", ""), ("ordinal", "ordinal"), ()),
    ],
)
def test_which_ids_can_be_compared(
    shards: Path, there: tuple[str, str], here: tuple[str, str], columns: tuple[str, ...]
) -> None:
    digest = read_shard_directory(shards).digest
    manifest = SimpleNamespace(patient_ids=here[0], image_ids=here[1])
    other: Any = SimpleNamespace(digest=digest, manifest=manifest)
    assert comparable_ids(made(*there), other) == columns
    same = SimpleNamespace(digest=other.digest())
    assert comparable_ids(same, other) == COMPARED_IDS


def test_a_run_that_does_not_say_knows_its_own_shards_alone(
    run: Path,
    split_rows: Rows,
    shards_writer: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (run / "trained_on.parquet").unlink()
    other = shards_writer(tmp_path / "other", {"fold0": split_rows["fold1"]})
    cases = {
        "fold0": ([], False),
        "fold1": (["--split", "fold1"], True),
        "all": (["--split", "all"], True),
        f"fold0-{read_shard_directory(other).digest()[:8]}": (["--shards", str(other)], None),
    }
    for name, (flags, trained_on) in cases.items():
        assert main(["evaluate", "--run", str(run), *flags]) == 0
        found = json.loads((run / f"evaluation-{name}.json").read_text())
        assert (found["trained_on"], found["overlap"]) == (trained_on, None)
        told = capsys.readouterr().out
        assert ("than guessing" in told) == (trained_on is False)


def test_shards_without_ids_in_their_index_are_trained_on_all_the_same(
    edit_manifest: Callable[..., Path],
    tiny: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = edit_manifest()
    frame = pd.read_parquet(folder / "index.parquet").drop(columns="patient_id")
    (folder / "index.parquet").unlink()
    frame.to_parquet(folder / "index.parquet")
    flags = [f"--{name}={value}" for name, value in (tiny | {"epochs": 1}).items()]
    argv = ["train", "--shards", str(folder), "--run", str(tmp_path / "run"), *flags]
    assert main([*argv, "--no-report"]) == 0
    assert "evaluations will not know whom the run was trained on" in capsys.readouterr().out
    assert not (tmp_path / "run" / "trained_on.parquet").exists()
    assert main(["evaluate", "--run", str(tmp_path / "run")]) == 0


def test_the_training_of_a_run_that_was_continued_counts_too(
    run: Path, split_rows: Rows, shards_writer: Callable[..., Path], tmp_path: Path
) -> None:
    """And where that run is gone, nothing is known but what the later one was trained on."""
    nobody = read_trained_on(run / "trained_on.parquet").iloc[:0]
    origin = Path(shutil.copytree(run, tmp_path / "origin"))
    nobody.to_parquet(run / "trained_on.parquet", index=False)
    other = shards_writer(tmp_path / "other", {"fold0": split_rows["fold1"]})
    name = f"evaluation-fold0-{read_shard_directory(other).digest()[:8]}.json"
    description = json.loads((run / "run.json").read_text())

    def trained_on(continued: dict[str, str] | None) -> Any:
        changed = description | {"continued_from": continued}
        (run / "run.json").write_text(json.dumps(changed))
        assert main(["evaluate", "--run", str(run), "--shards", str(other)]) == 0
        return json.loads((run / name).read_text())["trained_on"]

    of_model = {"model_sha256": "0" * 64}
    assert trained_on(None) is False
    assert trained_on({"run": str(origin)} | of_model) is True
    assert trained_on({"run": str(run)} | of_model) is False
    assert trained_on({"run": str(tmp_path / "gone")} | of_model) is None
    (origin / "trained_on.parquet").rename(run / "trained_on.parquet")
    assert trained_on({"run": str(origin)} | of_model) is True


@pytest.mark.parametrize("says", [True, False])
def test_figures_of_a_run_that_continues_another(
    run: Path, shards: Path, tiny: dict[str, Any], tmp_path: Path, says: bool
) -> None:
    if not says:
        (run / "trained_on.parquet").unlink()
    kept = {name: tiny[name] for name in ("batch_size", "checkpoint_seconds")}
    options = {"shards": shards, "run": tmp_path / "on", "continue_from": str(run), "epochs": 1}
    metrics = trainer.train_run(**options, **kept, report=False)
    assert metrics["trained_on"] is (False if says else None)
    assert main(["evaluate", "--run", str(tmp_path / "on")]) == 0
    found = json.loads((tmp_path / "on" / "evaluation-fold0.json").read_text())
    assert found["trained_on"] is (False if says else None)


@pytest.mark.parametrize("content", [b"", b"PAR1", None])
def test_a_damaged_record_is_one_line(
    run: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "trained_on.parquet"
    if content is None:
        pd.DataFrame({name: ["a"] for name in COMPARED_IDS}).to_parquet(path)
    else:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"trained_on.parquet: "):
        read_trained_on(path)
    assert main(["evaluate", "--run", str(run)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
