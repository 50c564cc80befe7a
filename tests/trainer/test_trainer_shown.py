from pathlib import Path

import pytest
from rich.console import Console

from trainer.__main__ import main
from trainer.progress import Display
from trainer.shown import show_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31m\r\n\x9b\u202e", r"a\x1b[31m\r\n\x9b\u202e"),
        ("https://joe:secret@host/shards", "https://***@host/shards"),
        ("az://box/shards?sv=2024&sig=secret", "az://box/shards?***"),
        ("abfss://files@account.dfs.core.windows.net/in", None),
        ("/data/[a] b=c@d", None),
    ],
)
def test_what_a_terminal_obeys_and_passwords_are_not_shown(text: str, shown: str | None) -> None:
    assert show_line(text) == (text if shown is None else shown)


def test_no_line_of_a_display_is_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    Display(Console()).point_out("a\x1b[2J https://u:p@h/")
    assert capsys.readouterr().out == "a\\x1b[2J https://***@h/\n"


def test_an_error_is_a_line_that_is_not_obeyed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "--run", str(tmp_path), "--no\x1b[2J"]
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert r"no\u001b[2J" in errors
    assert "\x1b" not in errors
