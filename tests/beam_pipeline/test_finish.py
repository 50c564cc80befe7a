"""The last step of a run: refusals, a second look at rejected files, and the card."""

import fcntl
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beam_pipeline.__main__ import main
from beam_pipeline.card import card, pictures, tables
from beam_pipeline.card.__main__ import main as make_card
from beam_pipeline.errors import AlreadyComplete, Refusal, TooManyRejects
from beam_pipeline.finish import check_rejections, finish_directory
from beam_pipeline.options import Options
from beam_pipeline.planning.inventory import inspect_part, list_parts
from beam_pipeline.planning.plan_shards import plan_shards
from beam_pipeline.shards.manifest import encode_rejects
from beam_pipeline.shards.unfinished import Plan, ShardResult, Unfinished
from beam_pipeline.workers import Watch
from headct.errors import OutputError, StoreError
from headct.layout import REFUSAL, written_table
from headct.reasons import Reason
from headct.stores import find_input
from tests.beam_pipeline.card_page import Page
from tests.beam_pipeline.steps import write_whole


def test_a_directory_that_another_run_completed_keeps_nothing_of_this_one(tmp_path: Path) -> None:
    """Its workers may have been ended in the middle of a shard."""
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / ".unfinished").mkdir()
    (tmp_path / ".unfinished" / "plan.json").write_text("{}")
    abandoned, alive = (tmp_path / f".ich-test.{name * 8}.partial" for name in ("dead", "a11e"))
    abandoned.write_bytes(b"half")
    with alive.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        finish_directory(AlreadyComplete("complete"), Options.of(input="in", output=str(tmp_path)))
        assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", alive.name}


def test_a_run_that_failed_leaves_word_of_why_and_fails_its_job(tmp_path: Path) -> None:
    options = Options.of(input="in", output=str(tmp_path))
    for _ in range(2):  # a runner tries again
        with pytest.raises(Refusal, match="s3://bucket: gone; the same command resumes") as caught:
            finish_directory(StoreError("s3://bucket", "gone"), options)
        assert caught.value.exit_code == 5
        (refusal,) = tmp_path.rglob("*.json")
        assert json.loads(refusal.read_text()) == {"exit_code": 5, "message": str(caught.value)}


def test_an_output_that_cannot_be_written_fails_the_job_too(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    options = Options.of(input="in", output=str(tmp_path / "out"))
    with pytest.raises(Refusal, match="8 of 9 shards were written"):
        finish_directory(OutputError("8 of 9 shards were written"), options)


REJECTS = [
    {"source": "b.dcm", "image_id": "b", "reason": "label_missing", "detail": ""},
    {"source": "<i>a</i>.dcm", "image_id": "a", "reason": "label_missing", "detail": ""},
    {"source": "c.dcm", "image_id": "c", "reason": "of another version", "detail": "<b>"},
]


def refuse(folder: Path) -> str:
    """End a run by too many rejects; what is told of it."""
    (folder / "rejects.jsonl").write_bytes(encode_rejects(REJECTS))
    error = TooManyRejects(5, {"label_missing": 2, "of another version": 1}, 0.1, "See there")
    with pytest.raises(Refusal):
        finish_directory(error, Options.of(input="in", output=str(folder)))
    told = json.loads((folder / ".unfinished" / "refusal.json").read_text())
    assert told["exit_code"] == 3
    return str(told["message"])


def test_a_page_explains_why_files_were_rejected(tmp_path: Path) -> None:
    assert ". See there, and report.html explains each reason; correct" in refuse(tmp_path)
    shown = Page.read(tmp_path / "report.html")
    assert shown.title == "Refused: 3 of 5 files were rejected"
    assert "it has no manifest.json" in shown.text
    (table,) = shown.tables.values()
    assert table.rows == {
        "label_missing": ["2", "40 %", "<i>a</i>.dcm", "", Reason.LABEL_MISSING.advice],
        "of another version": ["1", "20 %", "c.dcm", "<b>", ""],
    }


def test_a_page_that_cannot_be_made_changes_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "render_refused", None)
    assert ". See there; correct" in refuse(tmp_path)
    assert not (tmp_path / "report.html").exists()


