"""Starts of a run, for the manifest."""

from pathlib import Path

from beam_pipeline.shards.output import describe_run, record_start
from headct.stores import Folder


def test_starts_are_counted(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert describe_run(folder) is None
    record_start(folder, "local")
    record_start(folder, "FlinkRunner")
    run = describe_run(folder)
    assert run is not None
    assert (run["runner"], run["starts"]) == ("FlinkRunner", 2)
    assert 0 <= run["seconds"] < 60
    (tmp_path / ".unfinished" / "starts.json").write_bytes(b"[{")  # after a power failure
    assert describe_run(folder) is None
