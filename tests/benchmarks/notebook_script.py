"""(a) DICOM to TFRecord as notebooks do it: pydicom, float64, OpenCV, TensorFlow, a process pool.

What a competent user writes: TensorFlow is imported once, before the pool forks; pydicom is told
not to validate what it reads; every task is one shard, which its worker writes as it goes.

    python -m tests.benchmarks.notebook_script --input FOLDER --output FOLDER --workers 2
"""

import argparse
import multiprocessing
import sys
from pathlib import Path

import cv2
import numpy as np
import pydicom
import tensorflow as tf

WINDOWS = [(40, 80), (80, 200), (600, 2800)]  # brain, subdural, bone: center and width, HU
PER_SHARD = 256

pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


def convert_file(path: str) -> bytes:
    """A serialized Example of one file."""
    dataset = pydicom.dcmread(path)
    hounsfield = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    channels = [apply_window(hounsfield, center, width) for center, width in WINDOWS]
    image = np.stack(channels[::-1], axis=-1)  # OpenCV takes blue, green, red
    written, png = cv2.imencode(".png", image)
    assert written
    return to_example(path, dataset, png.tobytes()).SerializeToString()


def apply_window(hounsfield: np.ndarray, center: float, width: float) -> np.ndarray:
    lowest = center - width / 2
    return (np.clip((hounsfield - lowest) / width, 0, 1) * 255).astype(np.uint8)


def to_example(path: str, dataset: pydicom.Dataset, png: bytes) -> tf.train.Example:
    features = {
        "image": bytes_feature(png),
        "image_id": bytes_feature(Path(path).stem.encode()),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[-1] * 6)),
        "patient_id": bytes_feature(str(dataset.PatientID).encode()),
        "study_id": bytes_feature(str(dataset.StudyInstanceUID).encode()),
        "series_id": bytes_feature(str(dataset.SeriesInstanceUID).encode()),
        "position_z": floats_feature([dataset.ImagePositionPatient[2]]),
        "pixel_spacing": floats_feature(dataset.PixelSpacing),
    }
    return tf.train.Example(features=tf.train.Features(feature=features))


def bytes_feature(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def floats_feature(values: list[float]) -> tf.train.Feature:
    return tf.train.Feature(float_list=tf.train.FloatList(value=map(float, values)))


def write_shard(task: tuple[str, list[str]]) -> None:
    name, paths = task
    with tf.io.TFRecordWriter(name) as writer:
        for path in paths:
            writer.write(convert_file(path))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True)
    paths = sorted(map(str, options.input.iterdir()))
    shards = [paths[at : at + PER_SHARD] for at in range(0, len(paths), PER_SHARD)]
    names = [str(options.output / f"{number:05d}.tfrecord") for number in range(len(shards))]
    with multiprocessing.get_context("fork").Pool(options.workers) as pool:
        for _ in pool.imap_unordered(write_shard, zip(names, shards, strict=True)):
            pass
        pool.close()
        pool.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
