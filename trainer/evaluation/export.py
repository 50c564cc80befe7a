"""A run's model for use elsewhere: stored images in, probabilities out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from keras import layers

from trainer.errors import BadInput
from trainer.networks.model import load_classifier
from trainer.networks.portable import portable_logits
from trainer.runs.job import SavedRun

FILES: Mapping[str, str] = MappingProxyType(
    {"keras": "model.keras", "saved_model": "saved_model", "onnx": "model.onnx"}
)


def export(saved: SavedRun, output: Path, formats: tuple[str, ...]) -> None:
    """Writes the model into a folder that is new or empty.

    Raises:
        BadInput: the folder holds something already, or a package is missing.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(f"--output {output}: exists and is not empty")
    model = _probability_model(load_classifier(saved.run.model), saved.temperatures)
    output.mkdir(parents=True, exist_ok=True)
    for name in formats:
        write_format(model, name, output / FILES[name])
        saved.display.point_out(f"written: {output / FILES[name]}")
    saved.display.say(
        f"input `image`: {model.inputs[0].dtype} {list(model.input_shape[1:])};"
        f" output: probabilities of {', '.join(saved.labels)}"
    )


def _probability_model(classifier: Any, temperatures: tuple[float, ...]) -> Any:
    """The classifier in Keras's own layers, the temperatures and the sigmoid.

    Stored images [B, H, W, C] → probabilities float32 [B, L].
    """
    image = layers.Input(classifier.input_shape[1:], dtype=classifier.inputs[0].dtype, name="image")
    scale = layers.Rescaling(
        list(1 / np.asarray(temperatures)), dtype="float32", name="temperature"
    )
    sigmoid = layers.Activation("sigmoid", dtype="float32", name="probability")
    return keras.Model(image, sigmoid(scale(portable_logits(classifier, image))), name="head_ct")


def write_format(model: Any, name: str, path: Path) -> None:
    """Writes one format.

    Raises:
        BadInput: what writes it is not installed.
    """
    if name == "keras":
        model.save(path)
        return
    kind = "tf_saved_model" if name == "saved_model" else "onnx"
    try:
        with warnings.catch_warnings():
            # Keras's bridge to tf2onnx looks for a name that numpy is about to bring back.
            warnings.filterwarnings("ignore", message=".*np.object.*", category=FutureWarning)
            model.export(str(path), format=kind, verbose=False)
    except ImportError as error:
        raise BadInput(f"--formats {name}: {error}") from None
