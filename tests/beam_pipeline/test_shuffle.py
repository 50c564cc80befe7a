"""Beam moves numbers of parts and shards, whatever the files are and however many."""

from pathlib import Path

import numpy as np

from beam_pipeline.options import LeakCheck, Options
from tests.beam_pipeline.dicom_files import make_dicom
from tests.benchmarks.costs import run_steps, shuffled

MOST_BYTES = 50  # through the shuffle, for a slice more


def _shuffled_bytes(folder: Path, slices: int, side: int, prefix: str, patient: str) -> int:
    """Bytes into GroupByKeys of a run on equal slices."""
    pixels = np.arange(side * side, dtype=np.int16).reshape(side, side)
    first = folder / "slice"
    (folder / "in").mkdir(parents=True)
    first.write_bytes(make_dicom(pixels, PatientID=patient))
    for number in range(slices):
        (folder / "in" / f"{prefix}{number}.dcm").hardlink_to(first)
    options = Options.of(
        input=str(folder / "in"),
        output=str(folder / "out"),
        image_size=16,
        leak_check=LeakCheck.OFF,
        examples_per_shard=16,
    )
    with shuffled() as counted:
        run_steps(options)
    assert len(list((folder / "out").glob("ich-test.tfrecord-*"))) == -(-slices // 16)
    return counted.bytes


def test_little_is_shuffled_and_nothing_of_the_data(tmp_path: Path) -> None:
    few = _shuffled_bytes(tmp_path / "few", 48, 16, "", "p")
    other = _shuffled_bytes(tmp_path / "other", 48, 32, "a_much_longer_name_of_a_file_", "P" * 60)
    many = _shuffled_bytes(tmp_path / "many", 480, 16, "", "p")
    assert 0 < few == other
    # Two elements a shard and two a part; here shards are a sixteenth of their usual size.
    assert (many - few) / (480 - 48) < MOST_BYTES / 10
