"""Inputs in the output, and the reverse, by all names that a place may have."""

import os
from pathlib import Path
from typing import Any

import pytest

from beam_pipeline.__main__ import main
from beam_pipeline.options import Options
from beam_pipeline.planning.output_checks import (
    check_output_is_not_read,
    check_places,
    without_output,
)
from headct.errors import UsageError
from headct.stores import InputFiles


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`data/` with two files and a folder, `out/`, and links to both."""
    monkeypatch.chdir(tmp_path)
    for name in ("data/a.dcm", "data/sub/b.dcm", "out/labels.csv", "out/raw/c.dcm"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("to_out").symlink_to("out")
    Path("to_data").symlink_to("data")
    Path("data/to_out").symlink_to("../out")


def check_reads(output: str, **paths: Any) -> None:
    check_places(Options.of(**{"input": "data", "output": output} | paths))


@pytest.mark.parametrize("output", ["out", "out/", "./data/../out", "to_out", "file://{cwd}/out"])
@pytest.mark.parametrize("path", ["out", "out/raw", "{cwd}/out//raw/", "to_out/raw", "out/*.dcm"])
def test_input_in_the_output_is_refused(output: str, path: str) -> None:
    output, path = (text.format(cwd=Path.cwd()) for text in (output, path))
    with pytest.raises(UsageError, match=r"^--input .* lies in the output .*; move it, or choose"):
        check_reads(output, input=path)


@pytest.mark.parametrize("option", ["labels", "folds_from", "identifier_key_file"])
def test_whatever_is_read_in_the_output_is_refused(option: str) -> None:
    with pytest.raises(UsageError, match=f"^--{option} to_out/labels.csv lies in the output out,"):
        check_reads("out", **{option: "to_out/labels.csv"})


@pytest.mark.parametrize(
    ("output", "read"),
    [
        ("s3://bucket/out", "s3a://bucket/out/labels.csv"),
        ("s3a://bucket/out/", "s3://bucket/x/../out"),
        ("s3://bucket", "s3://bucket/labels.csv"),
        ("gs://bucket/a//out", "gs://bucket/a/out/x"),
        ("abfss://box@account.dfs.core.windows.net/out", "az://box/out/x"),
    ],
)
def test_a_bucket_has_several_names_too(output: str, read: str) -> None:
    with pytest.raises(UsageError, match="lies in the output"):
        check_reads(output, labels=read)


@pytest.mark.parametrize(
    ("output", "read"),
    [
        ("out", "out2/labels.csv"),
        ("out", "labels.csv"),
        ("data/out", "data/labels.csv"),
        ("s3://bucket/out", "s3://bucket/out2/labels.csv"),
        ("s3://bucket/out", "s3://bucket2/out/labels.csv"),
        ("s3://bucket/out", "gs://bucket/out/labels.csv"),
        ("s3://bucket/out", "out/labels.csv"),
        ("out", "s3://out/labels.csv"),
    ],
)
def test_what_lies_elsewhere_is_read(output: str, read: str) -> None:
    check_reads(output, labels=read)


def test_a_folder_is_known_by_another_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the file systems of macOS and of USB sticks."""
    stat = Path.stat

    def of_any_case(path: Path, **named: Any) -> os.stat_result:
        return stat(tmp_path / "out" if path == tmp_path / "OUT" else path, **named)

    monkeypatch.setattr(Path, "stat", of_any_case)
    with pytest.raises(UsageError, match="lies in the output"):
        check_reads("out", labels="OUT/labels.csv")


@pytest.mark.parametrize("source", ["data", "data/", "./out/../data", "to_data", "data/**", "*/*"])
@pytest.mark.parametrize("output", ["data/out", "to_data/out", "{cwd}/data/sub/../out"])
def test_output_in_the_input_is_refused(source: str, output: str) -> None:
    output = output.format(cwd=Path.cwd())
    Path(output).mkdir(parents=True)
    if source == "*/*":
        output = os.path.relpath(os.path.realpath(output))
        source = "data/*/*"
    with pytest.raises(UsageError, match=r"^output .* lies in the input .*, where it would be"):
        check_output_is_not_read(InputFiles.parse(source), output)


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("data", "out"),
        ("data", "data2/out"),
        ("data/sub", "data/out"),
        ("data/a.dcm", "data/out"),
        ("data/*.dcm", "data/out"),
        ("data/**/*.dcm", "data/out"),
        ("data/*/ID_*", "data/out"),
    ],
)
def test_output_that_is_not_searched_is_written(source: str, output: str) -> None:
    check_output_is_not_read(InputFiles.parse(source), output)


def test_output_in_the_input_of_a_bucket_is_refused() -> None:
    for pattern, refused in {"": True, "**": True, "*/out/*": True, "**/*.dcm": False}.items():
        files = InputFiles("s3://bucket/data", pattern=pattern)
        if refused:
            with pytest.raises(UsageError, match="lies in the input s3://bucket/data"):
                check_output_is_not_read(files, "s3a://bucket/data/2026/out/")
        check_output_is_not_read(files, "s3://bucket/out")


def test_a_name_that_is_too_long_is_told_by_what_writes(capsys: pytest.CaptureFixture[str]) -> None:
    output = "x" * 300
    assert main(["--input", "data", "--output", output]) == 5
    error = capsys.readouterr().err
    assert error.endswith(f"in {output}: File name too long\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("data", "data/out"), "output data/out lies in the input data, where it"),
        (("out/raw", "out"), "--input out/raw lies in the output out, which"),
        (("data", "out", "--labels", "out/labels.csv", "--overwrite"), "--labels out/labels.csv "),
    ],
)
def test_it_is_said_before_anything_is_written(
    given: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(map(str, Path().rglob("*")))
    source, output, *others = given
    assert main(["--input", source, "--output", output, *others]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"beam_pipeline: error: {message}")
    assert error.count("\n") == 1
    assert sorted(map(str, Path().rglob("*"))) == before


@pytest.mark.parametrize("source", ["data", "to_data", "data/**"])
def test_a_link_to_the_output_leads_to_no_input(source: str) -> None:
    """Of which nothing is seen at the first start, when there is no shard."""
    shard = "ich-fold0.tfrecord-00000-of-00001"
    for name in (shard, "manifest.json", "report.html"):
        Path("out", name).touch()
    for name in ("manifest.json", "ich-fold0.dcm"):
        Path("data", name).touch()  # no more than a name
    files = InputFiles.parse(str(Path.cwd() / source))  # a store remembers where a path led
    assert {f"to_out/{shard}", "to_out/report.html"} <= {info.path for info in files.list()}
    found = [info.path for info in without_output(files.list(), files, "out")]
    others = ["to_out/labels.csv", "to_out/raw/c.dcm"]  # which no output holds
    assert found == ["a.dcm", "ich-fold0.dcm", "manifest.json", "sub/b.dcm", *others]
