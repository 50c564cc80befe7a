"""What is shown of a run: its output folder tells it; and tables by split."""

import io
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from beam_pipeline.finish import finish_directory
from beam_pipeline.options import Options
from beam_pipeline.planning.inventory import inspect_part, list_parts
from beam_pipeline.planning.plan_shards import plan_shards
from beam_pipeline.progress import Display, print_by_split, show_summary
from beam_pipeline.shards.unfinished import Unfinished
from beam_pipeline.workers import Watch
from headct.reasons import TRANSIENT
from headct.stores import Folder
from tests.beam_pipeline.steps import small_options, write_whole


@pytest.fixture
def options(small_data_set: Path, tmp_path: Path) -> Options:
    return small_options(small_data_set, tmp_path / "out", 4)


def test_the_output_folder_tells_how_far_a_run_is(options: Options) -> None:
    unfinished = Unfinished(Folder(options.files.output))
    printed = io.StringIO()
    display = Display(Console(file=printed), unfinished)
    display.look()
    assert +display.counts == Counter()
    files = sum(list_parts(options))
    display.look()
    assert +display.counts == Counter(files_listed=files)
    rejected = inspect_part(0, Watch(), options=options).rejected
    display.look()
    assert rejected > 0
    found = Counter(files_listed=files, files_inspected=files, rejected_by_header=rejected)
    assert +display.counts == found
    plan = plan_shards(1, options)
    shards = len(plan.shards)
    found += Counter(shards_planned=shards, slices_planned=plan.slices)
    for number in range(shards):
        display.look()
        assert +display.counts == found
        written = write_whole(number, options)
        found += Counter(shards_written=1, slices_written=written.examples)
        found["rejected_while_writing"] += len(written.rejects)
    display.look()
    assert +display.counts == found
    assert found["rejected_while_writing"] > 0
    finish_directory(shards, options)
    display.look()
    assert +display.counts == found
    assert printed.getvalue().count(plan.notes[0]) == 1


def test_what_earlier_runs_wrote_says_nothing_of_the_rate(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    now = 100.0
    monkeypatch.setattr("beam_pipeline.progress.time.monotonic", lambda: now)
    console = Console(file=out, force_terminal=True, width=200)
    display = Display(console, Unfinished(Folder(options.files.output)))
    counts = Counter(files_listed=90, files_inspected=90, shards_planned=9, slices_planned=90)
    with display:
        display.counts = counts | Counter(shards_written=5, slices_written=50)
        display.look()
        now += 10
        display.counts = counts | Counter(shards_written=8, slices_written=79)
        display.look()
    assert "8/9 shards, 3 slices/s" in out.getvalue()


def test_a_folder_that_is_removed_meanwhile_is_no_error(options: Options) -> None:
    display = Display(Console(file=io.StringIO()), Unfinished(Folder(options.files.output)))
    files = sum(list_parts(options))
    display.look()
    shutil.rmtree(options.files.output)
    display.look()
    assert +display.counts == Counter(files_listed=files)


@pytest.mark.parametrize("reason", sorted(TRANSIENT))
def test_a_summary_tells_of_rejects_that_may_pass(reason: str) -> None:
    shown = [summary_of({"not_dicom": 3} | more) for more in ({}, {reason: 2})]
    line = "2 of these may pass if read again, which --overwrite does\n"
    assert [line in text for text in shown] == [False, True]


def test_a_summary_shows_paths_as_they_are() -> None:
    assert "5 of 10 files written to out/[red]a[/red]\n" in summary_of({}, "out/[red]a[/red]")


def summary_of(rejected: dict[str, int], output: str = "out") -> str:
    counts = {"rejected_by_reason": rejected, "repaired": {}, "resized": 0}
    counts |= {"identical_pixels": {"groups": 0}, "written": 5, "files_seen": 10}
    split = {"patients": 1, "shards": [], "examples": 5}
    manifest = {"counts": counts, "splits": {"test": split}, "labels": []}
    console = Console(file=io.StringIO())
    show_summary(console, manifest, Folder(output), None)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


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
