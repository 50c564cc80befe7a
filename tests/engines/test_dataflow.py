"""The pipeline submitted to Dataflow: up to the service, of which there is a stand-in.

The bucket is a server of Google Cloud Storage on this machine. Where a job is to succeed, what was
staged in the bucket is run by Beam's SDK harness, as the service's workers would.
"""

import base64
import bz2
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from apache_beam.portability.api import beam_runner_api_pb2

from beam_pipeline import __version__
from beam_pipeline.runners.staging import pinned_requirements
from tests.beam_pipeline.dicom_files import make_dicom
from tests.engines.dataflow_service import DataflowJob, DataflowService, serve_dataflow
from tests.engines.engines import ROOT, finish, wait_for
from tests.headct.faulty_proxy import FaultyProxy
from tests.headct.object_stores import ObjectServer, serve_gcs

pytest.importorskip("google.cloud.dataflow", reason="apache-beam[gcp] is not installed")
pytestmark = pytest.mark.timeout(600)

SLICES = 12
FILE_NAME = "NAME_OF_FILE"
PATIENT = "NAME^OF^PATIENT"
KEY = b"the key of the identifiers"
IMAGE = "europe-west1-docker.pkg.dev/my-project/images/headct:1"
STEPS = [
    *("List files", "Spread parts", "Read headers", "Gather parts"),
    "Plan shards",
    *("Spread shards", "Convert and write", "Gather shards"),
    "Describe shards",
]
WORKERS = (
    *("--machine_type", "n1-highmem-4", "--disk_size_gb", "30", "--max_num_workers", "7"),
    *("--experiments", "shuffle_mode=service"),
)
STAGED_PIPELINE = Path(__file__).with_name("staged_pipeline.py")
SUBMIT_SECONDS, RUN_SECONDS = 120, 180


