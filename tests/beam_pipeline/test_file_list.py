import gzip
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pytest

from beam_pipeline.finish import finish_directory
from beam_pipeline.options import Options
from beam_pipeline.planning.file_list import FileList
from beam_pipeline.planning.inventory import list_parts
from beam_pipeline.run import run
from beam_pipeline.shards.unfinished import Unfinished, table_metadata
from beam_pipeline.verify.verification import verify_directory
from headct.errors import UsageError
from headct.layout import listing_table
from headct.stores import FileInfo, Folder, InputFiles, encode_source
from tests.beam_pipeline.dicom_files import make_dicom
from tests.beam_pipeline.steps import write_shards

SOURCES = ["a.dcm", "b.dcm", "caf\udce9.dcm", "s1/a.dcm", "s1/c.dcm", "s2/c.dcm", "s2/d e.dcm"]


@pytest.fixture
def files(tmp_path: Path) -> InputFiles:
    (tmp_path / "in").mkdir()
    return InputFiles(str(tmp_path / "in"))


def found() -> Iterator[FileInfo]:
    return (FileInfo(source, 7, "v") for source in SOURCES)


def chosen(path: Path, files: InputFiles) -> tuple[list[int], int, int]:
    """Numbers of the files that a list names, and the counts of what found nothing."""
    listed = FileList.read(str(path), files).select(found())
    numbers = listed.files["number"].to_pylist()
    assert listed.files["source"].to_pylist() == [encode_source(SOURCES[n]) for n in numbers]
    return numbers, listed.counts["unmatched"], listed.counts["not_listed"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["s1/c.dcm", "./s2/c.dcm"], ([4, 5], 0, 5)),
        (["{root}/s1/c.dcm", "{root}/gone.dcm", "/other/a.dcm"], ([4], 2, 6)),
        (["in/s1/c.dcm"], ([], 1, 7)),
        (["b.dcm", "d e.dcm", "d e.dcm", ""], ([1, 6], 0, 5)),
        (["a.dcm"], ([0], 0, 6)),  # the path, though a folder has a file of this name
        (["s1/a.dcm", "zz.dcm"], ([3], 1, 6)),
        ([*SOURCES], ([*range(7)], 0, 0)),
    ],
)
@pytest.mark.parametrize("kind", ["txt", "csv", "gz", "parquet", "jsonl"])
def test_a_list_names_files(
    tmp_path: Path, files: InputFiles, kind: str, lines: Sequence[str], expected: object
) -> None:
    entries = [line.format(root=files.root) for line in lines]
    path = tmp_path / f"list.{kind}"
    shown = [entry.replace("\udce9", "\\xe9") for entry in entries]
    if kind == "txt":
        path.write_bytes(b"".join(os.fsencode(entry) + b"\r\n" for entry in entries))
    elif kind == "csv":
        pd.DataFrame({"label": 1, "File_Name": shown}).to_csv(path, index=False)
    elif kind == "gz":
        path.write_bytes(gzip.compress("\n".join(["path", *shown]).encode()))
    elif kind == "parquet":
        pd.DataFrame({"image_id": "x", "source": shown}).to_parquet(path)
    else:
        path.write_text("".join(json.dumps({"source": entry}) + "\n" for entry in shown))
    if not expected[0]:  # type: ignore[index]
        with pytest.raises(UsageError, match="none of its 1 entries is a file of the input"):
            chosen(path, files)
    else:
        assert chosen(path, files) == expected


