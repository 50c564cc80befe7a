"""Images on the device; test_other_processes.py runs it with JAX as the backend, too."""

import re
import threading
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.framework import kernels

from tests.benchmarks.step_ways import COMPUTE, COPY, calling
from trainer.data.image_cache import ImageCache
from trainer.data.sampling import Order
from trainer.networks import hardware
from trainer.networks.model import Classifier, build_classifier
from trainer.options import TrainOptions
from trainer.runs.training_setup import TrainingSetup, prepare_training
from trainer.training import feeds
from trainer.training.feeds import LookUp, OnDevice, as_words, open_feed, row_type
from trainer.training.tracking import Tracking
from trainer.training.train import Loop
from trainer.training.training_model import compile_phase

RANDOM = np.random.default_rng(0)
JAX = keras.backend.backend() == "jax"


def make_images(shape: tuple[int, ...], dtype: str) -> Any:
    return RANDOM.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("side", [4, 5, 7])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_words_are_the_images_bytes(dtype: str, side: int, channels: int) -> None:
    images = make_images((6, side, side, channels), dtype)
    words = as_words(images)
    assert words.dtype == np.float32
    size = images[0].nbytes
    assert words.shape == (6, -(-size // 4))
    assert words.view(np.uint8)[:, :size].tobytes() == images.tobytes()
    if size % 4 == 0:
        assert np.shares_memory(words, images), "which are large"


def in_pieces(images: Any) -> LookUp:
    """The images on the device, copied by 7 at a time."""
    lookup = LookUp(images.shape, str(images.dtype))
    for begin in range(0, len(images), 7):
        lookup[begin : begin + 7] = images[begin : begin + 7]
    return lookup


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="counts memory by /proc")
def test_a_device_never_holds_its_images_twice() -> None:
    images = np.ones((8, 256, 256, 3), np.uint8)
    count = 400

    def fill() -> LookUp:
        lookup = LookUp((count, *images.shape[1:]), "uint8")
        for begin in range(0, count, len(images)):
            lookup[begin : begin + len(images)] = images
        return lookup

    fill()  # What the backend keeps from its first use on is not counted.
    process = psutil.Process()
    before = process.memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    lookup = fill()
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])
    assert peak - before < 1.3 * count * images[0].nbytes
    assert np.asarray(lookup(np.array([count - 1], row_type()))).min() == 1


@pytest.mark.parametrize(("side", "channels", "dtype"), [(4, 3, "uint8"), (5, 1, "uint16")])
def test_rows_are_looked_up(side: int, channels: int, dtype: str) -> None:
    # All bit patterns there are, those of signaling NaNs too.
    images = make_images((50, side, side, channels), dtype)
    rows = layers.Input((), dtype=row_type())
    model = keras.Model(rows, in_pieces(images)(rows))
    assert model.output.dtype == dtype
    wanted = np.array([49, 0, 7, 7], row_type())
    found = np.asarray(model(wanted))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, images[wanted])


