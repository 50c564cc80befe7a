import os
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from headct.errors import UsageError
from headct.json_documents import (
    LARGEST,
    PRINTABLE,
    check_document,
    key_path,
    must,
    parse_json,
    read_document,
)

Side = Annotated[int, Field(strict=True), must("a whole number")]


@dataclass
class Box:
    name: Annotated[str, Field(strict=True), PRINTABLE, must("a line")]
    sides: Annotated[list[Side], Field(min_length=1), must("a list of sides")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "f: not JSON"),
        (b"\xff\xfe\xff", "f: not JSON"),
        (b'{"a": NaN}', 'f: not JSON ("NaN": must be a finite number)'),
        (b'{"a": [-Infinity]}', 'f: not JSON ("-Infinity": must be a finite number)'),
        (b'{"a": 1e999}', 'f: not JSON ("1e999": must be a finite number)'),
        (b"1" * 5000, "f: not JSON"),
        (b"[" * 100_000, "f: nested too deeply"),
        (b'{"a": ' * 100_000, "f: nested too deeply"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', 'f: not JSON (the key "b" is there twice)'),
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
        read_document(tmp_path / "none", Box)
    with pytest.raises(UsageError, match="must be a file"):
        read_document(tmp_path, Box)
    os.mkfifo(tmp_path / "fifo")  # to open it would be to wait for ever
    with pytest.raises(UsageError, match="must be a file"):
        read_document(tmp_path / "fifo", Box)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(UsageError, match="more than 64 MiB"):
        read_document(tmp_path / "large", Box)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "f: all of it: a list of 0: must be a box"),
        ({"sides": [1, 2.5]}, "f: name: is missing"),
        ({"name": "x", "sides": 3}, "f: sides: 3: must be a list of sides"),
        ({"name": "x", "sides": []}, "f: sides: a list of 0: must be a list of sides"),
        ({"name": "x", "sides": [1, "2"]}, 'f: sides[1]: "2": must be a whole number'),
        ({"name": "x", "sides": [1, True]}, "f: sides[1]: true: must be a whole number"),
        ({"name": "a\nb", "sides": [1]}, 'f: name: "a\\nb": must be a line'),
        ({"name": "a\u2028b", "sides": [1]}, 'f: name: "a\\u2028b": must be a line'),
        ({"name": "a\x85b", "sides": [1]}, 'f: name: "a\\u0085b": must be a line'),
        ({"name": "\ud800", "sides": [1]}, 'f: name: "\\ud800": must be a line'),
    ],
)
def test_a_wrong_value_is_named_with_what_is_right(document: Any, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        check_document(document, Annotated[Box, must("a box")], "f")
    assert str(raised.value) == message


def test_more_keys_than_known_are_welcome() -> None:
    found = check_document({"name": "x", "sides": [1], "more": {"a": None}}, Box, "f")
    assert found == Box("x", [1])


def test_paths_in_documents_are_one_short_line() -> None:
    assert key_path(["splits", "fold0", "shards", 3, "file"]) == "splits.fold0.shards[3].file"
    assert key_path(["a\nb", 0]) == '["a\\nb"][0]'
