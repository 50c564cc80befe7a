import bz2
import csv
import gzip
import io
import lzma
import random
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipeline.options import LabelOptions
from beam_pipeline.planning.labels import (
    PROBLEMS,
    RSNA_LABELS,
    Labels,
    find_columns,
    parse_values,
    read_labels,
)
from beam_pipeline.shards.unfinished import Unfinished
from headct.errors import UsageError
from headct.reasons import Reason
from headct.stores import Folder


def write(folder: Path, text: str, name: str = "labels.csv") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def found(labels: Labels, image_id: str) -> list[int] | tuple[Reason, str] | None:
    """An image's labels, or why they cannot be used; None where there are none."""
    ids = labels.ids.to_pylist()
    if image_id not in ids:
        return None
    (place,) = (number for number, each in enumerate(ids) if each == image_id)
    values = labels.values[place].tolist()
    return values if min(values) >= 0 else PROBLEMS[-1 - min(values)]


def rows(image_id: str, **values: object) -> str:
    filled = dict.fromkeys(RSNA_LABELS, 0) | values
    return "".join(f"{image_id}_{name},{value}\n" for name, value in filled.items())


@pytest.mark.parametrize("wide", [False, True])
def test_a_file_that_is_parsed_in_parts_is_read_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wide: bool
) -> None:
    ids = [f"ID_{number}" for number in range(40)] * 2  # each image is in two parts
    if wide:
        lines = [f"{name},{int(name[-1] == '7')},{int(name == 'ID_3')}" for name in ids]
        lines[50] = "ID_10,1,0"  # contradicts another part
        text = "image,x,y\n" + "\n".join(lines) + "\n"
    else:
        lines = [f"{name}_x,{int(name[-1] == '7')}" for name in ids[:40]]
        lines += [f"{name}_y,{int(name == 'ID_3')}" for name in ids[:40]]  # a class to come later
        text = "ID,Label\n" + "\n".join([*lines, "ID_10_x,1"]) + "\n"
    path = write(tmp_path, text)
    whole = read_labels(path)
    monkeypatch.setattr("beam_pipeline.planning.text_tables._BLOCK_BYTES", 128)
    parts = read_labels(path)
    assert parts.ids.to_pylist() == whole.ids.to_pylist()
    np.testing.assert_equal(parts.values, whole.values)
    assert parts.names == ("x", "y")
    assert found(parts, "ID_3") == [0, 1]
    assert [found(parts, f"ID_{number}") for number in (7, 17, 39)] == [[1, 0], [1, 0], [0, 0]]
    assert found(parts, "ID_10") == (Reason.LABEL_CONFLICT, "rows contradict each other")


def test_known_classes_of_any_names_are_found_in_a_long_file(tmp_path: Path) -> None:
    names = ("midline_shift", "shift", "mass effect", "cost $5 $", 'a, "b"/(x)|y*', "ä_ß")
    rows = [["ID", "Label"]]
    for image in ("1e5", "a_b", "NA"):
        rows += [[f"{image}_{name}", str(n % 2)] for n, name in enumerate((*names, "of_others"))]
    path = tmp_path / "labels.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    labels = read_labels(str(path), LabelOptions(label_columns=names))
    assert labels.names == names
    assert labels.ids.to_pylist() == ["1e5", "a_b", "NA"]
    assert all(found(labels, image) == [0, 1, 0, 1, 0, 1] for image in ("1e5", "a_b", "NA"))
    with pytest.raises(UsageError, match="no ID ends in '_absent', and no column has that name"):
        read_labels(str(path), LabelOptions(label_columns=("shift", "absent")))


IMAGES, CLASSES, VALUES = ("a", "b_b", "c"), ("x", "y"), ("0", "1", "1.0", "true", "2", "")
NUMBERS = {"0": 0, "1": 1, "1.0": 1, "true": 1, "2": -1, "": -1}


