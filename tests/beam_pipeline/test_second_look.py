"""Files that were rejected are looked at once more before a run says that it is complete."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from beam_pipeline.errors import Refusal
from beam_pipeline.finish import check_rejections, finish_directory
from beam_pipeline.options import Options
from beam_pipeline.planning.inventory import inspect_part, list_parts
from beam_pipeline.planning.plan_shards import plan_shards
from beam_pipeline.shards.unfinished import Plan, ShardResult, Unfinished
from beam_pipeline.shards.writer import write_shard
from beam_pipeline.workers import Later, Watch
from headct.errors import StoreError
from headct.layout import REFUSAL, written_table
from headct.reasons import Reason
from headct.stores import find_input

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
    assert [*list_parts(options.files)] == [4]
    before_headers()
    inspect_part(0, Watch(), options=options)
    return plan_shards(1, options)


def write(options: Options, excluded: dict[int, Reason] | None = None) -> None:
    written = write_shard(0, Watch(excluded), options=options)
    assert isinstance(written, Later)
    written.finish()


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
    write(options)
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
    assert [*list_parts(options.files)] == [2, 2, 2]
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


def test_a_run_whose_files_are_back_is_not_complete(options: Options) -> None:
    path = Path(options.files.input, "ID_2.dcm")
    plan = make_plan(options)
    hidden = path.rename(path.with_name(".away"))
    write(options)
    hidden.rename(path)
    with pytest.raises(Refusal, match=BACK):
        finish_directory(len(plan.shards), options)
    refusal = json.loads(Path(options.files.output, REFUSAL).read_text())
    assert refusal["exit_code"] == 5
    assert not Path(options.files.output, "manifest.json").exists()
    plan = make_plan(options)
    write(options)
    look(options, plan)
    assert reasons(options, plan) == []


def test_a_folder_that_is_away_then_is_waited_for(options: Options) -> None:
    path = Path(options.files.input, "ID_2.dcm")
    plan = make_plan(options)
    path.unlink()
    write(options)
    path.parent.rename(path.parent.with_name("away"))
    with pytest.raises(StoreError, match="no answer for 1 s"):
        look(options, plan)


def test_a_file_that_became_another_slice_ends_the_run(
    options: Options, write_slice: WriteSlice
) -> None:
    plan = make_plan(options)
    write_slice(Path(options.files.input, "ID_2.dcm"), PatientID="another")
    write(options)
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
    write(options)
    assert reasons(options, plan) == ["truncated_pixels"]
    path.write_bytes(whole)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(StoreError, match=BACK):
        look(options, plan)
    assert make_plan(options) == plan
    write(options)
    assert reasons(options, plan) == []
    look(options, plan)


@pytest.mark.parametrize("reason", [Reason.DECODER_CRASHED, Reason.DECODER_TIMED_OUT])
def test_what_no_look_can_tell_stays(options: Options, reason: Reason) -> None:
    plan = make_plan(options)
    write(options, {1: reason})
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
    write(options)
    look(options, plan)


def test_a_link_that_leads_to_a_folder_now_is_a_folder(options: Options, tmp_path: Path) -> None:
    path = Path(options.files.input, "ID_2.dcm")
    path.unlink()
    path.symlink_to(tmp_path / "disk")
    plan = make_plan(options)
    write(options)
    look(options, plan)
    (tmp_path / "disk").mkdir()
    with pytest.raises(StoreError, match=BACK):
        look(options, plan)
