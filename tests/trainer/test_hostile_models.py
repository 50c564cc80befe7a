"""Model files that are damaged, of another network or hostile: one line for every command."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest
from keras import layers

import trainer
from headct.errors import UsageError
from headct.manifest import ImageSpec
from trainer.__main__ import main
from trainer.networks.model import build_classifier
from trainer.options import TrainOptions

Maker = Callable[[Path, Path], None]


def classifier(image: ImageSpec, labels: int) -> Any:
    options = TrainOptions(shards="s", run="r", model="smallresnet", weights="none", image_size=32)
    return build_classifier(options, image, (0.5,) * labels, "float32").model


def truncated(good: Path, path: Path) -> None:
    path.write_bytes(good.read_bytes()[: good.stat().st_size // 2])


def without(member: str) -> Maker:
    """A file without one of its members."""

    def write(good: Path, path: Path) -> None:
        with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w") as target:
            for name in set(source.namelist()) - {member}:
                target.writestr(name, source.read(name))

    return write


def with_config(change: Callable[[Any], Any]) -> Maker:
    """A file whose description is another."""

    def write(good: Path, path: Path) -> None:
        with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w") as target:
            for name in source.namelist():
                content = source.read(name)
                if name == "config.json":
                    content = json.dumps(change(json.loads(content))).encode()
                target.writestr(name, content)

    return write


def garbled_weights(good: Path, path: Path) -> None:
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = bytearray(source.read(name))
            if name.endswith(".h5"):
                content[8:2000] = bytes(1992)
            target.writestr(name, bytes(content))


def with_lambda(_: Path, path: Path) -> None:
    x = layers.Input((32, 32, 3))
    core = keras.Sequential([layers.Input((32, 32, 3)), layers.Lambda(lambda y: y)], name="core")
    keras.Model(x, core(x)).save(path)


def dense(_: Path, path: Path) -> None:
    keras.Sequential([layers.Input((3,)), layers.Dense(2, name="core")]).save(path)


MODELS: dict[str, Maker] = {
    "empty": lambda _, path: path.write_bytes(b"") and None,
    "text": lambda _, path: path.write_text("not a model") and None,
    "truncated": truncated,
    "no config.json": without("config.json"),
    "no weights": without("model.weights.h5"),
    "garbled weights": garbled_weights,
    "a list": with_config(lambda _: []),
    "a number for layers": with_config(lambda c: c | {"config": {"layers": 3, "name": "x"}}),
    "null": with_config(lambda c: dict.fromkeys(c)),
    "another class": with_config(lambda c: c | {"class_name": "Popen", "module": "subprocess"}),
    "a function": with_lambda,
    "another network": dense,
}
# A run must have its own; weights may come from any of these.
OTHER_RUNS: dict[str, Maker] = {
    "other images": lambda _, path: classifier(ImageSpec(48, 32, 3, "uint8", 0), 3).save(path),
    "other channels": lambda _, path: classifier(ImageSpec(32, 32, 2, "uint8", 0), 3).save(path),
    "other labels": lambda _, path: classifier(ImageSpec(32, 32, 3, "uint8", 0), 2).save(path),
}


SOME = ("truncated", "no config.json", "a function", "another network", "other labels")


@pytest.mark.parametrize(
    "kind",
    [
        name if name in SOME else pytest.param(name, marks=pytest.mark.full)
        for name in (*MODELS, *OTHER_RUNS)
    ],
)
def test_every_command_says_so_in_one_line(
    finished: Path,
    shards: Path,
    tiny: dict[str, Any],
    tmp_path: Path,
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "model.keras").unlink()
    (MODELS | OTHER_RUNS)[kind](finished / "model.keras", run / "model.keras")
    flags = [f"--{name}={value}" for name, value in tiny.items() if name != "weights"]
    new = ["train", f"--shards={shards}", f"--run={tmp_path / 'new'}", *flags]
    commands = {
        "evaluate": ["evaluate", f"--run={run}"],
        "predict": [
            *("predict", f"--run={run}", f"--shards={shards}", f"--output={tmp_path / 'p.csv'}")
        ],
        "export": ["export", f"--run={run}", f"--output={tmp_path / 'e'}"],
        "report": ["report", f"--run={run}"],
    }
    if kind in MODELS:
        commands["weights"] = [*new, f"--weights={run / 'model.keras'}"]
    for name, command in commands.items():
        assert main(command) == 2, name
        error = capsys.readouterr().err
        assert f"{run / 'model.keras'}: no " in error, name
        assert error.count("\n") == 1
    for path in ("new", "e", "p.csv"):
        assert not (tmp_path / path).exists()
    with pytest.raises(UsageError, match="no saved model"):
        trainer.load_run(run)
