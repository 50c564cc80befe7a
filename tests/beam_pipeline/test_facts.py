"""Single facts of a card, and the command that repeats the run."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from beam_pipeline.card import facts
from beam_pipeline.command_line import parse_options
from beam_pipeline.images.windows import Window
from beam_pipeline.options import Options


def command_of(options: dict[str, Any], counts: dict[str, int]) -> str:
    return facts.command({"options": options, "counts": counts})


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
    told = facts.throughput({"run": RUN})
    assert told[0] == ("runner", "FlinkRunner")
    assert told[-1] == ("wall time", "0:01:02 from the first of 2 starts, pauses included")


@pytest.mark.parametrize("manifest", [{}, {"run": None}, {"run": RUN | {"seconds": "long"}}])
def test_a_run_that_was_not_recorded(manifest: dict[str, Any]) -> None:
    assert facts.throughput(manifest) == [("run", "not recorded")]
