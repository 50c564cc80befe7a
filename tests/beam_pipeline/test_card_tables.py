"""Tables and facts of a card, the slices that it shows, and the command that repeats the run."""

import io
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from beam_pipeline.card import tables
from beam_pipeline.card.card import MOST_EXAMPLES, SAMPLED, choose
from beam_pipeline.command_line import parse_options
from beam_pipeline.options import Options
from beam_pipeline.shards.formats import index_table, write_index
from headct.windows import Window


def command_of(options: dict[str, Any], counts: dict[str, int]) -> str:
    return tables.command({"options": options, "counts": counts})


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--windows", "brain,stroke:41:39.5,dicom", "--voi", "linear", "--hu_repair", "off"],
        ["--hu", "--identifiers", "keep", "--image_id", "sop_instance_uid", "--seed", "7"],
        ["--labels", "there", "--label_columns", "a b,c", "--id_column", "x", "--holdout", "0.25"],
        ["--labels", "there", "--label_columns", '$a b,"c, ""d"""'],
        ["--folds_from", "there", "--group_by", "study", "--leak_check", "off", "--folds", "3"],
    ],
)
def test_the_command_of_a_card_gives_the_same_options(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options, _ = parse_options(["--input", "there", "--output", "out", *argv])
    command = command_of(options.recorded(), {"rejected": 0, "files_seen": 1})
    for place in ("$INPUT", "$LABELS", "$FOLDS_FROM"):
        command = command.replace(f'"{place}"', "there")
    words = shlex.split(command.replace("$OUTPUT", "out"))
    again, _ = parse_options(words[words.index("beam_pipeline") + 1 :])
    assert again.recorded() == options.recorded()


def test_as_many_rejects_are_allowed_as_there_were() -> None:
    recorded = Options.of(input="in", output="out").recorded()
    assert command_of(recorded, {"rejected": 30, "files_seen": 269}).endswith(
        "--max_reject_fraction 0.12"
    )


def test_the_key_of_hashes_is_asked_for_and_not_told() -> None:
    recorded = Options.of(input="in", output="out").recorded() | {"identifiers": "hash"}
    recorded["identifier_key_check"] = "0123456789"
    command = command_of(recorded, {"rejected": 0, "files_seen": 1})
    assert '--identifier_key_file "$KEY_FILE"' in command
    assert "0123456789" not in command


def test_windows_of_the_manifest_are_those_of_the_command() -> None:
    recorded = Options.of(
        input="in", output="out", windows=(Window("brain", 41.0, 80.0),)
    ).recorded()
    command = command_of(recorded, {"rejected": 0, "files_seen": 1})
    assert "--windows brain:41.0:80.0" in command


RUN = {"runner": "FlinkRunner", "started": "2026-11-30", "starts": 2, "seconds": 62.2}


def test_a_resumed_run_shows_its_pauses() -> None:
    told = tables.throughput({"run": RUN})
    assert told[0] == ("runner", "FlinkRunner")
    assert told[-1] == ("wall time", "0:01:02 from the first of 2 starts, pauses included")


@pytest.mark.parametrize("manifest", [{}, {"run": None}, {"run": RUN | {"seconds": "long"}}])
def test_a_run_that_was_not_recorded(manifest: dict[str, Any]) -> None:
    assert tables.throughput(manifest) == [("run", "not recorded")]


def index_of(rows: int, positives: dict[str, int], repaired: int = 0) -> pd.DataFrame:
    """So many rows, of which the first ones have each label."""
    repair = pd.Series(["shift"] * repaired + ["none"] * (rows - repaired), dtype="category")
    labels = {f"label_{name}": np.arange(rows) < number for name, number in positives.items()}
    return pd.DataFrame({"repair": repair} | labels).astype(dict.fromkeys(labels, "int8"))


def test_the_same_slices_are_chosen_again() -> None:
    index = index_of(10_000, {"a": 50, "b": 400, "c": 3000}, repaired=9)
    first = choose(index, ["a", "b", "c"], seed=3)
    assert first == choose(index, ["a", "b", "c"], seed=3)
    assert first != choose(index, ["a", "b", "c"], seed=4)
    groups = first.examples
    assert list(groups) == ["a", "b", "c", "no label", "repair: shift"]
    assert [len(rows) for rows in groups.values()] == [2, 2, 2, 2, 1]
    assert all(row < 50 for row in groups["a"])
    assert all(row >= 3000 for row in groups["no label"])
    assert len(first.sample) == SAMPLED
    assert len(first.repaired) == 4


def test_no_slice_stands_for_two_labels_unless_it_must() -> None:
    groups = choose(index_of(6, {"a": 2, "b": 4, "c": 6}), ["a", "b", "c"], seed=0).examples
    assert groups == {"a": [0, 1], "b": [2, 3], "c": [4, 5]}
    groups = choose(index_of(2, {"a": 1, "b": 1}), ["a", "b"], seed=0).examples
    assert groups == {"a": [0], "b": [0], "no label": [1]}


@pytest.mark.parametrize("labels", [1, 6, 14, 200])
def test_few_files_are_read_however_many_labels_there_are(labels: int) -> None:
    names = [f"label{number}" for number in range(labels)]
    choice = choose(index_of(20_000, dict.fromkeys(names, 5000), 1000), names, seed=0)
    assert len(choice.examples) == min(labels + 1, MOST_EXAMPLES) + 1
    assert sum(map(len, choice.examples.values())) <= MOST_EXAMPLES + 1
    assert len(choice.rows) <= 48


def test_unlabeled_slices_are_shown_too() -> None:
    choice = choose(index_of(3, {}), [], seed=0)
    assert choice.examples == {"slices": [0, 1, 2]}
    assert choice.sample == [0, 1, 2]


def test_totals_of_rows_by_hand() -> None:
    row = {"image_id": "i", "shard": "s", "record": 0, "offset": 0, "bytes": 1, "rows": 8}
    row |= {"image_offset": 0, "image_bytes": 1, "row_spacing": 0.5, "column_spacing": 0.5}
    row |= {"columns": 9, "transfer_syntax": "1.2", "resized": False, "source": "a"}
    places = [("p0", "t0", "fold1", 0.0), ("p0", "t1", "fold1", 5.0), ("p1", "t2", "fold0", None)]
    places += [("p0", "t0", "fold1", 2.5), ("p0", "t0", "fold1", 10.0), ("p0", "t0", "fold1", 2.5)]
    marks = [(1, 0), (1, 1), (0, 0), (0, 1), (-1, -1), (0, 0)]
    rows: list[dict[str, Any]] = [
        row
        | {"patient_id": patient, "study_id": study, "series_id": study, "split": split}
        | {"position_z": position, "label_a": a, "label_b": b, "repair": "none"}
        for (patient, study, split, position), (a, b) in zip(places, marks, strict=True)
    ]
    rows[3]["repair"] = "shift"
    file = io.BytesIO()
    write_index(file, [index_table(rows, ["a", "b"])], ["a", "b"])
    counted = {"label_counts": {"a": 1, "b": 1}, "bytes": 1000}
    splits = {
        name: counted | {"examples": number, "shards": [counted | {"examples": number}]}
        for name, number in (("fold0", 1), ("fold1", 5))
    }
    written = {"written": 6, "rejected": 0, "files_seen": 6, "resized": 0, "repaired": {}}
    identical = ("groups", "slices", "groups_across_patients", "groups_with_conflicting_labels")
    image = {"height": 8, "width": 9, "channels": 1, "dtype": "uint8"}
    manifest = {"labels": ["a", "b"], "splits": splits, "image": image, "digest": "", "created": ""}
    manifest |= {"counts": written | {"identical_pixels": dict.fromkeys(identical, 0)}}
    manifest |= {"software": {}, "options": {"leak_check": "join"}}
    values = tables.contents(manifest, tables.read_index(file, ["a", "b"]), [], [])
    assert values["labeled"]
    assert values["splits"][0].rows == [
        ["fold0", "1", "1", "1", "1", "1", "1.0 kB"],
        ["fold1", "1", "2", "2", "5", "1", "1.0 kB"],
    ]
    by_label, pairs = values["labels"]
    assert [[row[0], row[1], *row[3:]] for row in by_label.rows] == [
        ["a", "2", "2", "1 (50 %)"],
        ["b", "2", "2", "1 (50 %)"],
        ["no label", "2", "", ""],
    ]
    assert [[re.sub("<[^>]+>", "", cell) for cell in row] for row in pairs.rows] == [
        ["a", "2", "1 50 %"],
        ["b", "1 50 %", "2"],
    ]
    geometry = dict(values["geometry"])
    assert geometry["slices per study"] == "median 1 (half of them 1 to 2.5, all 1 to 4)"
    assert geometry["distance of slices"].startswith("5 mm, all")  # of 2.5 and 7.5
    assert geometry["pixel spacing"].startswith("0.5 mm, all the same")
    assert {table.caption: table.rows for table in values["kinds"]} == {
        "Matrix sizes of the files": [["8 x 9", "6", "100 %"]],
        "Transfer syntaxes of the files": [["1.2 (1.2)", "6", "100 %"]],
        "Distances of slices": [["5 mm", "1", "100 %"]],
    }
