import json
from pathlib import Path

import pytest

from beam_pipeline.errors import AlreadyComplete, TooManyRejects
from beam_pipeline.shards.manifest import check_rejects, count_reasons, encode_rejects
from beam_pipeline.shards.unfinished import Reject, Unfinished
from headct.errors import UsageError
from headct.reasons import Reason
from headct.stores import Folder


@pytest.fixture
def unfinished(tmp_path: Path) -> Unfinished:
    return Unfinished(Folder(str(tmp_path)))


def reject(source: str, reason: str = "not_ct", detail: str = "") -> Reject:
    return {"source": source, "image_id": "", "reason": reason, "detail": detail}


def test_rejects_are_lines_of_json_in_the_order_of_their_sources() -> None:
    rows = [reject("b/1"), reject("a.dcm", "vanished"), reject("é\n"), reject("B", detail='"x"')]
    lines = encode_rejects(rows).decode("ascii").splitlines()
    assert [json.loads(line) for line in lines] == [rows[3], rows[1], rows[0], rows[2]]
    assert encode_rejects(reversed(rows)) == encode_rejects(iter(rows))
    assert encode_rejects([]) == b""


def test_reasons_are_counted_in_alphabetical_order() -> None:
    rows = [reject("a", "vanished"), reject("b", "not_ct"), reject("c", "vanished")]
    assert [*count_reasons(rows).items()] == [("not_ct", 1), ("vanished", 2)]


def test_as_many_rejects_as_allowed_are_accepted_and_no_more(
    tmp_path: Path, unfinished: Unfinished
) -> None:
    rows = [reject("a"), reject("b", "vanished"), reject("c")]
    check_rejects(unfinished, 12, rows, 0.25)
    assert not (tmp_path / "rejects.jsonl").exists()  # another run may have listed more
    with pytest.raises(TooManyRejects) as caught:
        check_rejects(unfinished, 11, rows, 0.25)
    assert str(caught.value) == (
        "3 of 11 files were rejected (not_ct 2, vanished 1), more than the allowed fraction 0.25. "
        f"The commonest reason is not_ct, as for a: {Reason.NOT_CT.advice} "
        f"{tmp_path}/rejects.jsonl lists all; correct that and start again, or raise "
        "--max_reject_fraction"
    )
    assert caught.value.exit_code == 3


def test_nothing_is_allowed_if_the_fraction_is_nothing(unfinished: Unfinished) -> None:
    check_rejects(unfinished, 5, [], 0.0)
    with pytest.raises(TooManyRejects):
        check_rejects(unfinished, 5, [reject("a")], 0.0)


def test_a_data_set_without_a_usable_file_is_refused_whatever_is_allowed(tmp_path: Path) -> None:
    rejects = [reject("b\x1b[2J", "label_missing"), reject("c", "label_missing")]
    with pytest.raises(UsageError) as caught:
        check_rejects(Unfinished(Folder(f"{tmp_path}/")), 2, rejects, 1.0)
    assert str(caught.value) == (
        "none of 2 files can be used. The commonest reason is label_missing, as for b\\x1b[2J: "
        f"{Reason.LABEL_MISSING.advice} {tmp_path}/rejects.jsonl lists all"
    )


@pytest.mark.parametrize("allowed", [0.0, 1.0])
def test_rejects_that_are_too_many_can_be_read_all_the_same(
    tmp_path: Path, unfinished: Unfinished, allowed: float
) -> None:
    rows = [reject("b"), reject("a")]
    with pytest.raises((TooManyRejects, UsageError)):
        check_rejects(unfinished, 2, rows, allowed)
    assert (tmp_path / "rejects.jsonl").read_bytes() == encode_rejects(rows)


def test_the_list_of_a_run_that_completed_the_directory_is_kept(
    tmp_path: Path, unfinished: Unfinished
) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "rejects.jsonl").write_text("of the other run")
    check_rejects(unfinished, 4, [reject("a")], 0.5)
    with pytest.raises(AlreadyComplete):
        check_rejects(unfinished, 4, [reject("a")], 0.0)
    assert (tmp_path / "rejects.jsonl").read_text() == "of the other run"
