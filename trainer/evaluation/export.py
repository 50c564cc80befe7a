"""Export of a run's model from stored images to probabilities.

Exported models always compute in float32: ONNX has no runtime for bfloat16 convolutions, and CPUs
are slow in float16. Exported files are loaded and compared with the run's model on real slices
before they move into the output folder.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras import layers, ops

from headct.errors import UsageError
from headct.scans import Scans
from trainer.evaluation.metrics import Floats, probabilities
from trainer.evaluation.predict_models import predict_batch
from trainer.files import disk_trouble, full_disk_reported, new_folder, write_json
from trainer.native_log import held_back
from trainer.networks.image_layers import ImageLayer
from trainer.networks.saved_models import first_line, in_float32, load_classifier, load_model
from trainer.networks.scan_model import (
    SCAN,
    SLICES,
    correct,
    features_model,
    load_scan_model,
    scan_inputs,
)
from trainer.option_values import parse_windows
from trainer.runs.evaluation_setup import SavedRun
from trainer.runs.run import Calibration, package_versions

FILES = {"keras": "model.keras", "saved_model": "saved_model", "onnx": "model.onnx"}
DESCRIPTION = "description.json"
# Of description.json, whose keys docs/training.md explains; the second with channels of neighbors.
FORMAT, FORMAT_OF_NEIGHBORS = 1, 2
# Names of the tensors in every format.
INPUT, OUTPUT = "image", "probability"
# Also of a scan model: z of the slices in mm, and probabilities of the scan as a whole.
PLACE, SCAN_OUTPUT = "position_z", "scan_probability"
OPSET = 17  # ONNX runtimes have it since 2022

# Largest difference between the probabilities of two float32 runtimes.
TOLERANCE = 1e-4
# Largest difference between float32 and the precision of `predict`: rounding adds up over a hundred
# layers, but is far below the effect of a wrong weight.
ROUNDING = {"float32": TOLERANCE, "float16": 0.02, "bfloat16": 0.1}

# Entries of description.json for a scan model.
SCAN_TENSORS = {
    "scan": {
        "image": "the slices of one scan in order along z, all at once: the first axis",
        "position_z": "float32 [slices], mm, rising or falling",
        "scan_probability": "float32 [1, labels], of the scan as a whole, not calibrated",
    }
}

# Lowest value of a CT, for padding.
PADDING_HU = -1024
# NumPy formulas from Hounsfield units to stored values, by the pipeline's option `voi`; "hu" for
# shards in Hounsfield units.
FORMULAS = {
    "linear_exact": "floor(clip((hu - (center - width / 2)) * 255 / width, 0, 255) + 0.5)",
    "linear": "floor(clip((hu - (center - width / 2)) * 255 / maximum(width - 1, 1e-9), 0, 255)"
    " + 0.5)",
    "sigmoid": "floor(255 / (1 + exp(clip(-4 * (hu - center) / width, -500, 500))) + 0.5)",
    "hu": "clip(floor(hu + 0.5) - hu_offset, 0, 65535)",
}

# What the slices of a sample are, by `Neighbors.rows`; with count and mm.
_NEIGHBORS = {
    "slice": "0: the slice itself; -1, -2, ...: below, 1, 2, ...: above, by ImagePositionPatient z",
    "scan": "slices of one SeriesInstanceUID; at other positions than the slice",
    "edges": "repeated; a slice without a position is its own neighbor",
    "mm": "0: the next positions; else the slice nearest to z + slice * mm, the outer of two",
}


def export(saved: SavedRun, output: Path, formats: tuple[str, ...]) -> None:
    """Write the model into a new or empty folder.

    Raises:
        UsageError: a format does not support the model, or yields other probabilities.
    """
    xla = saved.run.record.options.get("xla", "auto")
    slices = saved.run.neighbors.slices
    classifier = load_classifier(saved.run.model, xla, saved.image, len(saved.labels), slices)
    images, z = example_images(saved)
    precision = classifier.get_layer("core").get_layer("pool").compute_dtype
    exact_classifier = in_float32(classifier)
    if saved.run.record.scans:
        scan_model = load_scan_model(saved.run.scan_model, len(saved.labels))
        logits = correct_example(saved, classifier, scan_model, images, z)
        model = scan_probability_model(exact_classifier, scan_model, saved.calibration)
        examples = {INPUT: images, PLACE: z}
    else:
        logits = predict_batch(classifier, images, flip=False)
        model = probability_model(exact_classifier, saved.calibration)
        examples = {INPUT: images}
    predicted = probabilities(saved.calibration.apply(logits))
    files = {name: FILES[name] for name in formats}
    with full_disk_reported(output), new_folder(output) as folder:
        exact = run_model(model, examples)
        _compare("float32", exact, predicted, ROUNDING[precision])
        largest = 0.0
        for name, file in files.items():
            try:
                write_format(model, name, folder / file)
                answered = answer(name, folder / file, images, examples.get(PLACE))
            except Exception as error:  # whatever Keras, TensorFlow, tf2onnx and ONNX Runtime raise
                if disk_trouble(error):
                    raise
                raise UsageError(
                    f"--formats {name}: the model cannot be written or read in it"
                    f" ({first_line(error)})"
                ) from None
            _compare(f"--formats {name}", answered, exact, TOLERANCE)
            largest = max(largest, float(np.abs(answered - predicted).max()))
        compared = {
            "images": len(images),
            "kind": saved.examples_of,
            "precision": precision,
            "largest_difference": largest,
        }
        write_json(folder / DESCRIPTION, describe_export(saved, files, compared))
    for path in (*files.values(), DESCRIPTION):
        saved.display.print_unwrapped(f"written: {output / path}")
    saved.display.say(
        f"loaded again, on {len(images)} {saved.examples_of}: within {largest:.1e} of what"
        f" `predict` answers in {precision}"
    )


def example_images(saved: SavedRun) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
    """Return samples like those of the run, [N, H, W, C], and positions (mm), [N].

    They are slices, or noise without shards; the positions are invented, 5 mm apart but for one
    missing slice.
    """
    z = (5.0 * np.arange(saved.examples)).astype(np.float32)
    z[saved.examples // 2 :] += 5
    if saved.shards is None or saved.split is None:
        channels = saved.image.channels * saved.run.neighbors.slices
        shape = (saved.examples, saved.image.height, saved.image.width, channels)
        # Hounsfield units from air to dense bone.
        highest = 4096 if saved.image.is_hounsfield else 256
        random = np.random.default_rng(0)
        return random.integers(0, highest, shape, saved.image.dtype), z
    examples = saved.shards.examples((saved.split,))
    return saved.run.neighbors.images(examples, np.arange(saved.examples)), z


def correct_example(
    saved: SavedRun,
    classifier: Any,
    scan_model: Any,
    images: npt.NDArray[Any],
    z: npt.NDArray[np.float32],
) -> Floats:
    """Return what `predict` answers for images that are one scan, in one direction, [N, L].

    Raises:
        UsageError: the run averages answers, which an exported model does not.
    """
    options = saved.run.record.scans.options if saved.run.record.scans else {}
    for name in ("tta", "both_directions"):
        if options.get(name):
            raise UsageError(
                f"{saved.run.path}: was trained with --{name}, and exported models average nothing;"
                f" want a run of train_scans without it"
            )
    outputs = predict_batch(features_model(classifier, mirrored=False), images, flip=False)
    labels, count = len(saved.labels), len(images)
    scans = Scans(np.arange(count), np.array([0, count]), z.astype(np.float64))
    return correct(scan_model, outputs[:, labels:], outputs[:, :labels], scans, False)[0]


def probability_model(classifier: Any, calibration: Calibration) -> Any:
    """Return the classifier in Keras's own layers, which load without this package.

    With calibration and sigmoid: stored images [B, H, W, C] → probabilities float32 [B, L].
    """
    image, logits, _ = portable_layers(classifier)
    sigmoid = layers.Activation("sigmoid", dtype="float32", name=OUTPUT)
    return keras.Model(image, sigmoid(calibrating(calibration)(logits)), name="head_ct")


def scan_probability_model(classifier: Any, scan_model: Any, calibration: Calibration) -> Any:
    """Return slice network and scan model in Keras's own layers, which load without this package.

    Stored images of one scan in order [S, H, W, C], and their positions, mm [S] → probabilities of
    slices [S, L], and of the scan as a whole [1, L].
    """
    image, logits, features = portable_layers(classifier)
    z = layers.Input((), dtype="float32", name=PLACE)
    corrected = scan_model(scan_inputs(features, logits, z))
    of_slices = calibrating(calibration)(ops.squeeze(corrected[SLICES], axis=0))
    outputs = {
        OUTPUT: layers.Activation("sigmoid", dtype="float32", name=OUTPUT)(of_slices),
        SCAN_OUTPUT: layers.Activation("sigmoid", dtype="float32", name=SCAN_OUTPUT)(
            corrected[SCAN]
        ),
    }
    return keras.Model({INPUT: image, PLACE: z}, outputs, name="head_ct_scan")


def calibrating(calibration: Calibration) -> Any:
    """Return the layer that calibrates logits."""
    return layers.Rescaling(
        list(1 / np.array(calibration.temperatures)),
        list(calibration.biases),
        dtype="float32",
        name="temperature",
    )


def portable_layers(classifier: Any) -> tuple[Any, Any, Any]:
    """Return input, logits and pooled features of a classifier in Keras's own layers."""
    image = layers.Input(classifier.input_shape[1:], dtype=classifier.inputs[0].dtype, name=INPUT)
    features = None
    x = layers.Rescaling(1.0, dtype="float32", name="as_float")(image)
    for layer in [classifier.get_layer("resize"), *classifier.get_layer("core").layers[1:]]:
        x = layer.portable(x) if isinstance(layer, ImageLayer) else layer(x)
        features = x if layer.name == "pool" else features
    return image, x, features


