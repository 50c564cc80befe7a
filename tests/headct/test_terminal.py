"""Where progress bars can be shown."""

import io

import pytest
from rich.console import Console

from headct import terminal


@pytest.mark.parametrize(
    ("kind", "widgets", "in_kernel", "expected"),
    [
        ("terminal", False, False, True),
        ("terminal", True, True, False),  # `!headct ...` in a notebook
        ("file", True, False, False),
        ("notebook", True, True, True),
        ("notebook", False, True, False),
    ],
)
def test_where_lines_can_be_replaced(
    kind: str, widgets: bool, in_kernel: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"ipywidgets": object()} if widgets else {}
    monkeypatch.setattr(terminal, "find_spec", found.get)
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    if in_kernel:
        monkeypatch.setenv("JPY_PARENT_PID", "7")
    console = Console(
        file=io.StringIO(), force_terminal=kind == "terminal", force_jupyter=kind == "notebook"
    )
    assert terminal.can_redraw(console) is expected