def test_a_list_as_find_prints_it(
    tmp_path: Path, files: InputFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list").write_text("in/s1/a.dcm\nin/b.dcm\n")
    assert chosen(Path("list"), InputFiles("in")) == ([1, 3], 0, 5)
    for root in ("./in", "./in/"):
        assert chosen(Path("list"), InputFiles(root)) == ([1, 3], 0, 5)
        (tmp_path / "list").write_text("./in/s1/a.dcm\n./in/b.dcm\n")
    bucket = InputFiles("s3://bucket/in/")
    (tmp_path / "list").write_text("s3://bucket/in/s1/a.dcm\n")
    assert chosen(Path("list"), bucket)[0] == [3]


def test_a_list_of_an_archive_s_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for source in ("export/a.dcm", "export/s/b.dcm", "export/s/c.dcm", "other.dcm"):
            archive.writestr(source, b"")
    listed = tmp_path / "list"
    listed.write_text(f"s/b.dcm\n{tmp_path}/in.zip/export/a.dcm\nother.dcm\n")
    options = Options.of(
        input=f"{tmp_path}/in.zip/export", output=str(tmp_path / "out"), files=str(listed)
    )
    assert [*list_parts(options)] == [2]
    table = Unfinished(options.files.folder).read(listing_table(0))
    assert table["source"].to_pylist() == [b"a.dcm", b"s/b.dcm"]
    assert table["number"].to_pylist() == [0, 1]
    assert table_metadata(table) == {"files": 2, "entries": 3, "unmatched": 1, "not_listed": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"c.dcm\nd e.dcm", "1 file names are those of several files; want paths relative"),
        (b"\n\r\n", "names no file"),
        (b"", "names no file"),
        (b"P\0A\0T\0H\0", "it is no text in UTF-8, and no table"),
        (b'{"file": 1}', "a line is no row of a rejects.jsonl"),
        (b'\xef\xbb\xbf{"file": 1}', "a line is no row of a rejects.jsonl"),
        (b'{"source":' + b"[" * 100_000, "a line is no row of a rejects.jsonl"),
        (
            b"location,x\na.dcm,1",
            "the column of a table is to be source, path, file, file_name or ",
        ),
        (b"PAR1", "it is damaged, or no table"),
        (b"path;x\n1;2;3\n", "row 1 after the header has 3 values"),
        (None, "no such file"),
    ],
)
def test_a_list_that_is_refused(
    tmp_path: Path, files: InputFiles, content: bytes | None, message: str
) -> None:
    path = tmp_path / "list"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        chosen(path, files)
    assert str(caught.value).startswith(f"--files {path}: ")
    assert message in str(caught.value)


def test_a_killed_run_whose_list_changed_leaves_no_shard_of_the_old_list(tmp_path: Path) -> None:
    for patient in range(20):
        path = tmp_path / "in" / f"{patient}.dcm"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(make_dicom(PatientID=f"P{patient}", SOPInstanceUID=f"1.2.{patient}"))
    options = Options.of(
        input=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        files=str(tmp_path / "list"),
        examples_per_shard=4,
        image_size=16,
    )
    for files in (16, 10):  # the first run is killed before its end
        (tmp_path / "list").write_text("".join(f"{number}.dcm\n" for number in range(files)))
        shards = write_shards(options)
    finish_directory(shards, options)
    names = {path.name for path in (tmp_path / "out").glob("*.tfrecord*")}
    assert names == {f"ich-test.tfrecord-0000{number}-of-00003" for number in range(3)}
    assert verify_directory(str(tmp_path / "out")).findings.ok


def test_a_run_of_some_files(tmp_path: Path) -> None:
    for patient in "abcdef":
        path = tmp_path / "in" / patient / "1.dcm"
        path.parent.mkdir(parents=True)
        path.write_bytes(make_dicom(PatientID=patient, SOPInstanceUID=patient))
    (tmp_path / "in" / "e" / "1.dcm").write_bytes(b"no DICOM")
    (tmp_path / "list.csv").write_text("path,group\nb/1.dcm,0\ne/1.dcm,1\nf/1.dcm,1\ng/1.dcm,1\n")
    options = Options.of(
        input=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        files=str(tmp_path / "list.csv"),
        image_id="ordinal",
        image_size=16,
        max_reject_fraction=0.5,
        leak_check="off",
    )
    finish_directory(write_shards(options), options)
    output = tmp_path / "out"
    manifest = json.loads((output / "manifest.json").read_text())
    counts = manifest["counts"]
    assert (counts["files_seen"], counts["written"], counts["not_listed"]) == (3, 2, 3)
    assert manifest["notes"][0] == (
        "--files: 1 of 4 entries are no file of the input; 3 files of the input are not listed."
    )
    # Numbers are those of the files in the whole input.
    sources = pd.read_parquet(output / "index.parquet")["source"]
    assert sorted(sources) == ["file_000002", "file_000006"]
    assert json.loads((output / "rejects.jsonl").read_text())["source"] == "file_000005"
    result = verify_directory(str(output), source=options.files.input)
    assert [str(finding) for finding in result.findings.kept] == []
    assert "3 others not in --files" in (output / "report.html").read_text()


def test_the_list_is_read_when_a_run_starts(tmp_path: Path, files: InputFiles) -> None:
    (tmp_path / "in" / "a.dcm").write_bytes(make_dicom())
    (tmp_path / "in" / "b.dcm").write_bytes(make_dicom())
    listed = tmp_path / "list"
    options = Options.of(input=files.root, output=str(tmp_path / "out"), files=str(listed))
    with pytest.raises(UsageError, match="list: no such file"):
        run(options, None, None)  # type: ignore[arg-type]
    listed.write_text("b.dcm\n")
    unfinished = Unfinished(Folder(options.files.output))
    FileList.read(str(listed), files).keep(unfinished)
    listed.unlink()
    assert [*list_parts(options)] == [1]
    assert unfinished.read(listing_table(0))["source"].to_pylist() == [b"b.dcm"]
