import os
import sys
from types import SimpleNamespace

import pytest

from headct.errors import UsageError
from trainer.native_log import check_backend, held_back
from trainer.options import ExportOptions, TrainOptions


def test_what_native_code_writes_is_held_back(capfd: pytest.CaptureFixture[str]) -> None:
    with held_back():
        os.write(2, b"noise\n")
    os.write(2, b"signal\n")
    assert capfd.readouterr().err == "signal\n"


def test_it_is_shown_where_loading_fails(capfd: pytest.CaptureFixture[str]) -> None:
    def load() -> None:
        os.write(2, b"the reason\n")
        raise ImportError

    with pytest.raises(ImportError), held_back():
        load()
    assert capfd.readouterr().err == "the reason\n"


@pytest.mark.parametrize(
    ("asked", "loaded", "line"),
    [
        ("tensorflow", None, None),
        ("tensorflow", "tensorflow", None),
        ("tensorflow", "jax", "Keras was loaded with jax in this process; choose jax"),
        ("tensorflow", "torch", "begin a new process with KERAS_BACKEND=tensorflow"),
        ("nothing_such", None, "not installed; `make train BACKEND=nothing_such` brings it,"),
    ],
)
def test_a_backend_that_contradicts_is_one_line(
    asked: str, loaded: str | None, line: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    if loaded is not None:
        keras = SimpleNamespace(backend=SimpleNamespace(backend=lambda: loaded))
        monkeypatch.setitem(sys.modules, "keras", keras)
    if line is None:
        check_backend(asked)
        return
    with pytest.raises(UsageError, match=f"^--backend {asked}: ") as raised:
        check_backend(asked)
    assert line in str(raised.value)


@pytest.mark.parametrize(
    ("environment", "given", "backend"),
    [("", {}, "tensorflow"), ("jax", {}, "jax"), ("jax", {"backend": "tensorflow"}, "tensorflow")],
)
def test_the_environment_chooses_the_backend_where_no_option_does(
    environment: str, given: dict[str, str], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", environment)
    assert TrainOptions(shards="s", run="r", **given).backend == backend
    assert ExportOptions(run="r", output="o").backend == "tensorflow"
    monkeypatch.setenv("KERAS_BACKEND", "abacus")
    with pytest.raises(UsageError, match="--backend abacus: want one of tensorflow, jax"):
        TrainOptions(shards="s", run="r")
