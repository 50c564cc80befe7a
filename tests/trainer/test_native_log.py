import os

import pytest

from trainer.native_log import held_back


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