@dataclass(frozen=True)
class Cloud:
    """A project of Google's, as far as it is there.

    Attributes:
        bucket: with `slices`, `labels.csv` and `key`.
        dataflow: the service.
        environment: in which Google's libraries find both.
    """

    bucket: ObjectServer
    dataflow: DataflowService
    environment: dict[str, str]

    def start(self, output: str, *others: str) -> "subprocess.Popen[str]":
        """Start the pipeline's command, to write to a folder of the bucket."""
        url = self.bucket.url
        arguments = [
            *("--input", f"{url}/slices", "--labels", f"{url}/labels.csv"),
            *("--output", f"{url}/{output}", "--image_size", "32", "--folds", "2"),
            *("--identifiers", "hash", "--identifier_key_file", f"{url}/key"),
            *("--runner", "DataflowRunner", "--project", "my-project", "--region", "europe-west1"),
            *("--temp_location", f"{url}/temp", "--dataflow_endpoint", self.dataflow.url),
            *others,
        ]
        return subprocess.Popen(
            [sys.executable, "-m", "beam_pipeline", *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def submit(self, output: str, *others: str) -> tuple["subprocess.Popen[str]", DataflowJob]:
        """Start the command, and wait until it asks for the state of the job that it created."""
        known = len(self.dataflow.jobs)
        process = self.start(output, *others)
        wait_for(
            lambda: (
                process.poll() is not None
                or (len(self.dataflow.jobs) > known and self.dataflow.jobs[-1].asked)
            )
        )
        assert process.poll() is None, process.communicate()[1]
        return process, self.dataflow.jobs[-1]

    def read(self, url: str) -> bytes:
        """An object, by its URL."""
        folder, _, name = url.removeprefix(f"{self.bucket.url}/").rpartition("/")
        return self.bucket.get(folder)[name]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """The bucket with slices of six patients, and the service."""
    pixels = np.random.default_rng(0).integers(0, 1200, (SLICES, 32, 32)).astype(np.int16)
    objects = {
        f"slices/{FILE_NAME}_{number}.dcm": make_dicom(
            image, SOPInstanceUID=f"1.{number}", PatientID=f"{PATIENT}{number // 2}"
        )
        for number, image in enumerate(pixels)
    }
    rows = ["id,bleeds", *(f"{FILE_NAME}_{number},{number % 2}" for number in range(SLICES))]
    objects["labels.csv"] = ("\n".join(rows) + "\n").encode()
    objects["key"] = KEY
    with FaultyProxy() as proxy, serve_gcs(proxy) as bucket, serve_dataflow() as dataflow:
        bucket.put(objects)
        found = dataflow.environment(tmp_path_factory.mktemp("credentials"))
        found["STORAGE_EMULATOR_HOST"] = f"http://127.0.0.1:{proxy.port}"
        yield Cloud(bucket, dataflow, os.environ | found)


@dataclass(frozen=True)
class Submission:
    """A run that succeeded.

    Attributes:
        done: the command.
        job: that it created.
        staged: the files that it left in the bucket for workers, by their names.
        pipeline: one of them.
    """

    done: "subprocess.CompletedProcess[str]"
    job: DataflowJob
    staged: dict[str, bytes]
    pipeline: beam_runner_api_pb2.Pipeline


@pytest.fixture(scope="module")
def submission(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Submission:
    """A run whose job is done, as workers would do it, from what lies in the bucket alone."""
    process, job = cloud.submit("shards", *WORKERS)
    staged, worked = work(cloud, job, tmp_path_factory.mktemp("worker"))
    done = finish(process)
    assert worked.returncode == 0, worked.stderr
    pipeline = beam_runner_api_pb2.Pipeline.FromString(staged["pipeline.pb"])
    return Submission(done, job, staged, pipeline)


def work(
    cloud: Cloud, job: DataflowJob, semi_persistent: Path
) -> tuple[dict[str, bytes], "subprocess.CompletedProcess[str]"]:
    """Do a job as workers would; what is staged for them, and how they ended."""
    staged = cloud.bucket.get(job.options["staging_location"].removeprefix(f"{cloud.bucket.url}/"))
    for name, content in staged.items():
        path = semi_persistent / "staged" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    worked = subprocess.run(
        [sys.executable, "-P", str(STAGED_PIPELINE), str(semi_persistent)],
        cwd=semi_persistent,
        env=cloud.environment,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )
    if worked.returncode:
        job.fail("a worker failed")
    else:
        job.state = "JOB_STATE_DONE"
    return staged, worked


def test_a_refused_run_is_a_failed_job_and_one_line(cloud: Cloud, tmp_path: Path) -> None:
    cloud.bucket.put({"few.csv": f"id,bleeds\n{FILE_NAME}_0,1\n{FILE_NAME}_2,0\n".encode()})
    process, job = cloud.submit("refused", "--labels", f"{cloud.bucket.url}/few.csv")
    for attempt in range(2):  # as Dataflow tries again
        (tmp_path / str(attempt)).mkdir()
        _, worked = work(cloud, job, tmp_path / str(attempt))
        assert worked.returncode, "the job is done"
    done = finish(process)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"beam_pipeline: error: {SLICES - 2} of {SLICES} files were rejected (")
    assert ".unfinished/refusal.json" in cloud.bucket.get("refused")


def unpacked(data: bytes) -> bytes:
    """Data, and what Beam has pickled, compressed and encoded in it."""
    packed = re.findall(rb"Qlpo[A-Za-z0-9+/]+=*", data)  # the magic number of bzip2
    return data + b"".join(
        bz2.decompress(base64.b64decode(run[: len(run) // 4 * 4])) for run in packed
    )


def test_the_command_follows_the_job_to_its_end(cloud: Cloud, submission: Submission) -> None:
    done, job = submission.done, submission.job
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == (
        f"Job {job.id} was submitted, https://console.cloud.google.com/dataflow/jobs/"
        f"europe-west1/{job.id}?project=my-project"
    )
    assert f"{SLICES} of {SLICES} files written in " in done.stdout
    assert {"manifest.json", "index.parquet"} < cloud.bucket.get("shards").keys()


def test_the_job_is_created_in_its_project_and_region(submission: Submission) -> None:
    job = submission.job
    assert (job.project, job.region) == ("my-project", "europe-west1")
    assert job.request["environment"]["version"]["job_type"] == "FNAPI_BATCH"


def test_the_pipeline_in_the_bucket_has_all_steps(cloud: Cloud, submission: Submission) -> None:
    options = submission.job.options
    content = cloud.read(options["pipelineUrl"])
    assert options["pipelineProtoHash"] == hashlib.sha256(content).hexdigest()
    assert steps(submission.pipeline) >= set(STEPS)


def steps(pipeline: beam_runner_api_pb2.Pipeline) -> set[str]:
    transforms = pipeline.components.transforms.values()
    return {transform.unique_name.rpartition("/")[2] for transform in transforms}


def test_the_options_reach_the_workers(cloud: Cloud, submission: Submission) -> None:
    options = submission.job.options
    assert options["project"] == "my-project"
    assert options["region"] == "europe-west1"
    assert options["temp_location"].startswith(f"{cloud.bucket.url}/temp/")
    assert options["number_of_worker_harness_threads"] == 1


def test_the_workers_are_as_asked_for(submission: Submission) -> None:
    pool = submission.job.pool
    assert pool["kind"] == "harness"
    assert pool["machineType"] == "n1-highmem-4"
    assert pool["diskSizeGb"] == 30
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 7
    assert pool["numThreadsPerWorker"] == 1
    assert {"shuffle_mode=service", "use_runner_v2"} <= set(
        submission.job.request["environment"]["experiments"]
    )


def test_workers_start_from_beams_image_of_this_version(submission: Submission) -> None:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    image = (
        f"gcr.io/cloud-dataflow/v1beta3/beam_python{python}_sdk:{metadata.version('apache-beam')}"
    )
    assert submission.job.pool["workerHarnessContainerImage"] == image
    (container,) = submission.job.pool["sdkHarnessContainerImages"]
    assert container["containerImage"] == image


def test_what_is_staged_is_what_the_job_names(cloud: Cloud, submission: Submission) -> None:
    """By the SHA-256 with which workers check what they download."""
    named = dict(url_and_sha256(submission.pipeline))
    folder = submission.job.options["staging_location"]
    wheel = f"headct_shards-{__version__}-py3-none-any.whl"
    assert named.keys() >= {
        f"{folder}/{name}" for name in ("requirements.txt", "extra_packages.txt", wheel)
    }
    for url, sha256 in named.items():
        assert hashlib.sha256(cloud.read(url)).hexdigest() == sha256
    packages = {package["name"]: package["location"] for package in submission.job.pool["packages"]}
    assert {f"gs://{place.partition('/')[2]}" for place in packages.values()} == named.keys()
    assert submission.staged["extra_packages.txt"].decode().split() == [wheel]


def url_and_sha256(pipeline: beam_runner_api_pb2.Pipeline) -> Iterator[tuple[str, str]]:
    for environment in pipeline.components.environments.values():
        for dependency in environment.dependencies:
            payload = beam_runner_api_pb2.ArtifactUrlPayload.FromString(dependency.type_payload)
            yield payload.url, payload.sha256


def test_workers_install_the_versions_of_this_environment(submission: Submission) -> None:
    pins = submission.staged["requirements.txt"].decode().splitlines()
    assert pins == pinned_requirements()
    versions = dict(pin.split("==") for pin in pins)
    for name in ("apache-beam", "google-cloud-dataflow-client", "imagecodecs", "obstore"):
        assert versions[name] == metadata.version(name)


def test_neither_the_key_nor_a_name_is_sent(cloud: Cloud, submission: Submission) -> None:
    sent = {"the request": json.dumps(submission.job.request).encode(), **submission.staged}
    for place, content in sent.items():
        for secret in (KEY, FILE_NAME.encode(), PATIENT.encode()):
            assert secret not in unpacked(content), place
    assert f"{cloud.bucket.url}/key".encode() in unpacked(submission.staged["pipeline.pb"])


def test_an_image_of_ones_own_and_a_job_that_fails(cloud: Cloud) -> None:
    """Nothing is staged that the image has; the reason is shown that the service gives."""
    process, job = cloud.submit("failed", "--sdk_container_image", IMAGE)
    job.fail("Traceback (most recent call last):\nValueError: of the service")
    done = finish(process)
    assert job.pool["workerHarnessContainerImage"] == IMAGE
    named = {package["name"] for package in job.pool["packages"]}
    assert named.isdisjoint({"requirements.txt", "extra_packages.txt"})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "beam_pipeline: error: DataflowRunner failed: ValueError: of the service; its log is "
    )
    Path(line.rpartition(" ")[2]).unlink()


def test_a_job_goes_on_after_an_interrupt_and_is_found_again(cloud: Cloud) -> None:
    process, job = cloud.submit("interrupted", "--sdk_container_image", IMAGE)
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.returncode == 130
    assert f"interrupted; job {job.id} is still running, https://console" in done.stderr
    assert job.state == "JOB_STATE_RUNNING"

    asked, jobs = job.asked, len(cloud.dataflow.jobs)
    again = cloud.start("interrupted", "--sdk_container_image", IMAGE, "--cancel_on_interrupt")
    wait_for(lambda: again.poll() is not None or job.asked > asked + 1, SUBMIT_SECONDS)
    again.send_signal(signal.SIGINT)
    done = finish(again)
    assert done.stdout.startswith(f"Job {job.id} is still running, https://console"), done.stderr
    assert done.returncode == 130
    assert f"interrupted; job {job.id} was canceled; the same command resumes" in done.stderr
    assert job.state == "JOB_STATE_CANCELLED"
    assert len(cloud.dataflow.jobs) == jobs


def test_a_template_holds_a_job_that_is_not_created(cloud: Cloud) -> None:
    """So do the launchers of Flex Templates start the command."""
    jobs = len(cloud.dataflow.jobs)
    place = f"{cloud.bucket.url}/templates/headct"
    image = ("--sdk_container_image", IMAGE)
    done = finish(cloud.start("of_template", *image, "--template_location", place))
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"The template is at {place}; a job made of it writes {cloud.bucket.url}/of_template.\n"
    )
    assert len(cloud.dataflow.jobs) == jobs
    template = json.loads(cloud.read(place))
    (pool,) = template["environment"]["workerPools"]
    assert pool["workerHarnessContainerImage"] == IMAGE
    url = template["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"]
    pipeline = beam_runner_api_pb2.Pipeline.FromString(cloud.read(url))
    assert steps(pipeline) >= set(STEPS)
