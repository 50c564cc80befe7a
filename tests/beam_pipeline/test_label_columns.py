import pytest

from beam_pipeline.planning.label_file import WideColumns, find_long, find_wide
from beam_pipeline.planning.labels import RSNA_LABELS


def test_the_long_form_is_found_wherever_its_columns_are() -> None:
    assert find_long(["Label", "x", "ID"]) == (2, 0)
    assert find_long(["id", "Label"]) is None
    with pytest.raises(ValueError, match="it has two columns 'ID'"):
        find_long(["ID", "Label", "ID"])


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
    found = find_wide(columns, None, ())
    assert (found.ids, found.names, found.classes) == (ids, ("x",), (columns.index("x"),))


def test_columns_are_those_that_are_named() -> None:
    columns = ["image", "x", "slice", "y", "x"]
    assert find_wide(columns, "slice", ("y", "image")) == WideColumns(2, ("y", "image"), (3, 0), ())


def test_the_labels_of_rsna_are_preferred() -> None:
    columns = ["image", *reversed(RSNA_LABELS), "age"]
    assert find_wide(columns, None, ()) == WideColumns(0, RSNA_LABELS, (6, 5, 4, 3, 2, 1), ())


def test_columns_without_a_name_are_an_index_or_have_to_be_empty() -> None:
    columns = ["Unnamed: 0.1", "Unnamed: 0", "image", "x", "", "Unnamed: 5"]
    assert find_wide(columns, None, ()) == WideColumns(2, ("x",), (3,), (4, 5))
    assert find_wide(columns, None, ("x",)).empty == ()


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
        (["image", "a", "b", "a"], (), "it has two columns 'a'; remove or rename one"),
        (["image", "a", "b", "a"], ("a",), "it has two columns 'a'; remove or rename one"),
        (["id", "x"], ("y",), "it has the columns 'id', 'x', not 'y'"),
        (["image", "a", "A"], (), "two classes are called 'a' and 'A'"),
        (["image", "a\x1b"], (), r"a class is called 'a\\x1b'; want 1 to 100 printable"),
        (["image", *map(str, range(1001))], (), "it has 1001 columns beside the ids, .* 1000"),
    ],
)
def test_other_columns_are_refused(
    columns: list[str], given: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find_wide(columns, None, given)
