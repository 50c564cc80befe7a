"""Tables with a column per split keep every name and number, however narrow the terminal."""

import io
import re

import pytest
from rich.console import Console

from beam_pipeline.split_tables import print_by_split

SPLITS = [*(f"fold{number}" for number in range(10)), "holdout"]
LABELS = [
    *("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"),
    *("patients", "[red]", "pleural thickening", "edema", "effusion", "fibrosis", "mass", "nodule"),
]
ROWS = [
    ("patients", [f"{1700 + split}" for split in range(11)]),
    *(
        (label, [f"{10_000 + 100 * row + split}" for split in range(11)])
        for row, label in enumerate(LABELS)
    ),
]


def printed(width: int) -> list[str]:
    file = io.StringIO()
    print_by_split(Console(file=file, width=width), SPLITS, ROWS)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [200, 120, 80, 40, 30])
def test_nothing_is_cut(width: int) -> None:
    lines = printed(width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    words = re.findall(r"[^\s│┃]+", text)
    for name, cells in ROWS:
        assert name in " ".join(words)
        for cell in cells:
            assert words.count(cell) == 1
    assert [word for word in words if word in SPLITS] == SPLITS


@pytest.mark.parametrize(("width", "tables"), [(200, 1), (80, 2), (40, 6)])
def test_as_few_tables_as_fit(width: int, tables: int) -> None:
    assert sum(line.startswith("┏") for line in printed(width)) == tables
