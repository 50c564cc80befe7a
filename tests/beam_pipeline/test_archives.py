"""ZIP archives as input: read in place, with the outcome of the folder that was packed."""

import os
import random
import stat
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from beam_pipeline import pipeline
from beam_pipeline.card.__main__ import main as card
from beam_pipeline.options import Options
from beam_pipeline.verify.__main__ import main as verify
from headct.errors import HeadctError, StoreError, UsageError
from headct.stores import Folder, InputFiles, open_file
from headct.stores.archives import ArchiveStore
from tests.beam_pipeline.conftest import WriteSlice
from tests.beam_pipeline.steps import contents
from tests.processes import run_python

NAMES = ("b.dcm", "a.dcm", "sub/c.dcm", "sub/deep/d.dcm", "sub-e.dcm", "f.txt", "naïve/é.dcm")
HIDDEN = (".hidden", ".git/e.dcm", "__MACOSX/._a.dcm", "sub/.g/h.dcm")
NOISE = np.random.default_rng(0).integers(0, 256, 200_000, np.uint8).tobytes()
ZEROS = bytes(300_000)
METHODS = pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder, beside `tree.zip` of it in another order."""
    for name in NAMES + HIDDEN:
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 1000)
    pack(tmp_path / "tree", tmp_path / "tree.zip")
    return tmp_path / "tree"


def pack(folder: Path, archive: Path) -> Path:
    """Pack a folder's files, and the entries of its folders, in any order."""
    paths = sorted(folder.rglob("*"))
    random.Random(0).shuffle(paths)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in paths:
            file.write(path, path.relative_to(folder))
    return archive


