import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from beam_pipeline.command_line import RunnerOptions, parse_options
from beam_pipeline.dicom.hounsfield import RepairPolicy
from beam_pipeline.keys import KEY_VARIABLE
from beam_pipeline.options import Files, Identifiers, Options, config_text
from beam_pipeline.runners.choose import LOCAL, RUNNERS, ChosenRunner
from headct.declarations import flags, help_text
from headct.errors import UsageError
from headct.windows import Window
from tests.options_table import PAGE, page

PATHS = ["--input", "in", "--output", "out"]
ELSEWHERE = ["--runner", "PortableRunner", "--job_endpoint", "embed"]


def test_defaults_are_those_of_the_field() -> None:
    options, launch = parse_options(PATHS)
    assert [(w.name, w.center, w.width) for w in options.image.windows] == [
        ("brain", 40, 80),
        ("subdural", 80, 200),
        ("bone", 600, 2800),
    ]
    assert (options.image.image_size, options.splits.folds, options.files.labels) == (512, 5, None)
    assert options.image.hu_repair is RepairPolicy.AUTO
    assert options.run.max_reject_fraction == 0.05
    assert (options.files.storage_patience, options.run.decode_timeout) == (600, 120)
    assert options.identifiers.identifiers is Identifiers.ORDINAL
    assert launch == ChosenRunner(LOCAL)


