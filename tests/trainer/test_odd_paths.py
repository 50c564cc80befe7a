"""Paths that a terminal's markup, a plot, make or a shell could take for something else."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from trainer.__main__ import main

# A folder, and a name in it.
pytestmark = pytest.mark.system

ODD = "[/red] [bold]a:bug:$x^$ %s \"b\" 'c' {d} #e ~ &amp;<b> \\n ü"


def advice(told: str, target: str) -> dict[str, str]:
    """The options of the command that was advised, as a shell would take them."""
    start = f"Next: python -m trainer {target} "
    (line,) = (line for line in told.splitlines() if line.startswith(start))
    words = shlex.split(line.removeprefix(start))
    return dict(zip(words[::2], words[1::2], strict=True))


@pytest.mark.usefixtures("drawn_history")
def test_every_command_takes_odd_paths(
    shards: Path, tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / ODD
    folder.mkdir(parents=True)
    data, run = folder / f"shards {ODD}", folder / f"run {ODD}"
    shutil.copytree(shards, data)
    flags = [f"--{name}={value}" for name, value in (tiny | {"epochs": 1}).items()]
    assert main(["train", f"--shards={data}", f"--run={run}", *flags]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert f"{run}: fold0, epoch 1\n" in told.out
    assert advice(told.out, "evaluate") == {"--run": str(run)}
    assert ODD in json.loads((run / "run.json").read_text())["shards"]["path"]
    for command in (["evaluate", "--tta"], ["report"]):
        assert main([*command, f"--run={run}"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert f"written: {run}/evaluation-fold0-tta.json" in told.out
    assert f"written: {run}/report.html\n" in told.out
    assert advice(told.out, "export") == {"--run": str(run), "--output": str(run / "export")}
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "red] [bold]a:bug:$x^$ %s" in page
    assert "<b>" not in page
    output, export = folder / f"p {ODD}.csv", folder / f"e {ODD}"
    predict = ["predict", f"--run={run}", f"--shards={data}", f"--output={output}"]
    other = Path(shutil.copytree(run, folder / f"_other {ODD}"))
    compare = ["compare", "--runs", str(run), str(other), f"--output={folder / 'c.html'}"]
    for arguments in (predict, ["export", f"--run={run}", f"--output={export}"], compare):
        assert main(arguments) == 0
    told = capsys.readouterr()
    assert told.err == ""
    for path in (output, export / "model.onnx", export / "saved_model", folder / "c.html"):
        assert f"written: {path}" in told.out
        assert path.exists()


@pytest.mark.parametrize("sign", ["\n", "\r", "\t", "\x1b[31m", "\u2028", "\u202e", "\udcff"])
def test_signs_that_no_line_can_show_are_refused(
    shards: Path, finished: Path, tmp_path: Path, sign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = f"{tmp_path}/a{sign}b"
    commands = [
        ["train", f"--shards={shards}", f"--run={odd}"],
        ["crossval", f"--shards={shards}", f"--run={odd}"],
        *([name, f"--run={odd}"] for name in ("evaluate", "report")),
        ["predict", f"--run={finished}", f"--shards={shards}", f"--output={odd}"],
        ["export", f"--run={finished}", f"--output={odd}"],
        ["compare", "--runs", str(finished), odd],
    ]
    if sign not in ("\u202e", "\udcff"):  # which run.json takes, and which no manifest is read from
        Path(odd).symlink_to(shards)
        commands.append(["train", f"--shards={odd}", f"--run={tmp_path / 'new'}"])
    for command in commands:
        assert main(command) == 2, command
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "want a path " in error or "for run.json: shards.path: " in error
    assert not (tmp_path / "new").exists()
