"""An unfinished directory whose files are damaged: each is written again, or said in one line."""

import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from beam_pipeline.finish import finish_directory
from beam_pipeline.options import Options
from beam_pipeline.progress import Display
from beam_pipeline.runners.choose import RUNNERS, ChosenRunner
from beam_pipeline.runners.run_job import _find_job
from beam_pipeline.shards.output import describe_run, record_start
from beam_pipeline.shards.unfinished import Unfinished
from headct.layout import JOB, STARTS
from headct.stores import Folder
from tests.beam_pipeline.steps import small_options, write_shards

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "zeroed": lambda data: bytes(len(data)),
    "another's": lambda data: b'{"of": "another program"}',
    "a number": lambda data: b"7",
    "a list of texts": lambda data: b'["of", "another program"]',
}


@pytest.fixture(scope="module")
def options(small_data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Options:
    return small_options(small_data_set, tmp_path_factory.mktemp("damage") / "out", 8)


def digest_of(options: Options) -> str:
    manifest: dict[str, Any] = json.loads(options.files.folder.read("manifest.json"))
    return str(manifest["digest"])


@pytest.fixture(scope="module")
def unfinished(options: Options) -> Path:
    """A directory that only its last step is missing of."""
    write_shards(options)
    folder = Path(options.files.output)
    (folder / ".unfinished" / "job.json").write_text('{"runner": "x", "id": "1", "service": "y"}')
    (folder / ".unfinished" / "refusal.json").write_text('{"exit_code": 5, "message": "full"}')
    return folder


@pytest.fixture(scope="module")
def digest(unfinished: Path, options: Options, tmp_path_factory: pytest.TempPathFactory) -> str:
    output = shutil.copytree(unfinished, tmp_path_factory.mktemp("whole") / "out")
    options = options.changed(output=str(output))
    finish_directory(write_shards(options), options)
    return digest_of(options)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("whole", ["", "options.json"])
def test_the_same_command_ends_with_the_same_bytes(
    options: Options, unfinished: Path, digest: str, damage: str, whole: str, tmp_path: Path
) -> None:
    """With a whole record of the run, the other files may be used."""
    output = Path(shutil.copytree(unfinished, tmp_path / "out"))
    files = [path for path in (output / ".unfinished").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"options.json", "plan.json", "starts.json", "job.json"}
    for path in files:
        if path.name != whole:
            path.write_bytes(DAMAGE[damage](path.read_bytes()))
    options = options.changed(output=str(output))
    Display(Console(file=StringIO()), Unfinished(options.files.folder)).look()
    finish_directory(write_shards(options), options)
    assert digest_of(options) == digest


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_of_starts_begins_anew(damage: str, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    record_start(folder, "local")
    folder.write(STARTS, DAMAGE[damage](folder.read(STARTS)))
    assert describe_run(folder) is None
    record_start(folder, "FlinkRunner")
    run = describe_run(folder)
    assert run is not None
    assert (run["runner"], run["starts"]) == ("FlinkRunner", 1)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"runner": "PortableRunner", "id": 1}'])
@pytest.mark.parametrize("service", [None, 7])
def test_a_damaged_job_is_none(text: str, service: Any, tmp_path: Path) -> None:
    folder, chosen = Folder(str(tmp_path)), ChosenRunner(RUNNERS["PortableRunner"])
    wrong = json.dumps({"runner": "PortableRunner", "id": "1", "service": service})
    for damaged in (text, wrong):
        folder.write(JOB, damaged.encode())
        assert _find_job(folder, chosen) is None