# Files that were rejected are looked at once more before a run says that it is complete

WriteSlice = Callable[..., Path]


@pytest.fixture
def options(tmp_path: Path, write_slice: WriteSlice) -> Options:
    for number in range(4):
        write_slice(tmp_path / "in" / f"ID_{number}.dcm", PatientID=f"p{number}")
    return Options.of(
        input=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        image_size=32,
        max_reject_fraction=0.9,
        storage_patience=1,
    )


def make_plan(options: Options, before_headers: Callable[[], object] = lambda: None) -> Plan:
    assert [*list_parts(options)] == [4]
    before_headers()
    inspect_part(0, Watch(), options=options)
    return plan_shards(1, options)


def look(options: Options, plan: Plan) -> None:
    unfinished = Unfinished(options.files.folder)
    results = [ShardResult.of(unfinished.read(written_table(shard))) for shard in plan.shards]
    check_rejections(unfinished, plan, results, find_input(options.files.input, 1.0))


def reasons(options: Options, plan: Plan) -> list[str]:
    index = Unfinished(options.files.folder).read(written_table(plan.shards[0]))
    return [row["reason"] for row in ShardResult.of(index).rejects]


BACK = "1 files came back or changed during the run; the same command resumes$"


@pytest.mark.parametrize("back", [True, False])
@pytest.mark.parametrize("stage", ["headers", "shards"])
def test_a_file_that_is_back_is_not_rejected(options: Options, stage: str, back: bool) -> None:
    path = Path(options.files.input, "ID_2.dcm")
    hidden = path.with_name(".away")
    plan = make_plan(options, lambda: path.rename(hidden) if stage == "headers" else None)
    if stage == "shards":
        path.rename(hidden)
    write_whole(0, options)
    if not back:
        look(options, plan)
        return
    hidden.rename(path)
    with pytest.raises(StoreError, match=f"^{options.files.input}: {BACK}"):
        look(options, plan)