def run_model(model: Any, examples: dict[str, npt.NDArray[Any]]) -> Floats:
    """Return the probabilities of slices, [N, L], of a model with one input or with two."""
    if PLACE not in examples:
        return np.asarray(model.predict_on_batch(examples[INPUT]))
    return np.asarray(model(examples, training=False)[OUTPUT])


def write_format(model: Any, name: str, path: Path) -> None:
    """Write the model in one format."""
    image = model.input[INPUT] if isinstance(model.input, dict) else model.input
    signature = [tf.TensorSpec(image.shape, image.dtype, name=INPUT)]

    def serve(image: Any) -> Any:
        return model(image, training=False)

    def serving_default(image: Any) -> dict[str, Any]:
        return {OUTPUT: model(image, training=False)}

    def serve_scan(image: Any, position_z: Any) -> Any:
        answers = model({INPUT: image, PLACE: position_z}, training=False)
        return {name: tf.identity(answers[name], name=name) for name in (OUTPUT, SCAN_OUTPUT)}

    functions: tuple[Any, Any] = (serve, serving_default)
    if isinstance(model.input, dict):
        signature.append(tf.TensorSpec((None,), tf.float32, name=PLACE))
        functions = (serve_scan, serve_scan)

    if name == "keras":
        model.save(path)
    elif name == "saved_model":
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serve", functions[0], signature)
        archive.add_endpoint("serving_default", functions[1], signature)
        archive.write_out(str(path), verbose=False)
    else:
        with held_back():  # the converters print progress and GPU warnings
            import onnx
            import tf2onnx

        # It warns of shapes that it cannot infer; the exported model is checked by its answers.
        logging.getLogger("tf2onnx").setLevel(logging.ERROR)
        graph, _ = tf2onnx.convert.from_function(tf.function(functions[1]), signature, opset=OPSET)
        for tensor in (*graph.graph.input, *graph.graph.output):
            if tensor.name == SCAN_OUTPUT:
                continue
            tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
        onnx.save(graph, str(path))


