"""What tests of several packages need."""

import gc
import os
import signal
import warnings
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import Phase, settings

# How long an example takes says more of the machine than of the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
# Of `make mutants`: the same examples for every mutant, and that one fails is enough.
settings.register_profile(
    "mutants",
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)

# What a shell runs in the background ignores it, and so do the processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# `make test` itself tells its children so.
os.environ.pop("HEADCT_STARTED_BY", None)

MARKERS = (
    "full: one more case of what others show, for `make test-all` (--full)",
    "system: whole commands, notebooks, web pages, kills and faulty stores (`make test-system`)",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --full."""
    parser.addoption("--full", action="store_true", help="every case, kill and mutation there is")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two processes per core: a part of the tests' time is waiting."""
    return (os.cpu_count() or 1) * 2


def pytest_configure(config: pytest.Config) -> None:
    """Registers the markers."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep what is imported and collected out of garbage collections.

    These are some 800,000 objects that live to the end; each full collection would visit them
    for half a second, which was a fifth of the tests' time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the cases of --full away without it.

    What takes longest is begun first, lest one process is left alone with it in the end.
    """
    items.sort(key=lambda item: item.path.name != "test_other_processes.py")
    if config.getoption("full"):
        return
    config.hook.pytest_deselected(items=[i for i in items if i.get_closest_marker("full")])
    items[:] = [item for item in items if not item.get_closest_marker("full")]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Drops what libraries said when they were imported: it would come after pytest's last line."""
    capturing = session.config.pluginmanager.getplugin("capturemanager")
    if capturing is not None and capturing.is_globally_capturing():
        capturing.read_global_capture()


@pytest.fixture(scope="session")
def made_once(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes a folder by its name, which all processes of pytest-xdist have together.

    made_once(name, make) is where the first of them, by make(folder), has made it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "made_once"
    shared.mkdir(exist_ok=True)

    def made(name: str, make: Callable[[Path], object]) -> Path:
        with FileLock(shared / f"{name}.lock"):
            done = shared / f"{name}.done"
            if not done.exists():
                make(shared / name)
                done.touch()
        return shared / name

    return made


@pytest.fixture(scope="session")
def sample_shards(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Of windows in `windows`, of Hounsfield units in `hu`, without labels in `unlabeled`."""

    def make(folder: Path) -> None:
        from beam_pipeline.__main__ import main
        from examples.sample import write_sample

        sample = folder / "sample"
        write_sample(sample, patients=3, slices=4)
        given = ["--input", f"{sample}/slices", "--image_size", "64"]
        given += ["--max_reject_fraction", "0.6"]
        labeled = [*given, "--labels", f"{sample}/labels.csv", "--folds", "2"]
        assert main([*labeled, "--output", f"{folder}/windows"]) == 0
        assert main([*labeled, "--output", f"{folder}/hu", "--hu"]) == 0
        assert main([*given, "--output", f"{folder}/unlabeled"]) == 0

    with warnings.catch_warnings():
        # Beam's own use of deprecated Python features; RSNA's UIDs, which are no valid UIDs.
        warnings.simplefilter("ignore")
        return made_once("sample_shards", make)


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    """Whether slow proofs run in their full number."""
    return bool(pytestconfig.getoption("full"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data named by ICH_REAL_DATA."""
    folder = os.environ.get("ICH_REAL_DATA")
    if not folder:
        pytest.skip("ICH_REAL_DATA is not set: no real data")
    if not Path(folder).is_dir():
        pytest.skip(f"ICH_REAL_DATA={folder} is not a folder: no real data")
    return Path(folder)
