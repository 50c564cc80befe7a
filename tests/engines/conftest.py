"""Slices, a local run to compare with, and the runners."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.beam_pipeline import bad_decoders
from tests.beam_pipeline.bad_decoders import BAD, write_slice
from tests.engines.engines import Engine, digests, start_engine, wait_for

SLICES = 96
_TEST_SECONDS = 1800
ARGUMENTS = (
    *("--output", "out", "--labels", "labels.csv", "--image_size", "32"),
    *("--examples_per_shard", "6", "--folds", "3", "--decode_timeout", "1"),
    *("--max_reject_fraction", "0.2"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives tests on engines more time: they wait for several programs on a machine."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(_TEST_SECONDS))


@pytest.fixture(scope="session")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slices in JPEG Lossless, in `spoiled` two more that spoil the decoder, and `labels.csv`."""
    folder = tmp_path_factory.mktemp("data_set")
    (folder / "slices").mkdir()
    (folder / "spoiled").mkdir()
    pixels = np.random.default_rng(0).integers(0, 1200, (SLICES + 2, 32, 32)).astype(np.int16)
    rows = ["id,bleeds"]
    names = [*(f"ID_{number}" for number in range(SLICES)), *BAD]
    for number, name in enumerate(names):
        marker = BAD.get(name, (b"",))[0]
        path = folder / "spoiled" / f"{name}.dcm"
        write_slice(path, pixels[number], marker, f"p{number // 4}")
        if not marker:
            (folder / "slices" / path.name).hardlink_to(path)
        rows.append(f"{name},{number % 3 == 0:d}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which decoders crash, hang, and take their time."""
    folder = tmp_path_factory.mktemp("sitecustomize")
    bad_decoders.install(folder)
    return {"PYTHONPATH": str(folder), bad_decoders.SLOW: "0.05"}


@pytest.fixture
def folder(data_set: Path, tmp_path: Path) -> Path:
    """Where the pipeline is started: the input lies in it, and the output shall."""
    folder = tmp_path / "start"
    folder.mkdir()
    for path in data_set.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="session")
def references(
    data_set: Path, decoders: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, str]]:
    """What local runs give, by the folder of slices."""
    found = {}
    for name in ("slices", "spoiled"):
        output = tmp_path_factory.mktemp("reference") / name
        with start_engine("local", output.parent, decoders) as engine:
            done = engine.run(data_set, *ARGUMENTS, "--input", name, "--output", str(output))
        assert done.returncode == 0, done.stderr
        found[name] = digests(output)
    return found


@pytest.fixture(scope="session")
def reference(references: dict[str, dict[str, str]]) -> dict[str, str]:
    """What a local run gives of slices that do no harm."""
    return references["slices"]


@pytest.fixture(scope="module", params=["portable", "prism"])
def engine(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    decoders: dict[str, str],
) -> Iterator[Engine]:
    """A runner, whose workers have another working directory than the pipeline's command."""
    with start_engine(request.param, tmp_path_factory.mktemp(request.param), decoders) as engine:
        yield engine
    wait_for(lambda: not engine.processes())
