"""Input files of an index's sources."""

from pathlib import Path

import pytest

from beam_pipeline.planning.inventory import locate_sources
from headct.stores import InputFiles


@pytest.fixture
def files(tmp_path: Path) -> InputFiles:
    """Two files, one of them with a line feed in its name."""
    for name in ("a.dcm", "b\n.dcm"):
        (tmp_path / name).touch()
    return InputFiles.parse(str(tmp_path))


def test_sources_are_paths(files: InputFiles) -> None:
    assert locate_sources(files, ["gone.dcm"], numbered=False, count=2) == [b"gone.dcm"]


def test_escaped_names_are_looked_up(files: InputFiles) -> None:
    sources = ["a.dcm", "b\\n.dcm", "c\\n.dcm"]
    found = locate_sources(files, sources, numbered=False, count=2)
    assert found == [b"a.dcm", b"b\n.dcm", None]


def test_numbers_are_those_of_the_listing(files: InputFiles) -> None:
    sources = ["file_000002", "file_000001", "file_000003"]
    found = locate_sources(files, sources, numbered=True, count=2)
    assert found == [b"b\n.dcm", b"a.dcm", None]
    with pytest.raises(ValueError, match="the input has 2 files, not 3 as it had"):
        locate_sources(files, sources, numbered=True, count=3)
