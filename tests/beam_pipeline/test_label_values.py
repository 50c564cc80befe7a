import pyarrow as pa
import pytest

from beam_pipeline.planning.label_file import check_values, parse_values


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


@pytest.mark.parametrize(
    ("texts", "instance"),
    [
        (["54", "61"], ", but for instance 54; write"),
        (["Doe", "yes"], ", but for instance yes; write"),
        (["Doe", "1234567"], "; write 0 and 1, or true and false"),
    ],
)
def test_a_column_of_other_values_is_named_and_nobody_in_it(
    texts: list[str], instance: str
) -> None:
    column = pa.array([*texts, "1"])
    with pytest.raises(ValueError, match=f"column 'age' is not of 0 and 1{instance}"):
        check_values("age", column, parse_values(column))
    half = pa.array([*texts, "1", "0"])
    check_values("age", half, parse_values(half))
