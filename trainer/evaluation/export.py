"""A run's model for use elsewhere: stored images in, probabilities out.

Whatever a run computed in, what is exported computes in float32: ONNX has no runtime for bfloat16
convolutions, and a CPU is slow in float16. Each format is loaded again and answers real slices
before the folder gets any of them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras import layers

from headct.errors import UsageError
from headct.layout import IMAGE
from trainer.data.damage import damage_reported
from trainer.data.input_pipeline import evaluation_batches
from trainer.evaluation.export_description import (
    DESCRIPTION,
    INPUT,
    OPSET,
    OUTPUT,
    Comparison,
    describe_export,
)
from trainer.evaluation.metrics import probabilities
from trainer.evaluation.predictions import predict_batch
from trainer.files import disk_trouble, full_disk_reported, unfinished_path, write_json
from trainer.native_log import held_back
from trainer.networks.model import load_classifier
from trainer.networks.portable import in_float32, portable_logits
from trainer.networks.saved_models import first_line, load_model
from trainer.runs.calibration import Calibration
from trainer.runs.job import SavedRun

Floats = npt.NDArray[np.floating[Any]]

FILES: Mapping[str, str] = MappingProxyType(
    {"keras": "model.keras", "saved_model": "saved_model", "onnx": "model.onnx"}
)
# Between the probabilities of two runtimes that compute in float32.
TOLERANCE = 1e-4
# Between those in float32 and those of `predict`, which computes as the run did: what rounding
# adds up to in a network of a hundred layers, and far below what a wrong weight does.
ROUNDING: Mapping[str, float] = MappingProxyType(
    {"float32": TOLERANCE, "float16": 0.02, "bfloat16": 0.1}
)


def export(saved: SavedRun, output: Path, formats: tuple[str, ...]) -> None:
    """Writes the model into a folder that is new or empty.

    Raises:
        UsageError: the model cannot be written in a format, or answers otherwise in it.
    """
    xla = saved.description["options"].get("xla", "auto")
    classifier = load_classifier(saved.run.model, xla, saved.image, len(saved.labels))
    images = example_images(saved)
    logits = predict_batch(classifier, images, flip=False)
    predicted = probabilities(saved.calibration.apply(logits))
    plain, precision = in_float32(classifier)
    model = _probability_model(plain, saved.calibration)
    with full_disk_reported(output), _new_folder(output) as folder:
        exact = np.asarray(model.predict_on_batch(images))
        _compare("float32", exact, predicted, ROUNDING[precision])
        largest = 0.0
        for name in formats:
            with _failure_reported(name):
                write_format(model, name, folder / FILES[name])
                answered = answer(name, folder / FILES[name], images)
            _compare(f"--formats {name}", answered, exact, TOLERANCE)
            largest = max(largest, float(np.abs(answered - predicted).max()))
        compared = Comparison(len(images), saved.examples_of, precision, largest)
        files = {name: FILES[name] for name in formats}
        write_json(folder / DESCRIPTION, describe_export(saved, files, compared))
    for path in (*files.values(), DESCRIPTION):
        saved.display.point_out(f"written: {output / path}")
    saved.display.say(
        f"input `{INPUT}`: {model.inputs[0].dtype} {list(model.input_shape[1:])};"
        f" output `{OUTPUT}`: probabilities of {', '.join(saved.labels)}"
    )
    saved.display.say(
        f"loaded again, on {len(images)} {saved.examples_of}: within {largest:.1e} of what"
        f" `predict` answers in {precision}"
    )


def example_images(saved: SavedRun) -> npt.NDArray[Any]:
    """Stored images of the run's kind, [N, H, W, C]: slices, or noise where there are none.

    Raises:
        UsageError: a record of the shards is damaged.
    """
    if saved.split is None:
        shape = (saved.examples, saved.image.height, saved.image.width, saved.image.channels)
        # Of Hounsfield units, those from air to dense bone.
        highest = 4096 if saved.image.is_hounsfield else 256
        random = np.random.default_rng(0)
        return random.integers(0, highest, shape, saved.image.dtype)
    labels = len(saved.split.label_counts)
    batches = evaluation_batches(saved.split, saved.image, labels, saved.examples)
    with damage_reported((saved.split,), saved.image, labels):
        batch = next(iter(batches.as_numpy_iterator()))
    return np.asarray(batch[IMAGE][: saved.examples])


def _probability_model(classifier: Any, calibration: Calibration) -> Any:
    """The classifier in Keras's own layers, its calibration and the sigmoid.

    Stored images [B, H, W, C] → probabilities float32 [B, L].
    """
    image = layers.Input(classifier.input_shape[1:], dtype=classifier.inputs[0].dtype, name=INPUT)
    scale = layers.Rescaling(
        list(1 / np.array(calibration.temperatures)),
        list(calibration.biases),
        dtype="float32",
        name="temperature",
    )
    sigmoid = layers.Activation("sigmoid", dtype="float32", name=OUTPUT)
    return keras.Model(image, sigmoid(scale(portable_logits(classifier, image))), name="head_ct")


@contextmanager
def _failure_reported(name: str) -> Iterator[None]:
    """Says in one line that a format has no words for what the model does.

    Raises:
        UsageError: it could not be written, or read again.
    """
    try:
        yield
    except Exception as error:  # whatever Keras, TensorFlow, tf2onnx and ONNX Runtime raise
        if disk_trouble(error):
            raise
        raise UsageError(
            f"--formats {name}: the model cannot be written or read in it ({first_line(error)})"
        ) from None


def write_format(model: Any, name: str, path: Path) -> None:
    """Writes one format."""
    signature = [tf.TensorSpec(model.input_shape, model.inputs[0].dtype, name=INPUT)]

    def serve(image: Any) -> Any:
        return model(image, training=False)

    def serving_default(image: Any) -> dict[str, Any]:
        return {OUTPUT: model(image, training=False)}

    if name == "keras":
        model.save(path)
    elif name == "saved_model":
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serve", serve, signature)
        archive.add_endpoint("serving_default", serving_default, signature)
        archive.write_out(str(path), verbose=False)
    else:
        with held_back():  # which say what they convert, and where there is no GPU
            import onnx
            import tf2onnx

        graph, _ = tf2onnx.convert.from_function(
            tf.function(serving_default), signature, opset=OPSET
        )
        for each in (*graph.graph.input, *graph.graph.output):
            each.type.tensor_type.shape.dim[0].dim_param = "batch"
        onnx.save(graph, str(path))


def answer(name: str, path: Path, images: npt.NDArray[Any]) -> Floats:
    """Loads a format as its users would; its probabilities of stored images, [N, L]."""
    if name == "keras":
        return np.asarray(load_model(path).predict_on_batch(images))
    if name == "saved_model":
        # TensorFlow takes `[` and `*` in the path of a SavedModel for a pattern.
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "saved_model"
            plain.symlink_to(path.absolute())
            signature = tf.saved_model.load(str(plain)).signatures["serving_default"]
            return np.asarray(signature(tf.constant(images))[OUTPUT])
    with held_back():
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run([OUTPUT], {INPUT: images})
    return np.asarray(found)


def _compare(name: str, found: Floats, expected: Floats, tolerance: float) -> None:
    """Compares probabilities, [N, L] each.

    Raises:
        UsageError: two differ by more than the tolerance.
    """
    difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else np.nan
    if not difference <= tolerance:  # nor is NaN
        raise UsageError(
            f"{name}: what was exported differs from what `predict` answers by {difference:.1e},"
            f" more than {tolerance:.0e}; nothing is written"
        )


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A folder whose content gets into `output`, which is new or empty, if all goes well."""
    is_new = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    # Within it: `output` may be a mount point.
    unfinished = unfinished_path(output / "export")
    try:
        unfinished.mkdir()
        yield unfinished
        for path in unfinished.iterdir():
            path.replace(output / path.name)
        is_new = False
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if is_new:
            output.rmdir()