def answer(
    name: str, path: Path, images: npt.NDArray[Any], z: npt.NDArray[np.float32] | None = None
) -> Floats:
    """Load a format as users would; return the probabilities of stored images, [N, L].

    With positions `z`, mm, the images are one scan.
    """
    examples = {INPUT: images} if z is None else {INPUT: images, PLACE: z}
    if name == "keras":
        return run_model(load_model(path), examples)
    if name == "saved_model":
        # TensorFlow reads `[` and `*` in the path of a SavedModel as a pattern.
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "saved_model"
            plain.symlink_to(path.absolute())
            signature = tf.saved_model.load(str(plain)).signatures["serving_default"]
            tensors = {name: tf.constant(array) for name, array in examples.items()}
            return np.asarray(signature(**tensors)[OUTPUT])
    with held_back():
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (answered,) = session.run([OUTPUT], examples)
    return np.asarray(answered)


def _compare(name: str, answered: Floats, expected: Floats, tolerance: float) -> None:
    """Raise UsageError if probabilities, [N, L] each, differ by more than the tolerance."""
    same_shape = answered.shape == expected.shape
    difference = float(np.abs(answered - expected).max()) if same_shape else np.nan
    if not difference <= tolerance:  # also if NaN
        raise UsageError(
            f"{name}: the exported model differs from `predict` by {difference:.1e}, more than"
            f" {tolerance:.0e}; nothing is written"
        )


