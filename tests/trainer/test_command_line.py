from pathlib import Path

import pytest

from headct.declarations import Mark, allowed_values, default_text, meaning
from headct.errors import UsageError
from tests.trainer.options_page import PAGE, options_page
from trainer.command_line import COMMANDS, parse_arguments
from trainer.options import CompareOptions, EvaluateOptions, PredictOptions, TrainOptions


def test_train_flags_are_the_fields() -> None:
    options = parse_arguments(
        [
            "train",
            "--shards",
            "s",
            "--run",
            "r",
            "--fold",
            "2",
            "--learning_rate",
            "1e-3",
            "--deterministic",
        ]
    )
    assert options == TrainOptions(
        shards="s", run=Path("r"), fold=2, learning_rate=1e-3, deterministic=True
    )


def test_evaluate_and_predict() -> None:
    assert parse_arguments(["evaluate", "--run", "r"]) == EvaluateOptions(run=Path("r"))
    assert parse_arguments(
        ["predict", "--run", "r", "--shards", "s", "--output", "o.csv", "--split", "holdout"]
    ) == PredictOptions(run=Path("r"), shards="s", output=Path("o.csv"), split="holdout")


def test_runs_and_shards_may_come_first_without_their_flags() -> None:
    for given in (["train", "s", "--run=r"], ["crossval", "s", "--run=r", "--seed=3"]):
        plain = [given[0], "--shards=s", *given[2:]]
        assert parse_arguments(given) == parse_arguments(plain)
    assert parse_arguments(["evaluate", "r", "--tta"]) == EvaluateOptions(run=Path("r"), tta=True)
    several = EvaluateOptions(run=["r", "q"], fit_weights=True)
    assert parse_arguments(["evaluate", "r", "q", "--fit_weights"]) == several
    assert parse_arguments(["compare", "r", "q"]) == CompareOptions(runs=["r", "q"])