def test_what_is_not_ours_is_left_for_the_runner() -> None:
    argv = [*PATHS, "--windows", "brain,x:1:2", *ELSEWHERE, "--cancel_on_interrupt"]
    options, launch = parse_options(argv)
    assert options.image.windows == (Window("brain", 40, 80), Window("x", 1, 2))
    assert launch == ChosenRunner(RUNNERS["PortableRunner"], ("--job_endpoint", "embed"), True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"windows": tuple(Window(name, 0, 1) for name in "abcde")},
            "--windows a,b,c,d,e: want 1 to 4 windows",
        ),
        ({"windows": (Window("a", 0, 1),) * 2}, "--windows a,a: want different names"),
        ({"image_size": 8}, "--image_size 8: want a whole number from 16 to 4096"),
        ({"folds": 1}, "--folds 1: want a whole number from 2 to 100"),
        ({"examples_per_shard": 0}, "--examples_per_shard 0: want a whole number of at least 1"),
        ({"seed": -1}, "--seed -1"),
        ({"holdout": 1.0}, "--holdout 1.0: want a number from 0 to 0.9"),
        ({"max_reject_fraction": 1.5}, "--max_reject_fraction 1.5: want a number from 0 to 1"),
        ({"workers": 0}, "--workers 0: want a whole number of at least 1"),
        ({"storage_patience": 0.5}, "--storage_patience 0.5: want a number of at least 1"),
        ({"storage_patience": float("nan")}, "--storage_patience nan: want a number of at least 1"),
        ({"decode_timeout": 0.0}, "--decode_timeout 0.0: want a number of at least 1"),
    ],
)
def test_a_bad_value_is_quoted_with_what_would_be_right(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Options.of(input="in", output="out").changed(**change)


def test_options_that_do_not_change_the_bytes_are_not_recorded() -> None:
    options = Options.of(input="in", output="out")
    same = options.changed(
        output="other",
        workers=7,
        max_reject_fraction=1,
        storage_patience=1.0,
        decode_timeout=1.0,
        identifier_key_file="elsewhere",
    )
    assert options.recorded() == same.recorded()
    assert options.recorded() != options.changed(seed=1).recorded()


@pytest.mark.parametrize(
    ("argv", "workers"),
    [
        ([], os.cpu_count()),
        (["--runner", "local"], os.cpu_count()),
        (ELSEWHERE, 1),
        (["--workers", "3"], 3),
        ([*ELSEWHERE, "--workers", "3"], 3),
    ],
)
def test_workers_are_a_core_each_here_and_one_beside_each_of_a_runners(
    argv: list[str], workers: int
) -> None:
    assert parse_options([*PATHS, *argv])[0].run.workers == workers


def test_patience_is_in_seconds() -> None:
    argv = [*PATHS, "--storage_patience", "1.5", "--decode_timeout", "30"]
    options, _ = parse_options(argv)
    assert (options.files.storage_patience, options.run.decode_timeout) == (1.5, 30)
    with pytest.raises(UsageError, match="--storage_patience 0: want a number of at least 1"):
        parse_options([*PATHS, "--storage_patience", "0"])


def test_hounsfield_units_take_the_place_of_windows() -> None:
    options, _ = parse_options([*PATHS, "--hu"])
    assert options.image.windows == ()
    assert (options.image.channels, options.image.dtype) == (1, "uint16")
    assert options.recorded()["hu"]


SECRET = "0123456789abcdef-in-a-file"
HASH = [*PATHS, "--identifiers", "hash"]


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Holds the secret; the environment has none."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    (tmp_path / "key").write_text(SECRET + "\n")
    return str(tmp_path / "key")


def test_the_key_comes_from_a_file_or_the_environment_and_is_told_to_nobody(
    key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, _ = parse_options([*HASH, "--identifier_key_file", key_file])
    assert (options.identifiers.identifiers, options.identifiers.identifier_key_file) == (
        Identifiers.HASH,
        key_file,
    )
    assert options.identifiers.identifier_key_check
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    same, _ = parse_options(HASH)
    assert same.identifiers.identifier_key_file is None
    assert same.recorded() == options.recorded()
    monkeypatch.setenv(KEY_VARIABLE, SECRET + "!")
    assert parse_options(HASH)[0].recorded() != options.recorded()
    assert SECRET not in repr(options) + str(options.recorded())
    assert SECRET.encode() not in pickle.dumps((options, same))


def test_without_a_key_there_are_no_hashes(key_file: str) -> None:
    with pytest.raises(UsageError, match="--identifiers hash needs a key of 16 bytes or more"):
        parse_options(HASH)
    Path(key_file).write_text("too short\n")
    with pytest.raises(UsageError, match="--identifiers hash needs a key of 16 bytes or more"):
        parse_options([*HASH, "--identifier_key_file", key_file])


def test_only_hashes_need_a_key(key_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    for identifiers in ("ordinal", "keep"):
        argv = [*PATHS, "--identifiers", identifiers, "--identifier_key_file", "/absent"]
        options, _ = parse_options(argv)
        assert options.identifiers.identifier_key_check is None
        assert options.recorded()["identifier_key_check"] is None


def test_a_runner_elsewhere_does_not_have_this_environment(
    key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    argv = [*HASH, *ELSEWHERE]
    with pytest.raises(UsageError) as refused:
        parse_options(argv)
    message = str(refused.value)
    assert message.startswith("--identifiers hash on PortableRunner needs --identifier_key_file")
    assert "\n" not in message
    options, _ = parse_options([*argv, "--identifier_key_file", key_file])
    assert options.identifiers.identifier_key_file == key_file


def test_a_key_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="--identifier_key_file /absent: No such file"):
        parse_options([*HASH, "--identifier_key_file", "/absent"])


def test_empty_values_are_those_of_unset_variables() -> None:
    empty = ["--labels", "", "--label_columns", "", "--identifier_key_file", ""]
    options, _ = parse_options([*PATHS, *empty])
    assert options.files.labels is options.identifiers.identifier_key_file is None
    assert options.labels.label_columns == ()


def test_every_option_is_in_the_help_with_what_is_allowed_and_its_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for kind in (*Options.groups().values(), RunnerOptions):
        for name, field in flags(kind).items():
            assert f"--{name}" in shown
            assert " ".join(help_text(field).split()) in shown
            assert "\n" not in help_text(field)  # a row of the page
    assert "height and width, pixels (a whole number from 16 to 4096; default: 512)" in shown
    assert "--identifier_key_check" not in shown


def test_options_are_made_of_parts_and_found_by_their_own_names() -> None:
    options = Options.of(input="in", output="out", folds=3, windows="brain,x:1:2", workers=7)
    assert options.files == Files(input="in", output="out")
    assert (options.splits.folds, options.run.workers) == (3, 7)
    assert str(options.image.windows[1]) == "x:1:2"
    assert options.changed(folds=4).changed(folds=3) == options
    assert pickle.loads(pickle.dumps(options)) == options
    with pytest.raises(UsageError, match="there is no option 'fold'"):
        Options.of(input="in", output="out", fold=3)
    with pytest.raises(UsageError, match="--output is missing: shard directory to make"):
        Options.of(input="in")
    with pytest.raises(UsageError, match="--folds three: want a whole number from 2 to 100"):
        Options.of(input="in", output="out", folds="three")


def test_the_page_of_options_is_made_of_them() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.options_table"


def test_a_path_may_begin_with_a_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/joe")
    paths = {"input": "~/in", "output": "~/out", "labels": "~/l.csv", "folds_from": "~/old"}
    options = Options.of(**paths, identifier_key_file="~/key")
    assert options.files.input == "/home/joe/in"
    assert options.files.output == "/home/joe/out"
    assert options.files.labels == "/home/joe/l.csv"
    assert options.splits.folds_from == "/home/joe/old"
    assert options.identifiers.identifier_key_file == "/home/joe/key"
    other = Options.of(input="a~/~b", output="s3://bucket/~/out", labels="")
    assert (other.files.input, other.files.output) == ("a~/~b", "s3://bucket/~/out")
    assert other.files.labels is None


def test_a_toml_file_gives_options_and_flags_override_it(tmp_path: Path) -> None:
    config = tmp_path / "options.toml"
    config.write_text(
        'output = "out"\nfolds = 3\nhu = true\nidentifiers = "keep"\nrunner = "local"\n'
        'labels = "l.csv"\nlabel_columns = ["any", "a, b"]\n'
    )
    options, launch = parse_options(["--config", str(config), "--input", "in", "--folds", "4"])
    assert (options.files.input, options.files.output, launch.runner) == ("in", "out", LOCAL)
    assert (options.splits.folds, options.image.dtype) == (4, "uint16")
    assert options.labels.label_columns == ("any", "a, b")
    assert options.identifiers.identifiers is Identifiers.KEEP
    assert parse_options(["--config", str(config), "--input", "in", "--no-hu"])[0].image.windows
    config.write_text('where = ["KVP<=120,5"]')
    with pytest.raises(UsageError, match="--where KVP<=: want one number"):
        parse_options(["--config", str(config), *PATHS])
    config.write_text(
        'where = ["BodyPartExamined=HEAD,BRAIN", "!KVP"]\nwindows = ["brain", "x:1:2"]'
    )
    where = parse_options(["--config", str(config), *PATHS])[0].selection.where
    assert where == ("BodyPartExamined=HEAD,BRAIN", "!KVP")
    flags = ["--where", "KVP", "--where=SliceThickness<=5"]
    where = parse_options(["--config", str(config), *PATHS, *flags])[0].selection.where
    assert where == ("KVP", "SliceThickness<=5")
    windows = parse_options(["--config", str(config), *PATHS])[0].image.windows
    assert windows == (Window("brain", 40, 80), Window("x", 1, 2))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "windows": (Window("w", 0.1 + 0.2, 1e6 + 0.25), Window("dicom", None, None)),
            "label_columns": ("any", 'a, "b"', "ä"), "holdout": 0.1, "seed": 2**32 - 1,
            "image_id": "ordinal", "id_column": "=x", "folds_from": "a\x7f\n", "unlabeled": "skip",
        },
        {"hu": True, "identifiers": "hash", "identifier_key_check": "c", "group_by": "study"},
        {
            "where": ("BodyPartExamined=HEAD,BRAIN", 'ConvolutionKernel!=B"*'), "files": "l.txt",
            "one_series_per_study": True, "orientation": "any", "max_patients": 7,
        },
    ],
)  # fmt: skip
def test_the_toml_file_of_a_run_has_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "k" * 32)
    given = {"labels": "l.csv", "max_reject_fraction": 0.25} | changes
    options = Options.of(input="s3://me:secret@b/in", output="out", **given)
    text = config_text(options)
    assert "secret" not in text
    assert ("need the same key" in text) == ("identifiers" in changes)
    config = tmp_path / "preprocess.toml"
    config.write_text(text)
    again, _ = parse_options(["--config", str(config), "--output", "elsewhere"])
    expected = options.recorded()
    found = again.recorded()
    if changes.get("identifiers"):
        assert len(found.pop("identifier_key_check")) > len(expected.pop("identifier_key_check"))
    assert found == expected
    assert again.run.max_reject_fraction == 0.25


