import gzip
from pathlib import Path

import pandas as pd
import pytest

from beam_pipeline.errors import Reason, UsageError
from beam_pipeline.labels import RSNA_LABELS, LabelFile, Labels


def write(folder: Path, text: str, name: str = "labels.csv") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def read_labels(path: str) -> Labels:
    return LabelFile(path).read()


def rows(image_id: str, **values: object) -> str:
    filled = dict.fromkeys(RSNA_LABELS, 0) | values
    return "".join(f"{image_id}_{name},{value}\n" for name, value in filled.items())


def test_a_slice_has_its_labels_in_the_usual_order(tmp_path: Path) -> None:
    text = "ID,Label\n" + rows("ID_b", subdural=1, any=1) + rows("ID_a")
    labels = read_labels(write(tmp_path, text))
    assert labels.names == RSNA_LABELS
    assert labels.table.loc["ID_b"].tolist() == [0, 0, 0, 0, 1, 1]
    assert labels.table.loc["ID_a"].tolist() == [0] * 6
    assert labels.unusable == {}


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    lines = (rows("ID_a", epidural=1) + rows("ID_b", any=1)).splitlines(keepends=True)
    forward = read_labels(write(tmp_path, "ID,Label\n" + "".join(lines)))
    backward = read_labels(write(tmp_path, "ID,Label\n" + "".join(reversed(lines)), "other.csv"))
    assert forward.table.equals(backward.table)


def test_repeated_rows_that_agree_count_once(tmp_path: Path) -> None:
    labels = read_labels(write(tmp_path, "ID,Label\n" + rows("ID_a", any=1) * 2))
    assert labels.table.loc["ID_a"].tolist() == [0, 0, 0, 0, 0, 1]


def test_rows_that_contradict_each_other_make_a_conflict(tmp_path: Path) -> None:
    text = "ID,Label\n" + rows("ID_a") + "ID_a_any,1\n" + rows("ID_b")
    labels = read_labels(write(tmp_path, text))
    assert labels.unusable == {"ID_a": (Reason.LABEL_CONFLICT, "rows contradict each other")}
    assert labels.table.index.tolist() == ["ID_b"]


@pytest.mark.parametrize("value", ["2", "", "yes", "-1", "0.5", "nan"])
def test_a_value_other_than_0_and_1_is_invalid(tmp_path: Path, value: str) -> None:
    text = "ID,Label\n" + rows("ID_a", any=value) + rows("ID_b")
    labels = read_labels(write(tmp_path, text))
    assert labels.unusable == {"ID_a": (Reason.LABEL_INVALID, "a value is neither 0 nor 1")}


def test_a_missing_class_is_invalid(tmp_path: Path) -> None:
    text = "ID,Label\n" + rows("ID_a").replace("ID_a_any,0\n", "") + rows("ID_b")
    labels = read_labels(write(tmp_path, text))
    assert labels.unusable == {"ID_a": (Reason.LABEL_INVALID, "not a value for each class")}


def test_other_classes_keep_the_order_of_the_file(tmp_path: Path) -> None:
    text = "ID,Label\nx_zebra,1\nx_ant,0\ny_ant,1\ny_zebra,0\n"
    labels = read_labels(write(tmp_path, text))
    assert labels.names == ("zebra", "ant")
    assert labels.table.loc["y"].tolist() == [0, 1]


def test_a_compressed_file_is_read_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv.gz"
    path.write_bytes(gzip.compress(("ID,Label\n" + rows("ID_a")).encode()))
    assert len(read_labels(str(path)).table) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na,0\n", "has the columns 'name', 'label'"),
        ("ID,Label\n", "has no rows"),
        ("ID,Label\nplain,0\n", "not of the form"),
        ("", "cannot read"),
    ],
)
def test_another_kind_of_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_labels(write(tmp_path, text))


def test_a_missing_file_is_refused_before_it_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        LabelFile(str(tmp_path / "absent.csv")).check()


WIDE = "image_id,site,epidural,other\na,x,0,1\nb,y,1,0\nb,y,1,0\nc,z,2,0\nd,z,,0\n"


def test_a_wide_file_has_a_column_a_class(tmp_path: Path) -> None:
    path = write(tmp_path, WIDE)
    labels = LabelFile(path, label_columns=("other", "epidural")).read()
    assert labels.names == ("other", "epidural")
    assert labels.table.to_dict("index") == {
        "a": {"other": 1, "epidural": 0},
        "b": {"other": 0, "epidural": 1},
    }
    assert set(labels.unusable) == {"c", "d"}


def test_rows_of_a_wide_file_may_conflict(tmp_path: Path) -> None:
    labels = read_labels(write(tmp_path, "file,x\na,1\na,0\nb,1\n"))
    assert labels.unusable == {"a": (Reason.LABEL_CONFLICT, "rows contradict each other")}
    assert labels.table.index.tolist() == ["b"]


def test_the_form_of_a_file_and_its_columns_are_found(tmp_path: Path) -> None:
    header = "Image," + ",".join(reversed(RSNA_LABELS)) + ",source"
    labels = read_labels(write(tmp_path, f"{header}\nID_1,1,0,0,0,0,1,kaggle\n"))
    assert labels.names == RSNA_LABELS
    assert labels.table.loc["ID_1"].tolist() == [1, 0, 0, 0, 0, 1]


def test_parquet_is_read_like_csv(tmp_path: Path) -> None:
    frame = pd.DataFrame({"slice": ["a", "b", "c"], "x": [0, 1, None], "y": [True, False, True]})
    frame.to_parquet(tmp_path / "labels.parquet")
    labels = LabelFile(str(tmp_path / "labels.parquet"), id_column="slice").read()
    assert labels.table.to_dict("index") == {"a": {"x": 0, "y": 1}, "b": {"x": 1, "y": 0}}
    assert set(labels.unusable) == {"c"}


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not \\['absent'\\]"):
        LabelFile(write(tmp_path, WIDE), label_columns=("absent",)).check()
