import fcntl
import json
from pathlib import Path

import pytest

from beam_pipeline.card import card
from beam_pipeline.errors import AlreadyComplete, Refusal, TooManyRejects
from beam_pipeline.finish import finish_directory
from beam_pipeline.options import Options
from beam_pipeline.shards.manifest import encode_rejects
from headct.errors import OutputError, StoreError
from headct.reasons import Reason
from tests.beam_pipeline.card_page import Page


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