def describe_export(
    saved: SavedRun, files: dict[str, str], compared: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of description.json, for users without this project."""
    image, trained = saved.image, saved.run.record.shards
    options = trained.preprocessing
    if image.is_hounsfield:
        formula, channels = "hu", [{"name": "hu", "hu_offset": image.hu_offset}]
        windows = parse_windows(saved.run.record.options.get("windows", ""))
    else:
        formula, windows = str(options.get("voi")), ()
        keys = ("name", "center", "width")
        channels = [{key: getattr(window, key) for key in keys} for window in trained.windows]
    packages = ["keras", "tensorflow", "numpy"] + ["onnx", "tf2onnx"] * ("onnx" in files)
    neighbors = saved.run.neighbors
    if neighbors.count:
        slices = range(-neighbors.count, neighbors.count + 1)
        channels = [{"slice": each, **channel} for each in slices for channel in channels]
    changes = saved.calibration.changes
    return {
        "format": FORMAT_OF_NEIGHBORS if neighbors.count else FORMAT,
        "files": files,
        "input": {
            "name": INPUT,
            "dtype": image.dtype,
            "shape": [None, image.height, image.width, len(channels)],
            "layout": "NHWC",
            "values": [0, 65535 if image.is_hounsfield else 255],
        },
        "channels": channels,
        "neighbors": _NEIGHBORS | asdict(neighbors) if neighbors.count else None,
        "windows_of_model": [asdict(window) for window in windows],
        "preparation": {
            "hu": "stored value * RescaleSlope + RescaleIntercept",
            "hu_repair": options.get("hu_repair"),
            "padding_hu": PADDING_HU,
            "voi": options.get("voi"),
            "formula": FORMULAS.get(formula),
            "size": image.height,
            "resize": "after the formula, to fit a square of this size: both sides times size /"
            " the longer side, rounded; area averages where the image shrinks, bilinear where it"
            " grows; in the middle, where the border is the formula's value of padding_hu",
        },
        "output": {
            "name": OUTPUT,
            "dtype": "float32",
            "shape": [None, len(saved.labels)],
            "values": [0, 1],
        },
        **(SCAN_TENSORS if saved.run.record.scans else {}),
        "labels": list(saved.labels),
        "calibration": saved.calibration.describe(saved.labels) if changes else None,
        "opset": OPSET if "onnx" in files else None,
        "saved_model_signature": "serving_default" if "saved_model" in files else None,
        "compared": compared,
        "versions": package_versions(packages),
    }
