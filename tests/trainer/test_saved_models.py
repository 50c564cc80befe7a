import json
import zipfile
from pathlib import Path

import keras
import pytest

from headct.errors import UsageError
from trainer.networks.saved_models import load_model

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """What a saved model is made of."""
    path = tmp_path_factory.mktemp("models") / "model.keras"
    keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)]).save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, files: Files, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_a_saved_model_is_loaded(files: Files, tmp_path: Path) -> None:
    assert load_model(write(tmp_path / "a.keras", files)).count_params() == 8


@pytest.mark.parametrize(
    "config",
    [
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,  # RecursionError
        b"[1, 2]",  # TypeError
        b"{}",
        b"\xff",
        json.dumps({"module": "os", "class_name": "system", "config": {}}).encode(),
    ],
    ids=["nested", "a list", "empty", "no text", "another class"],
)
def test_a_hostile_description_is_one_line(files: Files, tmp_path: Path, config: bytes) -> None:
    path = write(tmp_path / "a.keras", files | {"config.json": config})
    with pytest.raises(UsageError) as refused:
        load_model(path)
    assert 0 < len(str(refused.value)) <= 200
    assert str(refused.value).count("\n") == 0


def test_an_archive_that_grows_is_not_unpacked(files: Files, tmp_path: Path) -> None:
    bomb = files | {"config.json": bytes(70 << 20)}
    path = write(tmp_path / "a.keras", bomb, zipfile.ZIP_DEFLATED)
    with pytest.raises(UsageError, match=r"^it would grow by \d+ MiB when it is unpacked$"):
        load_model(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\3\4" + bytes(100), b"\x89HDF\r\n\x1a\n"])
def test_another_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.keras"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        load_model(path)


def test_a_function_in_a_file_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "a.keras"
    keras.Sequential([keras.layers.Input((3,)), keras.layers.Lambda(lambda x: x)]).save(path)
    with pytest.raises(UsageError, match="Lambda"):
        load_model(path)