def test_predict_takes_a_run_and_shards_or_dicom_files(tmp_path: Path) -> None:
    shards, dicom = tmp_path / "shards", tmp_path / "dicom"
    shards.mkdir()
    (shards / "manifest.json").touch()
    options = parse_arguments(["predict", "r", str(shards), "--tta"])
    assert options == PredictOptions(run=Path("r"), shards=str(shards), tta=True)
    where = ["--where", "a=1", "--where", "b=2"]
    options = parse_arguments(["predict", "r", str(dicom), "--output", "o.csv", *where])
    expected = PredictOptions(run=Path("r"), input=str(dicom), output="o.csv", where=["a=1", "b=2"])
    assert options == expected
    several = parse_arguments(["predict", "r", "q", str(dicom), "--output", "o.csv"])
    assert several == PredictOptions(run=["r", "q"], input=str(dicom), output="o.csv")
    assert (PredictOptions(run="r", shards="s").output, options.writes_folder) == (
        Path("predictions"),
        False,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["r"],
            "--shards and --input: one of them is missing; want shards or DICOM files",
        ),
        (
            ["r", "d", "--shards", "s"],
            "--shards and --input: choose one; want shards or DICOM",
        ),
        (["r", "s", "d", "--tta", "e"], "unknown argument e: options start with --"),
        (["r", "d", "--split", "fold0"], "--split applies to --shards; DICOM files have no splits"),
        (["r", "--shards", "d", "--where", "x=1"], "--where applies to --input, not to --shards"),
        (["r", "d", "--output", "t.txt"], "--output t.txt: want a name in .csv or .parquet, or a"),
        (["r", "d", "--sample_submission", "s"], "--sample_submission: want a submission, --out"),
        (["r", ""], '--input "": want a path or URL'),
    ],
)
def test_what_predict_refuses(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_arguments(["predict", *words])
    assert str(raised.value).startswith(message)


def write_config(folder: Path, text: str) -> str:
    path = folder / "options.toml"
    path.write_text(text)
    return str(path)


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    config = write_config(
        tmp_path, 'shards = "s"\nepochs = 7\nlearning_rate = 1\ndeterministic = true\nseed = 3\n'
    )
    options = parse_arguments(["train", "--config", config, "--run", "r", "--seed", "4"])
    assert options == TrainOptions(
        shards="s", run=Path("r"), epochs=7, learning_rate=1.0, deterministic=True, seed=4
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "--config {config}: unknown option --epoch (did you mean --epochs?)"),
        ("[train]\nepochs = 3", "--config {config}: unknown option --train"),
        ('"a\\nb" = 3', '--config {config}: unknown option "--a\\nb"'),
        ("epochs = 3.5", "--epochs 3.5: want a whole number of at least 1"),
        ("epochs = true", "--config {config}: --epochs: expected one argument"),
        ("epochs = []", '--epochs "": want a whole number of at least 1'),
        ("epochs = 0", "--epochs 0: want a whole number of at least 1"),
        ("ema = nan", "--ema nan: want a number from 0 to below 1"),
        ('deterministic = "yes"', "--config {config}: --deterministic/--no-deterministic"),
        ("cache = 1", "--cache 1: want one of none, ram, disk, device"),
        ('run = "a\\u0000b"', '--run "a\\u0000b": want a path without the character NUL'),
        ('windows = "lung"', "--windows 'lung': want name:center:width or brain, subdural, bone"),
        ("epochs = ", "--config {config}: not TOML (Invalid value"),
        (f"epochs = {'9' * 5000}", "--config {config}: not TOML (Exceeds the limit"),
        (f"epochs = {'[' * 5000}", "--config {config}: not TOML (maximum recursion depth exceeded"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    config, run = write_config(tmp_path, text), [] if "run" in text else ["--run", "r"]
    with pytest.raises(UsageError) as raised:
        parse_arguments(["train", "--config", config, "--shards", "s", *run])
    assert str(raised.value).startswith(message.replace("{config}", config))
    assert "\n" not in str(raised.value)


def test_a_file_has_paths_and_whole_numbers_for_others(tmp_path: Path) -> None:
    config = write_config(tmp_path, 'shards = "s"\nrun = "r"\nema = 0\nreport = false\n')
    options = parse_arguments(["train", "--config", config])
    assert options == TrainOptions(shards="s", run=Path("r"), ema=0.0, report=False)


def test_folds_are_not_chosen_for_crossval(tmp_path: Path) -> None:
    config = write_config(tmp_path, "fold = 1")
    with pytest.raises(UsageError, match="unknown option --fold"):
        parse_arguments(["crossval", "--shards", "s", "--run", "r", "--config", config])


def test_a_file_has_lists_of_paths(tmp_path: Path) -> None:
    config = write_config(tmp_path, 'runs = ["a b", "c,d"]')
    assert parse_arguments(["compare", "--config", config]) == CompareOptions(
        runs=(Path("a b"), Path("c,d"))
    )


def test_no_such_file() -> None:
    with pytest.raises(UsageError, match=r"--config lost\.toml: no such file"):
        parse_arguments(["evaluate", "--run", "r", "--config", "lost.toml"])


def test_help_of_a_command_has_all_its_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100000")
    for command, kind in COMMANDS.items():
        with pytest.raises(SystemExit) as raised:
            parse_arguments([command, "--help"])
        assert raised.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        for name, field in kind.model_fields.items():
            if Mark.DERIVED in field.metadata:
                continue
            default = "required" if field.is_required() else f"default: {default_text(field)}"
            any_text = field.annotation in (str, bool, Path, tuple[Path, ...], tuple[str, ...])
            facts = default if any_text else f"{allowed_values(field)}; {default}"
            assert f" {meaning(field)} ({facts})" in text
            assert f" --{name}" in text.partition("options:")[2]


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("train", "epochs, at most (a whole number of at least 1; default: 10)"),
        ("train", "dropout before the head (a number from 0 to below 1; default: 0.2)"),
        ("train", "highest learning rate (a number above 0; default: 0.0003)"),
        ("train", "folder of --cache disk (default: the run directory)"),
        ("train", "write report.html at the end (default: true)"),
        ("crossval", "learning rate after the warm-up (one of cosine, constant; default: cosine)"),
        (
            "evaluate",
            "split to measure; all: every labeled one (default: the fold that training left out)",
        ),
        ("predict", "sample whose rows and order the submission gets; a slice that was rejected"),
        ("export", "what Keras computes with (tensorflow; default: tensorflow)"),
        ("report", "worst mistakes to show, of a run (a whole number of at least 0; default: 12)"),
    ],
)
def test_lines_of_help(
    command: str,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100000")
    with pytest.raises(SystemExit):
        parse_arguments([command, "--help"])
    assert line in capsys.readouterr().out


def test_the_page_of_options_is_of_these_options() -> None:
    """If not: `python -m tests.trainer.options_page`."""
    assert PAGE.read_text(encoding="utf-8") == options_page()