def test_parts_behind_skipped_files_are_looked_at(
    options: Options, tmp_path: Path, write_slice: WriteSlice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beam_pipeline.planning.inventory._SMALLEST_PART", 2)
    labeled = [f"ID_{number}" for number in range(2, 6)]
    for name in labeled[2:]:
        write_slice(tmp_path / "in" / f"{name}.dcm", PatientID=name)
    (tmp_path / "labels.csv").write_text(
        "".join(["image_id,any\n", *(f"{n},1\n" for n in labeled)])
    )
    options = options.changed(labels=str(tmp_path / "labels.csv"), unlabeled="skip", folds=2)
    assert [*list_parts(options)] == [2, 2, 2]
    path = Path(options.files.input, "ID_5.dcm")
    hidden = path.rename(path.with_name(".away"))
    for part in range(3):
        inspect_part(part, Watch(), options=options)
    hidden.rename(path)
    plan = plan_shards(3, options)
    assert (plan.files_seen, plan.skipped) == (4, 2)
    unfinished, files = Unfinished(options.files.folder), find_input(options.files.input, 1.0)
    with pytest.raises(StoreError, match=BACK):
        check_rejections(unfinished, plan, [], files)


def test_faults_of_a_sample_are_a_fraction_of_the_sample(options: Options) -> None:
    options = options.changed(max_patients=2, max_reject_fraction=0.3)
    plan = make_plan(options)
    assert (plan.files_seen, plan.not_sampled, plan.slices) == (4, 2, 2)
    # Of four files, it would be a quarter.
    write_whole(0, options, Watch({0: Reason.DECODER_CRASHED}))
    with pytest.raises(Refusal, match=r"^1 of 2 files were rejected"):
        finish_directory(len(plan.shards), options)


def test_a_run_whose_files_are_back_is_not_complete(options: Options) -> None:
    path = Path(options.files.input, "ID_2.dcm")
    plan = make_plan(options)
    hidden = path.rename(path.with_name(".away"))
    write_whole(0, options)
    hidden.rename(path)
    with pytest.raises(Refusal, match=BACK):
        finish_directory(len(plan.shards), options)
    refusal = json.loads(Path(options.files.output, REFUSAL).read_text())
    assert refusal["exit_code"] == 5
    assert not Path(options.files.output, "manifest.json").exists()
    plan = make_plan(options)
    write_whole(0, options)
    look(options, plan)
    assert reasons(options, plan) == []


def test_a_folder_that_is_away_then_is_waited_for(options: Options) -> None:
    path = Path(options.files.input, "ID_2.dcm")
    plan = make_plan(options)
    path.unlink()
    write_whole(0, options)
    path.parent.rename(path.parent.with_name("away"))
    with pytest.raises(StoreError, match="no answer for 1 s"):
        look(options, plan)


def test_a_file_that_became_another_slice_ends_the_run(
    options: Options, write_slice: WriteSlice
) -> None:
    plan = make_plan(options)
    write_slice(Path(options.files.input, "ID_2.dcm"), PatientID="another")
    write_whole(0, options)
    assert reasons(options, plan) == ["changed"]
    with pytest.raises(StoreError, match=BACK):
        look(options, plan)


def test_a_file_that_was_caught_while_it_was_copied_again_is_not_rejected(
    options: Options,
) -> None:
    path = Path(options.files.input, "ID_2.dcm")
    whole, times = path.read_bytes(), path.stat()
    plan = make_plan(options)
    path.write_bytes(whole[:-100])
    write_whole(0, options)
    assert reasons(options, plan) == ["truncated_pixels"]
    path.write_bytes(whole)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(StoreError, match=BACK):
        look(options, plan)
    assert make_plan(options) == plan
    write_whole(0, options)
    assert reasons(options, plan) == []
    look(options, plan)


@pytest.mark.parametrize("reason", [Reason.DECODER_CRASHED, Reason.DECODER_TIMED_OUT])
def test_what_no_look_can_tell_stays(options: Options, reason: Reason) -> None:
    plan = make_plan(options)
    write_whole(0, options, Watch({1: reason}))
    assert reasons(options, plan) == [reason]
    look(options, plan)


def test_what_lasts_stays(options: Options) -> None:
    folder = Path(options.files.input)
    for number in (1, 2, 3):
        (folder / f"ID_{number}.dcm").unlink()
    (folder / "ID_1.dcm").symlink_to("/absent/folder/file")
    os.mkfifo(folder / "ID_2.dcm")
    (folder / "ID_3.dcm").write_bytes(b"text")
    plan = make_plan(options)
    write_whole(0, options)
    look(options, plan)


def test_a_link_that_leads_to_a_folder_now_is_a_folder(options: Options, tmp_path: Path) -> None:
    path = Path(options.files.input, "ID_2.dcm")
    path.unlink()
    path.symlink_to(tmp_path / "disk")
    plan = make_plan(options)
    write_whole(0, options)
    look(options, plan)
    (tmp_path / "disk").mkdir()
    with pytest.raises(StoreError, match=BACK):
        look(options, plan)


# A data card that cannot be made costs the card, and nothing else

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
    # In a directory of an earlier version; edited descriptions are kept.
    described = (output / "README.md").read_bytes()
    (output / "README.md").unlink()
    (output / "croissant.json").write_text("edited")
    assert make_card(["--shards", str(output)]) == 0
    assert (output / "report.html").exists()
    assert (output / "README.md").read_bytes() == described
    assert (output / "croissant.json").read_text() == "edited"
    assert main(argv) == 0
    assert f"What is in them: {output}/report.html" in capsys.readouterr().out