def test_an_unknown_option_of_a_beam_runner_names_the_toml_file(tmp_path: Path) -> None:
    config = tmp_path / "o.toml"
    config.write_text('projekt = "p"')
    with pytest.raises(UsageError, match=f"^--config {config}: unknown option --projekt"):
        parse_options(["--config", str(config), *PATHS, "--runner", "DirectRunner"])
    with pytest.raises(UsageError, match=r"^unknown option --projekt"):
        parse_options([*PATHS, "--runner", "DirectRunner", "--projekt=p"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fold = 3", "--config FILE: unknown option --fold (did you mean --folds?): neither"),
        ("folds = 1", "--folds 1: want a whole number from 2 to 100"),
        ('hu = "yes"', "--config FILE: --hu/--no-hu: ignored explicit argument 'yes'"),
        ("folds = true", "--config FILE: --folds: expected one argument"),
        ('windows = "lung"', "--windows lung: window 'lung' is neither name:center:width"),
        ('identifier_key_check = "x"', "--config FILE: unknown option --identifier_key_check"),
    ],
)
def test_a_bad_toml_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "options.toml"
    config.write_text(text)
    with pytest.raises(UsageError) as refused:
        parse_options(["--config", str(config), *PATHS])
    assert str(refused.value).replace(str(config), "FILE").startswith(message)
