import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from beam_pipeline.errors import OutputError, UsageError
from beam_pipeline.storage import Folder, InputFiles


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.dcm", "a.dcm", "sub/c.dcm", "sub/deep/d.dcm", ".hidden", ".git/e.dcm", "f.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


@pytest.fixture
def memory() -> Iterator[str]:
    """A URL of a file system that is not local."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield "memory://bucket/out"
    filesystem.store.clear()


def test_a_folder_is_all_its_files_but_hidden_ones(tree: Path) -> None:
    files = InputFiles.parse(str(tree))
    assert list(files.list()) == ["a.dcm", "b.dcm", "f.txt", "sub/c.dcm", "sub/deep/d.dcm"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.dcm", ["a.dcm", "b.dcm"]),
        ("*/*.dcm", ["sub/c.dcm"]),
        ("**/*.dcm", ["sub/c.dcm", "sub/deep/d.dcm"]),
        ("[a]*", ["a.dcm"]),
        ("?.txt", ["f.txt"]),
        ("*.png", []),
    ],
)
def test_a_pattern_is_what_matches_it(tree: Path, pattern: str, expected: list[str]) -> None:
    assert list(InputFiles.parse(f"{tree}/{pattern}").list()) == expected


def test_one_file_is_itself(tree: Path) -> None:
    files = InputFiles.parse(f"{tree}/sub/c.dcm")
    assert list(files.list()) == ["c.dcm"]
    assert files.read("c.dcm") == b"sub/c.dcm"


def test_a_source_is_opened_with_its_size(tree: Path) -> None:
    with InputFiles.parse(str(tree)).open("sub/c.dcm") as (file, size):
        assert (file.read(), size) == (b"sub/c.dcm", 9)


def test_a_missing_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent does not exist"):
        InputFiles.parse(str(tmp_path / "absent"))


def test_urls_are_listed_like_folders(memory: str) -> None:
    with fsspec.open("memory://bucket/in/x/y.dcm", "wb") as file:
        file.write(b"slice")
    files = InputFiles.parse("memory://bucket/in")
    assert list(files.list()) == ["x/y.dcm"]
    assert files.read("x/y.dcm") == b"slice"


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_what_is_written_can_be_read_and_removed(kind: str, tmp_path: Path, memory: str) -> None:
    folder = Folder(str(tmp_path / "out") if kind == "local" else memory)
    assert folder.names() == set()
    folder.write("a/b.bin", b"bytes")
    assert folder.names() == {"a"}
    assert folder.exists("a/b.bin")
    assert folder.read("a/b.bin") == b"bytes"
    assert folder.sha256("a/b.bin").startswith("277089d91c0bdf4f2e6862ba7e4a07605119431f5d13f726d")
    folder.remove("a")
    folder.remove("never was there")
    assert folder.names() == set()


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_write_that_fails_leaves_nothing(kind: str, tmp_path: Path, memory: str) -> None:
    folder = Folder(str(tmp_path) if kind == "local" else memory)
    with pytest.raises(TypeError), folder.create("shard") as file:
        file.writelines([b"first half", "not bytes"])  # type: ignore[list-item]
    assert folder.names() == set()


def test_a_full_disk_is_an_output_error() -> None:
    with (
        pytest.raises(OutputError, match=r"cannot write shard in .*: No space left on device"),
        Folder("/dev/shm/full").create("shard"),
    ):
        raise OSError(28, os.strerror(28))


def test_a_file_in_place_of_the_output_is_refused(tree: Path) -> None:
    with pytest.raises(UsageError, match="is a file, not a folder"):
        Folder(str(tree / "a.dcm")).names()


def test_files_are_read_ahead_in_order(tree: Path) -> None:
    files = InputFiles.parse(str(tree))
    sources = ["a.dcm", "absent", "b.dcm"] * 10
    results = list(files.read_ahead(sources))
    assert results[0::3] == [b"a.dcm"] * 10
    assert results[2::3] == [b"b.dcm"] * 10
    assert all(isinstance(result, FileNotFoundError) for result in results[1::3])
    assert list(files.read_ahead([])) == []


def test_files_of_a_url_are_read_ahead_too(memory: str) -> None:
    with fsspec.open("memory://bucket/in/[1]*.dcm", "wb") as file:
        file.write(b"slice")
    files = InputFiles("memory://bucket/in")
    found, missing = files.read_ahead(["[1]*.dcm", "absent"])
    assert found == b"slice"
    assert isinstance(missing, FileNotFoundError)


def test_files_made_durable_must_be_there(tmp_path: Path, memory: str) -> None:
    folder = Folder(str(tmp_path))
    with folder.create("shard", durable=False) as file:
        file.write(b"records")
    folder.make_durable(["shard"])
    with pytest.raises(OutputError, match=r"cannot write absent in .*: No such file"):
        folder.make_durable(["shard", "absent"])
    Folder(memory).make_durable(["wherever"])  # an upload is durable
