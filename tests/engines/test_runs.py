"""The pipeline on Beam's runners: the same bytes as on this machine alone, whatever happens.

Every path is relative to the folder in which the pipeline is started; workers have another one.
"""

import json
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from beam_pipeline.runners.run_job import Job
from headct.layout import JOB
from tests.engines.conftest import ARGUMENTS, BAD, SLICES
from tests.engines.engines import Engine, digests, finish, kill, wait_for

RUN = ("--input", "slices", *ARGUMENTS)


def assert_right(folder: Path, reference: dict[str, str]) -> None:
    """The directory is that of the local run, and nothing else is in it."""
    assert digests(folder / "out") == reference


def assert_quiet(done: "subprocess.CompletedProcess[str]", files: int) -> None:
    """Nothing but what the pipeline has to say."""
    assert done.stderr == ""
    assert "Traceback" not in done.stdout
    assert f"{SLICES} of {files} files written in " in done.stdout


def assert_nothing_left(engine: Engine) -> None:
    """No process of the pipeline's command is alive, nor a decoder of any worker."""
    parts = ("beam_pipeline --", "forkserver", "prism ")
    wait_for(lambda: not any(engine.processes(part) for part in parts))


def prism_servers(engine: Engine) -> list[psutil.Process]:
    return [process for process in engine.processes("prism") if process.name() == "prism"]


def has_written(folder: Path, shards: int) -> bool:
    return len(list((folder / "out" / ".unfinished" / "written").glob("*.arrow"))) >= shards


def test_a_run_gives_the_bytes_of_a_local_one(
    engine: Engine, folder: Path, reference: dict[str, str]
) -> None:
    done = engine.run(folder, *RUN)
    assert done.returncode == 0, done.stderr
    assert_quiet(done, SLICES)
    assert_right(folder, reference)
    assert_nothing_left(engine)
    first, second, *_ = done.stdout.splitlines()
    assert first == (
        f"Every worker must find {folder / 'slices'} and {folder / 'out'} at the same path."
    )
    if engine.name == "portable":
        assert second.startswith("Job job-")
        assert second.endswith(f" was submitted, at {engine.arguments[3]}")


def test_decoders_that_crash_or_hang_cost_their_slice_and_nothing_else(
    engine: Engine, folder: Path, references: dict[str, dict[str, str]]
) -> None:
    done = engine.run(folder, "--input", "spoiled", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    assert_quiet(done, SLICES + len(BAD))
    assert_right(folder, references["spoiled"])
    rows = map(json.loads, (folder / "out" / "rejects.jsonl").read_text().splitlines())
    assert {row["image_id"]: row["reason"] for row in rows} == {
        name: reason for name, (_, reason) in BAD.items()
    }
    assert_nothing_left(engine)


def test_a_refusal_of_a_worker_arrives_with_its_exit_code(engine: Engine, folder: Path) -> None:
    (folder / "labels.csv").unlink()
    (folder / "labels.csv").write_text("id,bleeds\nID_0,1\nID_1,0\n")
    done = engine.run(folder, *RUN)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"beam_pipeline: error: {SLICES - 2} of {SLICES} files were rejected (")
    if engine.name == "portable":
        job = Job(**json.loads((folder / "out" / JOB).read_text()))
        assert job.state([]) == "FAILED"
    assert_nothing_left(engine)


def test_two_runs_at_once_end_in_one_right_directory(
    engine: Engine, folder: Path, reference: dict[str, str]
) -> None:
    runs = [engine.start(folder, *RUN) for _ in range(2)]
    for done in map(finish, runs):
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    assert_right(folder, reference)
    assert_nothing_left(engine)


@pytest.mark.parametrize(
    "sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.full)]
)
def test_ctrl_c_tells_the_truth_and_the_same_command_ends_the_work(
    engine: Engine, folder: Path, reference: dict[str, str], sent: signal.Signals
) -> None:
    run = engine.start(folder, *RUN)
    wait_for(lambda: has_written(folder, 2))
    run.send_signal(sent)
    done = finish(run)
    assert done.returncode == 130
    assert done.stderr.count("\n") == 1, done.stderr
    line = done.stderr.strip()
    again = engine.run(folder, *RUN)
    assert again.returncode == 0, again.stderr
    if engine.name == "portable":
        assert "is still running" in line
        assert " is still running, at " in again.stdout or "is complete" in again.stdout
    else:
        assert line == "beam_pipeline: interrupted; the same command resumes"
    assert_right(folder, reference)
    assert_nothing_left(engine)


def test_ctrl_c_cancels_a_job_if_told_to(
    engine: Engine, folder: Path, reference: dict[str, str]
) -> None:
    run = engine.start(folder, *RUN, "--cancel_on_interrupt")
    wait_for(lambda: has_written(folder, 2))
    run.send_signal(signal.SIGINT)
    done = finish(run)
    assert done.returncode == 130
    assert done.stderr.endswith("; the same command resumes\n")
    again = engine.run(folder, *RUN)
    assert again.returncode == 0, again.stderr
    assert " is still running" not in again.stdout
    # The canceled job's last task may still be under way: it gives the same bytes.
    wait_for(lambda: digests(folder / "out") == reference)


def test_a_launcher_that_is_killed_leaves_a_directory_to_go_on_with(
    engine: Engine, folder: Path, reference: dict[str, str]
) -> None:
    run = engine.start(folder, *RUN)
    wait_for(lambda: has_written(folder, 2))
    run.kill()
    finish(run)
    wait_for(lambda: not prism_servers(engine))
    again = engine.run(folder, *RUN)
    assert again.returncode == 0, again.stderr
    assert_right(folder, reference)
    assert_nothing_left(engine)


def test_a_worker_that_is_killed_costs_no_more_than_another_start(
    engine: Engine, folder: Path, reference: dict[str, str]
) -> None:
    if engine.worker is None:
        pytest.skip(f"workers of {engine.name} are threads of the pipeline's own command")
    run = engine.start(folder, *RUN)
    wait_for(lambda: has_written(folder, 2))
    kill(engine.processes(engine.worker)[0])
    done = finish(run)
    if done.returncode:
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("beam_pipeline: error: PortableRunner failed: ")
        log = Path(line.rpartition(" ")[2])
        assert "Traceback" in log.read_text()
        log.unlink()
        again = engine.run(folder, *RUN)
        assert again.returncode == 0, again.stderr
    assert_right(folder, reference)
    assert_nothing_left(engine)


def test_a_job_server_that_dies_is_told_in_one_line(
    engine: Engine, folder: Path, reference: dict[str, str]
) -> None:
    if engine.name != "prism":
        pytest.skip(f"the job server of {engine.name} serves the other tests")
    run = engine.start(folder, *RUN)
    wait_for(lambda: has_written(folder, 2))
    (server,) = prism_servers(engine)
    kill(server)
    done = finish(run)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    line = done.stderr.strip()
    assert line.startswith("beam_pipeline: error: PrismRunner failed: ")
    log = Path(line.rpartition("its log is ")[2])
    assert "Traceback" in log.read_text()
    log.unlink()
    again = engine.run(folder, *RUN)
    assert again.returncode == 0, again.stderr
    assert_right(folder, reference)
    assert_nothing_left(engine)
