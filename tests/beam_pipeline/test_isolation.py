"""Decoders that crash or hang cost their slice and nothing else; on other runners, see engines."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beam_pipeline.__main__ import main
from tests.beam_pipeline import bad_decoders
from tests.beam_pipeline.bad_decoders import BAD, write_slice
from tests.beam_pipeline.steps import contents
from tests.processes import run_python

SLICES = 24


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slices in JPEG Lossless, two of which spoil the decoder."""
    folder = tmp_path_factory.mktemp("slices")
    pixels = np.random.default_rng(0).integers(0, 1200, (SLICES + 2, 32, 32)).astype(np.int16)
    for number in range(SLICES):
        write_slice(folder / f"ID_{number}.dcm", pixels[number], b"", f"p{number // 4}")
    for number, (name, (marker, _)) in enumerate(BAD.items(), start=SLICES):
        write_slice(folder / f"{name}.dcm", pixels[number], marker, f"p{number % 6}")
    return folder


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which decoders crash and hang."""
    folder = tmp_path_factory.mktemp("sitecustomize")
    bad_decoders.install(folder)
    return {"PYTHONPATH": str(folder)}


def options(slices: Path, output: Path, workers: int) -> list[str]:
    given = ["--input", str(slices), "--output", str(output), "--workers", str(workers)]
    given += ["--image_size", "32", "--examples_per_shard", "5"]
    return [*given, "--max_reject_fraction", "0.2", "--decode_timeout", "1"]


def run(environment: dict[str, str], *given: Any) -> None:
    run_python("-m", "beam_pipeline", *options(*given), **environment)


def rejects(output: Path) -> dict[str, str]:
    lines = (output / "rejects.jsonl").read_text().splitlines()
    return {row["image_id"]: row["reason"] for row in map(json.loads, lines)}


@pytest.fixture(scope="module")
def reference(
    slices: Path, spoiled: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The bytes of a run with one local process."""
    output = tmp_path_factory.mktemp("reference") / "out"
    run(spoiled, slices, output, 1)
    return contents(output)


def test_a_decoder_that_crashes_or_hangs_costs_its_slice_and_nothing_else(
    slices: Path,
    spoiled: dict[str, str],
    reference: dict[str, bytes],
    tmp_path: Path,
) -> None:
    run(spoiled, slices, tmp_path / "out", 2)
    assert rejects(tmp_path / "out") == {name: reason for name, (_, reason) in BAD.items()}
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]
    assert (counts["files_seen"], counts["written"]) == (SLICES + 2, SLICES)
    assert contents(tmp_path / "out") == reference


@pytest.mark.filterwarnings("default::DeprecationWarning:apache_beam.*")  # Beam's own
def test_nothing_is_rejected_where_decoders_are_as_they_are(slices: Path, tmp_path: Path) -> None:
    assert main(options(slices, tmp_path / "out", 2)) == 0
    assert rejects(tmp_path / "out") == {}