def zipped(path: Path, contents: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in contents.items():
            file.writestr(name, data)
    return path


def listed(text: object) -> list[tuple[str, int]]:
    return [(info.path, info.size) for info in InputFiles.parse(str(text)).list()]


@pytest.mark.parametrize(
    "below", ["", "/", "/sub", "/sub/deep", "/*.dcm", "/**/*.dcm", "/s*/*", "/**"]
)
def test_an_archive_lists_what_the_folder_does(tree: Path, below: str) -> None:
    assert listed(f"{tree}.zip{below}") == listed(f"{tree}{below}") != []


def test_an_archive_is_found_by_relative_paths_and_urls(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree.parent)
    assert listed("tree.zip") == listed(f"file://{tree}.zip") == listed(tree)
    assert listed("tree.zip/sub") == listed("./tree.zip/sub/") == listed(tree / "sub")
    assert listed("tree.zip/sub/c.dcm") == [("c.dcm", 9000)]
    assert InputFiles.parse("tree.zip/sub/c.dcm").read("c.dcm") == b"sub/c.dcm" * 1000


def test_a_folder_may_be_named_like_an_archive_and_hold_one(tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder.ZIP"
    tree.rename(folder)
    (tmp_path / "tree.zip").rename(folder / "inner.Zip")
    assert ("inner.Zip", (folder / "inner.Zip").stat().st_size) in listed(folder)
    assert listed(folder / "inner.Zip" / "sub") == listed(folder / "sub")


@pytest.mark.parametrize("below", ["/absent", "/absent/*.dcm", "/a.dcm/x", "/a.dcm/*"])
def test_what_an_archive_does_not_hold_is_refused(tree: Path, below: str) -> None:
    with pytest.raises(UsageError) as refused:
        InputFiles.parse(f"{tree}.zip{below}")
    assert str(refused.value) == f"input {tree}.zip{below} does not exist"


def test_an_archive_of_hidden_files_alone_holds_none(tmp_path: Path) -> None:
    assert listed(zipped(tmp_path / "a.zip", dict.fromkeys(HIDDEN, b""))) == []


def test_more_names_than_are_looked_at_together_stay_in_order(tmp_path: Path) -> None:
    names = [f"{number:05d}.dcm" for number in range(9000)]
    archive = zipped(tmp_path / "a.zip", {f"in/{name}": name.encode() for name in reversed(names)})
    assert [path for path, _ in listed(archive / "in")] == names
    assert InputFiles.parse(f"{archive}/in").read("08191.dcm") == b"08191.dcm"


def test_paths_that_lead_nowhere_are_as_where_they_are_unpacked(tmp_path: Path) -> None:
    contents = {"./a.dcm": b"a", "/b.dcm": b"b", "../c.dcm": b"c", "d//e/./f.dcm": b"f"}
    archive = zipped(tmp_path / "a.zip", contents)
    assert [path for path, _ in listed(archive)] == ["a.dcm", "b.dcm", "c.dcm", "d/e/f.dcm"]
    assert InputFiles.parse(str(archive)).read("d/e/f.dcm") == b"f"


def test_bytes_may_repeat_what_is_32_kib_before(tmp_path: Path) -> None:
    """As far back as Deflate looks (RFC 1951)."""
    twice = NOISE[: (1 << 15) - 300] * 2
    archive = zipped(tmp_path / "a.zip", {"a.dcm": twice})
    assert archive.stat().st_size < 34_000
    assert InputFiles.parse(str(archive)).read("a.dcm") == twice


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_files_with_one_name_the_last_counts(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a.dcm", b"first")
        file.writestr("a.dcm", b"the last")
    files = InputFiles.parse(str(tmp_path / "a.zip"))
    assert [info.size for info in files.list()] == [8]
    assert files.read("a.dcm") == b"the last"


@METHODS
@pytest.mark.parametrize("data", [b"", b"x", ZEROS, NOISE, NOISE[:70_000] + ZEROS], ids=len)
def test_every_part_of_a_file_can_be_read(tmp_path: Path, method: int, data: bytes) -> None:
    archive = zipped(tmp_path / "a.zip", {"before": NOISE, "a": data, "behind": NOISE}, method)
    store = ArchiveStore(str(archive), 1.0)
    assert store.read("a") == store.open("a").read() == data
    ends = (0, 1, 100, (1 << 15) - 1, 1 << 15, 100_000, len(data), len(data) + 5)
    for start in ends:
        assert store.read("a", start) == data[start:]
        for length in ends:
            assert store.read("a", start, length) == data[start : start + length]


def test_the_first_bytes_cost_no_more_than_their_part_of_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zipped(tmp_path / "a.zip", {"a": NOISE * 20})
    store = ArchiveStore(str(archive), 1.0)
    read: list[int] = []
    pread = os.pread

    def count(descriptor: int, length: int, offset: int) -> bytes:
        read.append(length)
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", count)
    assert store.read("a", 0, 1 << 15) == NOISE[: 1 << 15]
    assert sum(read) < 1 << 17


def test_archives_of_four_gigabytes_and_more_can_be_read(tmp_path: Path) -> None:
    """By the fields of ZIP64, behind a hole that takes no space on the disk."""
    path = tmp_path / "a.zip"
    with path.open("wb") as raw:
        raw.seek(5 << 30)
        with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as file:
            with file.open("a.dcm", "w", force_zip64=True) as member:
                member.write(NOISE)
            file.writestr("b.dcm", b"b")
    files = InputFiles.parse(str(path))
    assert [(info.path, info.size) for info in files.list()] == [("a.dcm", 200_000), ("b.dcm", 1)]
    assert files.read("a.dcm") == NOISE
    assert files.read("b.dcm") == b"b"


def test_a_changed_archive_is_read_anew_and_tells_which_files_changed(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    seen = []
    for time, second in enumerate((b"b", b"b", b"B"), start=1):
        zipped(archive, {"a": b"a", "b": second})
        os.utime(archive, (time, time))  # a file system need not tell two moments apart
        files = InputFiles.parse(str(archive))
        assert files.read("b") == second
        seen.append({info.path: info.version for info in files.list()})
    assert seen[0] == seen[1]
    assert seen[2]["a"] == seen[1]["a"]
    assert seen[2]["b"] != seen[1]["b"]


def test_a_table_is_read_out_of_an_archive_and_one_that_is_an_archive_stays_one(
    tmp_path: Path,
) -> None:
    archive = zipped(tmp_path / "labels.csv.zip", {"labels.csv": b"ID,Label\n"})
    with open_file(f"{archive}/labels.csv") as file:
        assert file.read() == b"ID,Label\n"
    with open_file(str(archive)) as file:
        assert file.read() == archive.read_bytes()
    with pytest.raises(FileNotFoundError):
        open_file(f"{archive}/absent.csv")


def test_nothing_is_written_into_an_archive(tree: Path) -> None:
    before = Path(f"{tree}.zip").read_bytes()
    with pytest.raises(UsageError, match="is a file, not a folder"):
        Folder(f"{tree}.zip").names()
    with pytest.raises(HeadctError), Folder(f"{tree}.zip/out").create("a"):
        pass
    assert Path(f"{tree}.zip").read_bytes() == before


# What is wrong with an archive


def test_what_is_no_archive_is_refused_with_the_reason(tmp_path: Path, tree: Path) -> None:
    whole = Path(f"{tree}.zip").read_bytes()
    for data in (b"", b"no archive", whole[:-30], whole[: len(whole) // 2]):
        path = tmp_path / "broken.zip"
        path.write_bytes(data)
        os.utime(path, (len(data), len(data)))
        with pytest.raises(UsageError) as refused:
            InputFiles.parse(str(path))
        assert str(refused.value).startswith("broken.zip cannot be read as a ZIP archive (")
        assert str(refused.value).endswith("); was it copied whole?")


@pytest.mark.parametrize("name", [b"\0xxx", b"../.", b"./.."])
def test_a_file_without_a_name_is_refused(tmp_path: Path, name: bytes) -> None:
    archive = zipped(tmp_path / "a.zip", {"a.dcm": b"a", "xxxx": b"b"})
    archive.write_bytes(archive.read_bytes().replace(b"xxxx", name))
    with pytest.raises(UsageError, match=r"\(a file has no name\)"):
        InputFiles.parse(str(archive))


def flip(archive: Path, member: str, at: int, value: bytes) -> None:
    """Overwrite bytes behind the beginning of a member's header."""
    with zipfile.ZipFile(archive) as file:
        start = file.getinfo(member).header_offset
    data = bytearray(archive.read_bytes())
    data[start + at : start + at + len(value)] = value
    archive.write_bytes(data)


def set_field(archive: Path, member: str, at: int, value: int) -> None:
    """Set 16 bits of a member's entry in the directory."""
    data = bytearray(archive.read_bytes())
    entry = data.rindex(b"PK\1\2", 0, data.rindex(member.encode()))
    struct.pack_into("<H", data, entry + at, value)
    archive.write_bytes(data)


@METHODS
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda archive: flip(archive, "bad", 0, b"XX"), "Damaged in the archive"),
        (lambda archive: flip(archive, "bad", 40, b"\xff" * 40), "Damaged in the archive"),
        (lambda archive: flip(archive, "bad", 9000, b"\0\1"), "Damaged in the archive"),
        (lambda archive: flip(archive, "bad", 28, b"\xff\xff"), "Damaged in the archive"),
        (lambda archive: set_field(archive, "bad", 8, 1), "Encrypted in the archive"),
        (
            lambda archive: set_field(archive, "bad", 10, 9),
            "Compressed in the archive by an unsupported method",
        ),
    ],
)
def test_a_damaged_file_says_so_and_the_others_are_read(
    tmp_path: Path, method: int, damage: Callable[[Path], None], reason: str
) -> None:
    contents = {"bad": NOISE[:20_000], "good": NOISE}
    archive = zipped(tmp_path / "a.zip", contents, method)
    damage(archive)
    files = InputFiles.parse(str(archive))
    assert files.read("good") == NOISE
    with pytest.raises(OSError, match=f"{reason}$"):
        files.read("bad")
    first, second = files.read_ahead([("bad", 20_000), ("good", 200_000)])
    assert isinstance(first, OSError)
    assert second == NOISE


def test_random_damage_is_refused_or_found_or_harmless(tmp_path: Path, full: bool) -> None:
    """No error but those that are promised, and no wrong byte of a whole file."""
    contents = {f"{number}.dcm": NOISE[number : number + 300] for number in range(6)}
    whole = zipped(tmp_path / "whole.zip", contents).read_bytes()
    generator = random.Random(0)
    outcomes = {"refused": 0, "found": 0, "harmless": 0}
    for number in range(20_000 if full else 600):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        archive = tmp_path / "damaged.zip"
        archive.write_bytes(data)
        os.utime(archive, (number, number))
        try:
            files = InputFiles.parse(str(archive))
            paths = [info.path for info in files.list()]
        except UsageError:
            outcomes["refused"] += 1
            continue
        harmless = len(paths) == len(contents)
        for path in paths:
            try:
                data_read = files.read(path)
            except OSError:
                harmless = False
            else:
                assert data_read in contents.values()
        outcomes["harmless" if harmless else "found"] += 1
    assert all(outcomes.values()), outcomes


@METHODS
@pytest.mark.parametrize("field", [20, 24])  # bytes in the archive, bytes of the file
@pytest.mark.parametrize("size", [1 << 20, 0xFFFFFFFE])
def test_sizes_that_cannot_be_are_damage_and_take_no_memory(
    tmp_path: Path, method: int, field: int, size: int
) -> None:
    archive = zipped(tmp_path / "a.zip", {"good": b"g", "bad": b"b"}, method)
    set_field(archive, "bad", field, size & 0xFFFF)
    set_field(archive, "bad", field + 2, size >> 16)
    files = InputFiles.parse(str(archive))
    assert files.read("good") == b"g"
    tracemalloc.start()
    with pytest.raises(OSError, match="Damaged in the archive"):
        files.read("bad")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_another_method_is_told_from_damage(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"a": ZEROS}, zipfile.ZIP_BZIP2)
    with pytest.raises(OSError, match="by an unsupported method"):
        InputFiles.parse(str(archive)).read("a")


def test_an_archive_that_vanishes_ends_the_run_and_rejects_nothing(tree: Path) -> None:
    files = InputFiles.parse(f"{tree}.zip")
    Path(f"{tree}.zip").unlink()
    with pytest.raises(StoreError, match="is gone"):
        files.read("a.dcm")


def test_an_archive_that_may_not_be_read_says_so(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    os.utime(f"{tree}.zip", (1, 1))
    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    with pytest.raises(StoreError, match="Permission denied"):
        InputFiles.parse(f"{tree}.zip")


# The pipeline


def test_the_same_bytes_as_from_the_folder(
    small_data_set: Path, write_slice: WriteSlice, tmp_path: Path
) -> None:
    """With files that cannot be used, and with pixels that patients share."""
    packed = tmp_path / "packed"
    write_slice(packed / "twins" / "ID_a.dcm", np.eye(32, dtype=np.int16), PatientID="a")
    write_slice(packed / "twins" / "ID_b.dcm", np.eye(32, dtype=np.int16), PatientID="b")
    for path in (small_data_set / "slices").iterdir():
        (packed / path.name).write_bytes(path.read_bytes())
    (packed / "labels.csv").write_bytes((small_data_set / "labels.csv").read_bytes())
    archive = pack(packed, tmp_path / "rsna.zip")
    outcomes = []
    for top in (packed, archive):
        output = tmp_path / f"of-{top.name}"
        options = Options.of(
            input=f"{top}/**/*.dcm",
            labels=f"{top}/labels.csv",
            output=str(output),
            image_size=32,
            folds=2,
            examples_per_shard=4,
            max_reject_fraction=0.5,
            workers=2,
        )
        pipeline.run_here(options)
        outcomes.append(contents(output))
        del outcomes[-1]["preprocess.toml"]  # has the input
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0]) > 8


def test_the_command_reads_an_archive_and_the_card_and_verify_do_too(
    small_data_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = pack(small_data_set, tmp_path / "rsna.zip")
    output = tmp_path / "out"

    def run(command: Callable[[list[str]], int], *arguments: object) -> str:
        assert command([*map(str, arguments)]) == 0
        return capsys.readouterr().out

    labels = ("--labels", archive / "labels.csv", "--folds", 2, "--image_size", 32)
    common = ("--output", output, "--max_reject_fraction", 0.1)
    # In a process of its own, whose workers find the archive open.
    command = ("-m", "beam_pipeline", "--input", archive / "slices")
    assert run_python(*command, *labels, *common).stderr == ""
    pictures = count_pictures(output)
    assert pictures > 5
    run(card, "--shards", output)
    assert count_pictures(output) == pictures
    assert "30" in run(verify, "--shards", output, "--source", archive / "slices")


def count_pictures(output: Path) -> int:
    return (output / "report.html").read_text().count("<img ")


def test_a_damaged_slice_costs_itself(small_data_set: Path, tmp_path: Path) -> None:
    archive = pack(small_data_set / "slices", tmp_path / "rsna.zip")
    flip(archive, "ID_00.dcm", 400, b"\xff" * 200)
    options = Options.of(
        input=str(archive), output=str(tmp_path / "out"), image_size=32, max_reject_fraction=0.2
    )
    pipeline.run_here(options)
    rejects = (tmp_path / "out" / "rejects.jsonl").read_text()
    assert "ID_00.dcm" in rejects
    assert "Damaged in the archive" in rejects


def test_an_archive_stays_as_it_is(tree: Path) -> None:
    archive = Path(f"{tree}.zip")
    archive.chmod(stat.S_IRUSR)
    assert listed(archive) == listed(tree)
