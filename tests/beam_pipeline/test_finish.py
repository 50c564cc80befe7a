import fcntl
import json
from pathlib import Path

from beam_pipeline.errors import AlreadyComplete, StoreError
from beam_pipeline.options import Options
from beam_pipeline.writing.finish import finish_directory


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


def test_a_run_that_failed_leaves_word_of_why(tmp_path: Path) -> None:
    finish_directory(
        StoreError("s3://bucket", "gone"), Options.of(input="in", output=str(tmp_path))
    )
    (refusal,) = tmp_path.rglob("*.json")
    assert json.loads(refusal.read_text())["exit_code"] == 5
