import os
from pathlib import Path

import pytest

from headct.errors import UsageError
from trainer.json_documents import (
    LARGEST,
    check_document,
    key_path,
    parse_json,
    read_document,
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "f: not JSON"),
        (b"\xff\xfe\xff", "f: not JSON"),
        (b'{"a": NaN}', "f: NaN: must be a finite number"),
        (b'{"a": [-Infinity]}', "f: -Infinity: must be a finite number"),
        (b'{"a": 1e999}', 'f: "1e999": must be a finite number'),
        (b"1" * 5000, "f: not JSON"),
        (b"[" * 100_000, "f: nested too deeply"),
        (b'{"a": ' * 100_000, "f: nested too deeply"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', 'f: the key "b" is there twice'),
    ],
)
def test_what_is_no_json(text: bytes, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_json(text, "f")
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_what_is_json() -> None:
    assert parse_json('{"a": [1, 2.5, null, "ä"]}'.encode(), "f") == {"a": [1, 2.5, None, "ä"]}


def test_what_is_no_file_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_document(tmp_path / "none", "run")
    with pytest.raises(UsageError, match="must be a file"):
        read_document(tmp_path, "run")
    os.mkfifo(tmp_path / "fifo")  # to open it would be to wait for ever
    with pytest.raises(UsageError, match="must be a file"):
        read_document(tmp_path / "fifo", "run")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(UsageError, match="more than 64 MiB"):
        read_document(tmp_path / "large", "run")


def test_a_wrong_value_is_named_with_what_is_right() -> None:
    check_document({"any": 1, "lower": 0.5}, "temperatures", "f")
    with pytest.raises(UsageError) as raised:
        check_document({"any": 1, "a b": "hot"}, "temperatures", "f")
    assert str(raised.value) == (
        'f: ["a b"]: "hot": must be a number from 0.001 to 1000, or an'
        " object with temperature and bias"
    )
    with pytest.raises(UsageError) as raised:
        check_document([], "temperatures", "f")
    assert str(raised.value) == (
        "f: all of it: a list of 0: must be an object with a temperature a label"
    )


def test_paths_in_documents_are_one_short_line() -> None:
    assert key_path(["splits", "fold0", "shards", 3, "file"]) == "splits.fold0.shards[3].file"
    assert key_path(["a\nb", 0]) == '["a\\nb"][0]'
