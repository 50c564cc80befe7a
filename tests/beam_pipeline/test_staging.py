"""The wheel that workers install is whole: pip checks its record when it installs it."""

import subprocess
import sys
from pathlib import Path

from beam_pipeline.runners import staging
from headct import __version__

ROOT = Path(__file__).parents[2]


def test_workers_get_the_pipeline_without_the_trainer_and_without_a_source_tree(
    tmp_path: Path,
) -> None:
    wheel = staging.build_wheel(tmp_path)
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", target, wheel], check=True)
    assert sorted(path.name for path in target.iterdir()) == [
        "beam_pipeline",
        "headct",
        f"headct_shards-{__version__}.dist-info",
    ]
    for package in ("headct", "beam_pipeline"):
        for path in (ROOT / package).rglob("*.*"):
            if "__pycache__" not in path.parts:
                assert (target / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
