"""The console command `headct`."""

import subprocess
from pathlib import Path

import pytest

from headct import __version__, cli
from headct.commands import COMMANDS, STARTED_BY
from tests.processes import run_python


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STARTED_BY, "")  # so that it is put back


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"headct {__version__}\n"


def test_help_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    for name, command in COMMANDS.items():
        assert f" {name} {command.text}" in words


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: headct {name} ")
    assert ("--holdout" in shown) == (name in ("preprocess", "inspect"))


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["trian"], "headct: error: unknown command trian (did you mean train?)"),
        ([], f"headct: error: the command is missing: want one of {', '.join(COMMANDS)}, then"),
        (["--verbose"], "headct: error: the command is missing"),
        (["--print-completion", "ksh"], "headct: error: --print-completion ksh: want one of b"),
        (["verify", "--shard", "x"], "verify: error: unknown option --shard (did you mean --sha"),
        (["train", "--run", "r"], "trainer: --shards is missing"),
        (["preprocess", "--folds", "1"], "beam_pipeline: error: --"),
    ],
)
def test_a_mistake_is_one_line(
    argv: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(line)
    assert (shown.err.count("\n"), shown.out) == (1, "")


def test_completion_knows_options_and_choices(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for shell in ("bash", "zsh", "tcsh", "fish"):
        assert cli.main(["--print-completion", shell]) == 0
        script = capsys.readouterr().out
        assert "preprocess" in script
        assert "optimizer" in script
        assert "adamw" in script
    cli.main(["--print-completion", "bash"])
    (tmp_path / "headct.bash").write_text(capsys.readouterr().out)
    subprocess.run(["bash", "-n", tmp_path / "headct.bash"], check=True)


@pytest.mark.parametrize("name", ["--version", *COMMANDS])
def test_a_command_loads_only_what_it_needs(name: str) -> None:
    code = (
        "import sys\nfrom headct import cli\n"
        "try:\n    cli.main(sys.argv[1:])\n"
        "finally:\n    print(*sys.modules, file=sys.stderr)"
    )
    argv = [name] if name == "--version" else [name, "--help"]
    loaded = {*run_python("-c", code, *argv).stderr.split()}
    assert not loaded & {"apache_beam", "tensorflow", "keras", "jax", "shtab"}
    other = "beam_pipeline" if COMMANDS.get(name, ("trainer",))[0] == "trainer" else "trainer"
    assert other not in loaded