def test_a_balanced_stream_is_as_mixed_as_a_cache(
    shards: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    repeated, distinct = [], []
    for cache in ("none", "ram"):
        given = tiny | {"sampling": "balanced", "cache": cache}
        setup = prepare_training(TrainOptions(shards=shards, run=tmp_path / cache, **given))
        feed = open_feed(setup)
        batches = [
            [image.tobytes() for image in images]
            for epoch in range(12)
            for images, _ in feed.batches(Order(0, epoch)).as_numpy_iterator()
        ]
        assert len(batches) == 60
        repeated.append(np.mean([8 - len(set(batch)) for batch in batches]))
        distinct.append(np.mean([len({*one, *next}) for one, next in pairwise(batches)]))
    assert repeated[0] == pytest.approx(repeated[1], rel=0.25)
    assert distinct[0] == pytest.approx(distinct[1], rel=0.05)


@pytest.mark.parametrize("shared", [False, True] if JAX else [False])
def test_two_batches_are_copied_ahead_of_the_step(
    shared: bool,
    shards: Path,
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setup = prepare_training(
        TrainOptions(shards=shards, run=tmp_path / "run", **tiny | {"cache": "ram"})
    )
    feed, changed, copied, early = open_feed(setup), threading.Condition(), [], []

    def copy() -> None:
        with changed:
            copied.append(1)
            changed.notify_all()

    def compute() -> None:
        # The device takes its time: is the batch after the next on its way before it is done?
        wanted = min(len(early) + 3, setup.steps)
        with changed:
            early.append(changed.wait_for(lambda: len(copied) >= wanted, timeout=60))

    monkeypatch.setattr(*COPY, calling(copy, *COPY))
    monkeypatch.setattr(*COMPUTE, calling(compute, *COMPUTE))
    if not JAX:
        monkeypatch.setattr(hardware, "tensorflow_gpu", lambda: "/device:CPU:0")
    untracked = Tracking(setup.options, setup.run, setup.display)
    with keras.distribution.DataParallel().scope() if shared else nullcontext():
        loop = Loop(setup, feed, Classifier(None, None, None), False, None, untracked)
        inputs = feed.input()
        mean = layers.GlobalAveragePooling2D(dtype="float32")(feed.images(inputs))
        loop.model = keras.Model(inputs, layers.Dense(3)(mean))
        rate = keras.optimizers.schedules.CosineDecay(0.1, setup.steps)
        loop.model.compile(keras.optimizers.SGD(rate), "mse")
        row = loop.train_epoch()
    assert early == [True] * setup.steps
    assert len(copied) == setup.steps
    assert (loop.progress.step, np.isfinite(row["loss"])) == (setup.steps, True)


def test_a_balanced_stream_resumes(shards: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    given = tiny | {"sampling": "balanced"}
    setup = prepare_training(TrainOptions(shards=shards, run=tmp_path / "run", **given))
    feed = open_feed(setup)
    whole, rest = (list(feed.batches(Order(0, 1, n)).as_numpy_iterator()) for n in (0, 2))
    assert (len(whole), len(rest)) == (5, 3)
    for (images, labels), (again, same) in zip(whole[2:], rest, strict=True):
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(labels, same)


@pytest.mark.parametrize("cache", ["ram", "disk", "device"])
def test_a_sample_has_the_channels_of_its_neighbors(
    cache: str,
    shards: Path,
    split_rows: dict[str, Any],
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = tiny | {"cache": cache, "neighbors": 2, "neighbors_mm": 10}
    setup = prepare_training(TrainOptions(shards=shards, run=tmp_path / "run", **given))
    feed: Any = open_feed(setup)
    # A series has slices at 0, 5, 10, 15 mm; wanted are those at -20, -10, 0, 10 and 20 mm.
    around = ([0, 0, 0, 2, 3], [0, 0, 1, 3, 3], [0, 0, 2, 3, 3], [0, 1, 3, 3, 3])
    expected = {}
    for rows in split_rows.values():
        for i, row in enumerate(rows):
            series = [other for other in rows if other["series_id"] == row["series_id"]]
            chosen = [series[min(j, len(series) - 1)]["image"] for j in around[i % 4]]
            expected[row["image"].tobytes()] = np.concatenate(chosen, axis=-1), row["label"]
    # In place of the network, what it gets.
    core = layers.Lambda(lambda images: images)
    monkeypatch.setattr(
        feeds, "send", lambda _, images: seen.extend(images) or np.zeros((len(images), 3))
    )
    classifier = Classifier(None, core, None)
    model, seen = keras.Model(*feed.connect(classifier)), []
    labels = []
    for inputs, classes in feed.batches(Order(0, 0)).as_numpy_iterator():
        seen.extend(np.asarray(model(inputs)))
        labels.extend(classes)
    assert len(seen) == 40
    labels.extend(feed.predict_validation(classifier)[0])
    for sample, classes in zip(seen, labels, strict=False):  # the last batch is padded
        wanted, label = expected[np.uint8(sample[..., 6:9]).tobytes()]
        np.testing.assert_array_equal(sample, wanted)
        assert classes.tolist() == label
    assert len({sample.tobytes() for sample in seen}) == 61
    here = {"ram": 40 * 32 * 32 * 3, "device": 0}
    if cache in here:
        assert sum(each.nbytes for each in feed.cached.images) == here[cache]


@pytest.fixture
def setup(shards: Path, tiny: dict[str, Any], tmp_path: Path) -> TrainingSetup:
    given = tiny | {"cache": "device", "image_size": 16, "ema": 0.9, "precision": "bfloat16"}
    given |= {"neighbors": 1}  # whose step has all operations of one without
    return prepare_training(TrainOptions(shards=shards, run=tmp_path / "run", **given))


def compiled(setup: TrainingSetup, xla: bool) -> tuple[Any, Any]:
    """A compiled model that looks its images up, and a batch for it."""
    images, labels = make_images((40, 16, 16, 3), "uint8"), np.zeros((40, 3), np.float32)
    cached = ImageCache((), labels, np.tile(np.arange(40)[:, None], 3))
    classifier = build_classifier(
        setup.options, setup.shards.image, setup.prevalence, "mixed_bfloat16"
    )
    model = compile_phase(
        setup, OnDevice(setup, cached, cached, in_pieces(images)), classifier, False, xla
    )
    return model, (cached.samples(np.arange(8)).astype(row_type()), labels[:8])


def nodes_of_a_step(setup: TrainingSetup) -> list[Any]:
    """The operations of a training step without XLA, which would bring kernels of its own."""
    model, batch = compiled(setup, xla=False)
    step = tf.function(lambda rows, labels: model.train_step((rows, labels)))
    graph = step.get_concrete_function(*map(tf.constant, batch)).graph.as_graph_def()
    return [*graph.node, *(n for f in graph.library.function for n in f.node_def)]


@pytest.mark.skipif(JAX, reason="JAX compiles everything for the device")
def test_a_step_gathers_only_types_for_which_tensorflow_has_a_gpus_kernel(
    setup: TrainingSetup,
) -> None:
    """None is registered for uint8, the type of stored images; also seen without GPU kernels."""
    gathers = [node for node in nodes_of_a_step(setup) if "Gather" in node.op]
    assert gathers
    types = {tf.as_dtype(node.attr["Tparams"].type).name for node in gathers}
    assert types <= {"bfloat16", "float16", "float32", "float64", "int32", "int64"}


@pytest.mark.skipif(JAX, reason="JAX compiles everything for the device")
@pytest.mark.skipif(
    not any(
        kernel.device_type == "GPU"
        for kernel in kernels.get_registered_kernels_for_op("Conv2D").kernel
    ),
    reason="tensorflow-cpu has no kernels for GPUs",
)
def test_tensorflow_has_a_gpus_kernel_for_all_of_the_step(setup: TrainingSetup) -> None:
    missing = {node.op for node in nodes_of_a_step(setup) if not has_gpu_kernel(node)}
    # Placeholders and constants of the graph, which are no work.
    assert missing <= {"Placeholder", "Assert", "StringFormat"}, missing


def has_gpu_kernel(node: Any) -> bool:
    """Whether TensorFlow has a kernel for GPUs for this operation and these types."""
    found = kernels.get_registered_kernels_for_op(node.op).kernel
    if not found:  # a call of another function
        return True
    return any(
        kernel.device_type in ("GPU", "DEFAULT")
        and all(
            node.attr[each.name].type in each.allowed_values.list.type for each in kernel.constraint
        )
        for kernel in found
    )


def test_the_compiled_step_never_asks_the_host(setup: TrainingSetup) -> None:
    model, batch = compiled(setup, xla=True)
    text = compiled_text(model, batch)
    assert re.search(r"\bgather\(", text)
    for word in ("infeed", "outfeed", "send(", "recv(", "callback", "copy-start"):
        assert word not in text, word


def compiled_text(model: Any, batch: Any) -> str:
    """The step as XLA compiled it (HLO)."""
    if not JAX:
        step = tf.function(lambda *data: model.train_step(data), jit_compile=True)
        ir = step.experimental_get_compiler_ir(*map(tf.constant, batch))
        return str(ir(stage="optimized_hlo"))
    import jax

    model._symbolic_build(data_batch=batch)
    state = tuple(
        [each.value for each in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    )
    return str(jax.jit(model.train_step).lower(state, batch).compile().as_text())