@given(st.lists(st.tuples(*map(st.sampled_from, (IMAGES, CLASSES, VALUES))), min_size=1))
def test_labels_are_those_of_a_loop_over_rows(lines: list[tuple[str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = "".join(f"{image}_{name},{value}\n" for image, name, value in lines)
        text += "".join(f"other_{name},0\n" for _, name, _ in lines)  # so that most are values
        labels = read_labels(write(Path(folder), "ID,Label\n" + text))
    names = [*dict.fromkeys(name for _, name, _ in lines)]
    assert labels.names == tuple(names)
    for image in IMAGES:
        values = [{NUMBERS[v] for i, n, v in lines if (i, n) == (image, name)} for name in names]
        if not any(values):
            assert found(labels, image) is None
        elif any(len(of_class) > 1 for of_class in values):
            assert found(labels, image) == PROBLEMS[2]
        elif not all(values):
            assert found(labels, image) == PROBLEMS[1]
        elif {-1} in values:
            assert found(labels, image) == PROBLEMS[0]
        else:
            assert found(labels, image) == [of_class.pop() for of_class in values]


def zipped(data: bytes, *names: str) -> bytes:
    """An archive of the same content under several names."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, data)
    return file.getvalue()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.compress(data, "zstd", asbytes=True),
    "zip": lambda data: zipped(data, "labels.csv"),
}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_compressed_file_is_read_whatever_its_name(tmp_path: Path, suffix: str) -> None:
    text = "ID,Label\n" + rows("ID_a", any=1) + rows("ID_b")
    for name in (f"labels.csv.{suffix}", "labels.csv", "labels.parquet", "labels"):
        path = tmp_path / name
        path.write_bytes(COMPRESS[suffix](text.encode()))
        labels = read_labels(str(path))
        assert found(labels, "ID_a") == [0, 0, 0, 0, 0, 1]
        assert found(labels, "ID_b") == [0] * 6
        assert len(labels.ids) == 2


# What no checksum protects, as in a Zstandard file of Arrow, may be overwritten unseen.
DAMAGES = [(s, d) for s in COMPRESS for d in ("cut", "empty")]
DAMAGES += [(s, d) for s in ("gz", "bz2", "xz", "zip") for d in ("beginning", "middle")]


@pytest.mark.parametrize(("suffix", "damage"), DAMAGES)
def test_a_compressed_file_that_is_damaged_is_refused(
    tmp_path: Path, suffix: str, damage: str
) -> None:
    rng = random.Random(0)
    text = "ID,Label\n" + "".join(rows(f"ID_{rng.getrandbits(60):x}") for _ in range(2000))
    data = COMPRESS[suffix](text.encode())
    damaged = {
        "cut": data[: len(data) // 2],
        "beginning": data[:60] + bytes(100) + data[160:],
        "middle": data[: len(data) // 2] + bytes(200) + data[len(data) // 2 + 200 :],
        "empty": b"",
    }
    path = tmp_path / f"labels.csv.{suffix}"
    path.write_bytes(damaged[damage])
    with pytest.raises(UsageError, match="cannot read label file"):
        read_labels(str(path))


def test_an_archive_that_needs_a_password_is_refused(tmp_path: Path) -> None:
    data = bytearray(zipped(b"ID,Label\na_x,0\n", "labels.csv"))
    data[6] |= 1  # general purpose bit 0 of the local header, and of the central directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path = tmp_path / "labels.zip"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="cannot read label file"):
        read_labels(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na,0\n", "has the columns 'name', 'label'"),
        ("ID,Label\n", "has no rows"),
        ("image,any\n", "has no rows"),
        ("image,any\n,\n,\n", "has no rows"),
        ("ID,Label\nplain,0\n", "not of the form"),
        ("", "cannot read"),
    ],
)
def test_another_kind_of_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_labels(write(tmp_path, text))


def test_a_label_file_that_is_a_folder_is_told_in_the_systems_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        read_labels(str(tmp_path))
    assert str(raised.value) == f"cannot read label file {tmp_path}: Is a directory"


def test_few_values_of_many_images_and_classes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beam_pipeline.planning.labels._CELLS", 8)
    text = "ID,Label\na_x,0\nb_y,0\n"
    assert read_labels(write(tmp_path, text + "a_z,0\nc_x,0\nc_y,0\n")).values.shape == (3, 3)
    few = write(tmp_path, text + "b_z,1\nc_z,1\n")
    with pytest.raises(UsageError, match="it has 3 images and 3 classes, but only 4 values"):
        read_labels(few)
    monkeypatch.setattr("beam_pipeline.planning.labels._CELLS", 9)
    assert read_labels(few).values.shape == (3, 3)


def test_classes_that_no_row_has_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "ID,Label\na_any,0\n")
    with pytest.raises(UsageError, match="no ID ends in '_other', and no column has that name"):
        read_labels(path, LabelOptions(label_columns=("any", "other", "further")))


def test_a_missing_file_is_refused_before_it_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_labels(str(tmp_path / "absent.csv"))


WIDE = "image_id,site,epidural,other\na,x,0,1\nb,y,1,0\nb,y,1,0\nc,z,2,0\nd,z,,0\n"


def test_a_wide_file_has_a_column_a_class(tmp_path: Path) -> None:
    path = write(tmp_path, WIDE)
    labels = read_labels(path, LabelOptions(label_columns=("other", "epidural")))
    assert labels.names == ("other", "epidural")
    assert found(labels, "a") == [1, 0]
    assert found(labels, "b") == [0, 1]
    for image_id in "cd":
        assert found(labels, image_id) == (Reason.LABEL_INVALID, "a value is neither 0 nor 1")


def test_rows_that_contradict_each_other_make_a_conflict_however_an_id_is_written(
    tmp_path: Path,
) -> None:
    text = "file,x\na/1,0\nb/1,1\na\\1.dcm,1\n./b/1,1\nc,0\n"
    labels = read_labels(write(tmp_path, text))
    assert labels.ids.to_pylist() == ["a/1", "b/1", "c"]
    assert found(labels, "a/1") == (Reason.LABEL_CONFLICT, "rows contradict each other")
    assert (found(labels, "b/1"), found(labels, "c")) == ([1], [0])


WITH_OTHERS = (
    "image,age,split,any,epidural\nID_a,54,train,1,0\nID_b,61,test,0,0\nID_c,70,train,1,1\n"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WITH_OTHERS, r"column 'age' is not of 0 and 1, but for instance 54; .* --label_columns"),
        # Text and long numbers could be a patient's.
        ("id,name,any\na,Doe,1\nb,Doe,0\n", "column 'name' is not of 0 and 1; write"),
        ("id,number,any\na,1234567,1\nb,1234568,0\n", "column 'number' is not of 0 and 1; write"),
        ("id,number,any\na,1000,1\nb,-1000,0\n", "column 'number' is not of 0 and 1; write"),
        ("id,x,any\na,999.9,1\n", "column 'x' is not of 0 and 1, but for instance 999.9; write"),
        (
            "id,fold,any\na,0,1\nb,3,0\nc,4,1\n",
            "column 'fold' is not of 0 and 1, but for instance 3",
        ),
        (
            "ID,Label\nID_a_any,yes\nID_b_any,no\n",
            "'Label' is not of 0 and 1, but for instance yes",
        ),
    ],
)
def test_a_column_that_is_not_of_labels_is_named_at_once(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read_labels(write(tmp_path, text))


def test_labels_are_kept_for_a_later_step(tmp_path: Path) -> None:
    unfinished = Unfinished(Folder(str(tmp_path / "out")))
    assert Labels.find(unfinished) is None
    text = "image,x,y\na,1,0\nb,0,1\nb,0,0\nc,0,\nd,1,1\n"
    labels = read_labels(write(tmp_path, text))
    labels.keep(unfinished)
    kept = Labels.find(unfinished)
    assert kept is not None
    assert kept.names == ("x", "y")
    assert [found(kept, name) for name in "abcd"] == [found(labels, name) for name in "abcd"]
    unfinished.remove("labels")
    assert Labels.find(unfinished) is None


def test_a_few_values_cannot_ask_for_any_amount_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beam_pipeline.planning.labels._CELLS", 60)
    text = "ID,Label\n" + "".join(f"{number}_{number},0\n" for number in range(8))
    with pytest.raises(UsageError, match="8 images and 8 classes, but only 8 values; want a value"):
        read_labels(write(tmp_path, text))


def test_more_classes_than_there_can_be_are_refused(tmp_path: Path) -> None:
    text = "ID,Label\n" + "".join(f"ID_{number},0\n" for number in range(40_000))
    with pytest.raises(UsageError, match="has 40000 classes, and there can be 1000; an ID is"):
        read_labels(write(tmp_path, text))


def test_spaces_and_quotes_around_names_and_values_are_no_part_of_them(tmp_path: Path) -> None:
    for text in (
        "image, x, y\na, 1, 0\n b , 0, 1\n",
        '"image", "x", "y"\n"a", "1", "0"\n"b", "0", "1"\n',
        "ID, Label\na_x, 1\na_y, 0\nb_x , 0\nb_y , 1\n",
    ):
        labels = read_labels(write(tmp_path, text))
        assert labels.names == ("x", "y")
        assert (found(labels, "a"), found(labels, "b")) == ([1, 0], [0, 1])


def test_a_column_of_values_without_a_name_is_not_left_out(tmp_path: Path) -> None:
    labels = read_labels(write(tmp_path, ",image,x,\n0,a,1,\n1,b,0,\n"))
    assert (labels.names, found(labels, "a"), found(labels, "b")) == (("x",), [1], [0])
    with pytest.raises(UsageError, match="column 4 has values and no name; give it one"):
        read_labels(write(tmp_path, ",image,x,\n0,a,1,\n1,b,0,1\n"))


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (1, ["1", "1.0", "1,0", " 1", "1 ", ' "1"', "+1", "1e0", "true", "True", "TRUE", " true"]),
        (0, ["0", "0.0", "0,0", "-0", "false", "False", "FALSE", '"FALSE"']),
        (-1, ["", " ", "2", "-1", "0.5", "0,5", "nan", "NA", "inf", "yes", "no", "x", "1 0"]),
    ],
)
def test_values_as_programs_write_them(value: int, texts: list[str]) -> None:
    assert parse_values(pa.array(texts)).tolist() == [value] * len(texts)


def columns_of(columns: list[str], **options: Any) -> tuple[int, dict[str, int], list[int]]:
    return find_columns(columns, LabelOptions(**options))


@pytest.mark.parametrize(
    ("columns", "ids"),
    [
        (["x", "Image ID"], 1),
        (["x", "SOP-Instance-UID"], 1),
        (["", "x", "image"], 2),
        (["", "x"], 0),
        (["Unnamed: 0", "x"], 0),
        (["x", "__index_level_0__"], 1),
    ],
)
def test_the_column_of_ids_is_found_by_its_name_or_is_the_index_of_pandas(
    columns: list[str], ids: int
) -> None:
    assert columns_of(columns)[:2] == (ids, {"x": columns.index("x")})


def test_columns_are_those_that_are_named() -> None:
    columns = ["image", "x", "slice", "y", "x"]
    named = {"id_column": "slice", "label_columns": ("y", "image")}
    assert columns_of(columns, **named) == (2, {"y": 3, "image": 0}, [])


def test_the_labels_of_rsna_are_preferred() -> None:
    columns = ["image", *reversed(RSNA_LABELS), "age"]
    expected = dict(zip(RSNA_LABELS, (6, 5, 4, 3, 2, 1), strict=True))
    assert columns_of(columns) == (0, expected, [])


def test_columns_without_a_name_are_an_index_or_have_to_be_empty() -> None:
    columns = ["Unnamed: 0.1", "Unnamed: 0", "image", "x", "", "Unnamed: 5"]
    assert columns_of(columns) == (2, {"x": 3}, [4, 5])
    assert columns_of(columns, label_columns=("x",)) == (2, {"x": 3}, [])


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        (["a", "b"], (), "it has the columns 'a', 'b'; want 'ID' and 'Label'"),
        ([f"c{n}" for n in range(9)], (), "'c6', 'c7' and 1 more; want"),
        (["x" * 50, "\x1b[1m"], (), rf"'{'x' * 40}\.\.\.', '\\x1b\[1m'; want"),
        (["image"], (), "it has the columns 'image'"),
        (["a_1", "0", "1"], (), "its first row holds values, not the names of columns"),
        (["Doe", "FALSE"], (), "its first row holds values, not the names of columns"),
        (["Doe", "yes"], (), "its first row holds values, not the names of columns"),
        (["Doe", "54"], (), "its first row holds values, not the names of columns"),
        (["Doe", "1234567"], (), "its first row holds values, not the names of columns"),
        (["Doe", "1956-01-31"], (), "its first row holds values, not the names of columns"),
        (["Doe", "1.2.840.10008.1"], (), "its first row holds values, not the names of columns"),
        (["Doe", "nan"], (), "its first row holds values, not the names of columns"),
        (["image", "a", "b", "a"], (), "it has two columns 'a'; remove or rename one"),
        (["image", "a", "b", "a"], ("a",), "it has two columns 'a'; remove or rename one"),
        (["id", "x"], ("y",), "it has the columns 'id', 'x', not 'y'"),
        (["image", "a", "A"], (), "two classes are called 'a' and 'A'"),
        (["image", "a\x1b"], (), r"a class is called 'a\\x1b'; want 1 to 100 printable"),
        (["image", *map(str, range(1001))], (), "has 1001 columns beside the ids, .* 1000 classes"),
        (["image", *map(str, range(200_000))], (), "has 200000 columns beside the ids"),  # at once
    ],
)
def test_other_columns_are_refused(
    columns: list[str], given: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        columns_of(columns, label_columns=given)


@pytest.mark.parametrize(
    ("columns", "level", "ids"),
    [
        (["Patient ID", "StudyInstanceUID", "x"], "auto", 1),
        (["Patient ID", "StudyInstanceUID", "x"], "patient", 0),
        (["study_id", "series_id", "patient_id", "x"], "auto", 1),
        (["study_id", "series_id", "image", "x"], "auto", 2),
        (["study_id", "series_id", "image", "x"], "study", 0),
        (["x", "Unnamed: 0", "patient-id"], "auto", 2),
        (["x", "image"], "series", 1),
    ],
)
def test_ids_of_the_level_or_else_the_finest_are_taken_and_no_id_is_a_class(
    columns: list[str], level: str, ids: int
) -> None:
    place, classes, _ = columns_of(columns, label_level=level)
    assert (place, [*classes]) == (ids, ["x"])
    named = columns_of(["study_id", "patient_id", "x"], label_columns=("patient_id",))
    assert named == (0, {"patient_id": 1}, [])
