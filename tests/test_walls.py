"""The walls between the packages, as the interpreter sees them."""

import json
import re
from pathlib import Path

import pytest

from beam_pipeline.workers.pool import _PRELOADED
from tests.processes import run_python

ROOT = Path(__file__).parent.parent
USES_BEAM = {"beam_pipeline.pipeline"}


def imported_by(modules: set[str], then: str = "pass") -> set[str]:
    """The top-level packages that a fresh interpreter has after importing some modules."""
    code = (
        f"import json, sys, {', '.join(sorted(modules))}; {then}; "
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    return set(json.loads(run_python("-c", code).stdout))


def modules(package: str) -> set[str]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / package).rglob("*.py")
        if path.stem not in ("__init__", "__main__")
    }


def test_the_ground_floor_knows_neither_program() -> None:
    loaded = imported_by(modules("headct"))
    assert not loaded & {"apache_beam", "tensorflow", "keras", "beam_pipeline", "trainer"}


# What a run's main process, before Beam, and its workers do not need, and pay for in every run.
@pytest.mark.parametrize(
    ("needed", "then", "strangers"),
    [
        (
            {"beam_pipeline.__main__", "beam_pipeline.finish", "beam_pipeline.card.card"},
            "pass",
            {"pydicom", "requests", "PIL", "boto3", "botocore", "google.auth", "unittest"},
        ),
        (
            {*_PRELOADED},
            "from beam_pipeline.shards import formats; formats.index_table([], ['any'])",
            {"pandas", "rich", "jinja2", "botocore", "apache_beam"},
        ),
    ],
    ids=["main process", "worker"],
)
def test_a_run_loads_only_what_it_needs(needed: set[str], then: str, strangers: set[str]) -> None:
    assert not imported_by(needed, then) & strangers


def test_the_work_of_the_pipeline_knows_neither_beam_nor_tensorflow() -> None:
    loaded = imported_by(modules("beam_pipeline") - USES_BEAM)
    assert not loaded & {"apache_beam", "tensorflow", "keras", "trainer"}


# Of what the pipeline's command loads, see test_end_to_end.py.
@pytest.mark.full
def test_the_wiring_of_the_pipeline_knows_beam_but_not_tensorflow() -> None:
    loaded = imported_by(USES_BEAM)
    assert not loaded & {"tensorflow", "keras", "trainer"}
    assert "apache_beam" in loaded


# By default its source is read below; of what its commands load, see test_end_to_end.py.
@pytest.mark.full
def test_the_trainer_does_not_know_the_pipeline() -> None:
    assert not imported_by(modules("trainer")) & {"beam_pipeline", "apache_beam"}


def test_no_line_of_the_trainer_imports_the_pipeline() -> None:
    imports = re.compile(r"^\s*(?:from|import)\s+(?:beam_pipeline|apache_beam)\b", re.M)
    sources = {path: path.read_text() for path in (ROOT / "trainer").rglob("*.py")}
    assert len(sources) > 40
    assert not [path for path, source in sources.items() if imports.search(source)]
