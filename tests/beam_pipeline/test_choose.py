"""What is wrong with a call is said in one line, before anything starts."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beam_pipeline.__main__ import main
from beam_pipeline.command_line import parse_options
from beam_pipeline.runners.choose import LOCAL, RUNNERS, choose_runner
from headct.errors import UsageError
from tests.headct.ports import free_port

DATAFLOW = ["--runner", "DataflowRunner"]
CLOUD = [*DATAFLOW, "--project", "p", "--region", "r", "--temp_location", "gs://b/temp"]
FILES = ["--input", "in", "--output", "out"]
URLS = ["--input", "gs://b/in", "--output", "gs://b/out"]
HASH = ["--identifiers", "hash"]
PORTABLE = ["--runner", "PortableRunner", "--job_endpoint"]
WRONG = {
    "an unknown name": (
        [*FILES, "--runner", "foo"],
        "there is no --runner foo; choose from local, PrismRunner, FlinkRunner, SparkRunner, "
        "PortableRunner, DataflowRunner",
    ),
    "a mistyped name": (
        [*FILES, "--runner", "DataFlowRuner"],
        "there is no --runner DataFlowRuner (did you mean DataflowRunner?); choose from",
    ),
    "no name": ([*FILES, "--runner", ""], "there is no --runner ; choose from"),
    "Dask": (
        [*FILES, "--runner", "DaskRunner"],
        "--runner DaskRunner is not supported: it computes some steps twice",
    ),
    "notebooks": ([*FILES, "--runner", "interactive"], "InteractiveRunner is not supported: it is"),
    "Dataflow alone": (
        [*URLS, *DATAFLOW],
        "--runner DataflowRunner needs --project (for instance my-project), --region (for instance "
        "europe-west1), --temp_location (for instance gs://my-bucket/temp)",
    ),
    "no region": (
        [*URLS, *DATAFLOW, "--project", "p", "--temp_location", "gs://b/t"],
        "--runner DataflowRunner needs --region (for instance europe-west1)",
    ),
    "local input for Dataflow": (
        ["--input", "in", "--output", "gs://b/out", *CLOUD],
        "--input in is a local path, which the workers of DataflowRunner cannot see; want a URL",
    ),
    "local output for Dataflow": (
        ["--input", "gs://b/in", "--output", "/data/out", *CLOUD],
        "--output /data/out is a local path",
    ),
    "local labels for Dataflow": (
        [*URLS, "--labels", "labels.csv", *CLOUD],
        "--labels labels.csv is a local path",
    ),
    "a file URL for Dataflow": (
        ["--input", "file:///data/in", "--output", "gs://b/out", *CLOUD],
        "--input file:///data/in is a local path",
    ),
    "local folds for Dataflow": (
        [*URLS, "--folds_from", "folds.csv", *CLOUD],
        "--folds_from folds.csv is a local path",
    ),
    "a key of this machine": (
        [*FILES, *HASH, *PORTABLE, "localhost:{open}"],
        "--identifiers hash on PortableRunner needs --identifier_key_file",
    ),
    "no job service": (
        [*FILES, "--runner", "PortableRunner"],
        "--runner PortableRunner needs --job_endpoint (for instance localhost:8099)",
    ),
    "an address without a port": (
        [*FILES, *PORTABLE, "localhost"],
        "--job_endpoint localhost: want an address such as host:8099",
    ),
    "a port that is none": (
        [*FILES, *PORTABLE, "localhost:http"],
        "--job_endpoint localhost:http: want an address such as host:8099",
    ),
    "no Flink": (
        [*FILES, "--runner", "FlinkRunner"],
        "--runner FlinkRunner needs --flink_master (for instance http://jobmanager:8081)",
    ),
    "no Spark": (
        [*FILES, "--runner", "spark"],
        "--runner SparkRunner needs --spark_master_url (for instance spark://master:7077)",
    ),
    "no Prism": (
        [*FILES, "--runner", "PrismRunner"],
        "--runner PrismRunner needs --prism_location (for instance /usr/local/bin/prism)",
    ),
    "Spark without its scheme": (
        [*FILES, "--runner", "spark", "--spark_master_url", "localhost:{open}"],
        "--spark_master_url localhost:{open}: want spark://host:7077, k8s://https://host:443, "
        "yarn, local[4] or local-cluster[2,1,1024]",
    ),
    "one of two Spark masters without a port": (
        [*FILES, "--runner", "spark", "--spark_master_url", "spark://localhost:{open},localhost"],
        "--spark_master_url spark://localhost:{open},localhost: want spark://host:7077",
    ),
    "a mistyped number of threads": (
        [*FILES, "--runner", "spark", "--spark_master_url", "local[many]"],
        "--spark_master_url local[many]: want spark://host:7077",
    ),
    "Spark's threads for Flink": (
        [*FILES, "--runner", "flink", "--flink_master", "local[2]"],
        "--flink_master local[2]: want an address such as http://jobmanager:8081, or [local]",
    ),
    "an uber jar for nobody": (
        [*FILES, "--runner", "spark", "--spark_submit_uber_jar"],
        "--runner SparkRunner needs --spark_rest_url (for instance http://master:6066)",
    ),
    "a Prism that is not there": (
        [*FILES, "--runner", "PrismRunner", "--prism_location", "/none/prism"],
        "--prism_location /none/prism: there is no such file",
    ),
    "a mistyped option of ours": (
        [*FILES, "--image-size", "256"],
        "unknown option --image-size (did you mean --image_size?): neither the pipeline nor "
        "--runner local knows it",
    ),
    "an option of another runner": (
        [*FILES, "--num_workers", "3"],
        "unknown option --num_workers (did you mean --workers?)",
    ),
    "a word too many": ([*FILES, "brain"], "unknown option brain: neither the pipeline"),
    "a mistyped option of the runner": (
        [*URLS, *CLOUD, "--max_num_worker", "3"],
        "unknown option --max_num_worker (did you mean --max_num_workers?): neither the pipeline "
        "nor DataflowRunner knows it",
    ),
    "a mistyped option of ours, elsewhere": (
        [*URLS, *CLOUD, "--window=brain"],
        "unknown option --window (did you mean --windows?)",
    ),
    "a value of the wrong type": (
        [*URLS, *CLOUD, "--num_workers", "many"],
        "--num_workers: invalid int value: 'many'",
    ),
    "an unknown option of a job service": (
        [*FILES, *PORTABLE, "localhost:{open}", "--paralelism", "2"],
        "unknown option --paralelism",
    ),
}
UNREACHABLE = {
    "job service": [*PORTABLE, "localhost:{closed}"],
    "Flink by a URL": ["--runner", "FlinkRunner", "--flink_master", "http://localhost:{closed}"],
    "Flink by an address": ["--runner", "FlinkRunner", "--flink_master", "localhost:{closed}"],
    "Spark": ["--runner", "SparkRunner", "--spark_master_url", "spark://localhost:{closed}"],
    "two Spark masters": [
        *("--runner", "SparkRunner", "--spark_master_url"),
        "spark://localhost:{closed},127.0.0.1:{closed}",
    ],
    "Kubernetes": ["--runner", "spark", "--spark_master_url", "k8s://https://localhost:{closed}"],
    "an unknown host": [*PORTABLE, "no-such-host.invalid:8099"],
}


@pytest.fixture
def ports() -> Iterator[dict[str, int]]:
    """A port at which nobody answers what they are asked, and one where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {"open": server.getsockname()[1], "closed": free_port()}


@pytest.fixture(autouse=True)
def no_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Prism and without a key, in whose folder there is input."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ICH_IDENTIFIER_KEY", "k" * 32)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(b"no DICOM")


def complain(argv: list[str], ports: dict[str, int], capsys: pytest.CaptureFixture[str]) -> str:
    """The only line of a call that fails, with its exit code before it."""
    began = time.monotonic()
    code = main([argument.format(**ports) for argument in argv])
    assert time.monotonic() - began < 20
    out, error = capsys.readouterr()
    assert out == ""
    (line,) = error.splitlines()
    return f"{code} {line}"


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_ends_at_once_with_one_line(
    case: str, ports: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    argv, message = WRONG[case]
    line = complain(argv, ports, capsys)
    assert line.startswith("2 beam_pipeline: error: ")
    assert message.format(**ports) in line
    assert not Path("out").exists()


@pytest.mark.parametrize("case", UNREACHABLE)
def test_what_cannot_be_reached_is_named(
    case: str, ports: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    line = complain([*FILES, *UNREACHABLE[case]], ports, capsys)
    url = UNREACHABLE[case][-1].format(**ports)
    assert line.startswith("1 beam_pipeline: error: --")
    assert f"{url} cannot be reached: " in line
    assert not Path("out").exists()


@pytest.mark.parametrize("name", ["local", "LOCAL", "DirectRunner", "direct", "directrunner"])
def test_names_of_the_local_engine(name: str) -> None:
    assert choose_runner(name) is LOCAL


@pytest.mark.parametrize("name", ["FlinkRunner", "flink", "flinkrunner", "FLINK"])
def test_names_of_another_runner(name: str) -> None:
    assert choose_runner(name) is RUNNERS["FlinkRunner"]


def test_paths_of_the_local_engine_stay_as_they_are() -> None:
    options, launch = parse_options([*FILES, "--labels", "labels.csv"])
    assert (options.files.input, options.files.labels, options.files.output) == (
        "in",
        "labels.csv",
        "out",
    )
    assert (launch.runner, launch.arguments) == (LOCAL, ())


def test_workers_elsewhere_are_given_absolute_paths(ports: dict[str, int], tmp_path: Path) -> None:
    endpoint = f"localhost:{ports['open']}"
    argv = ["--input", "file://in", "--output", "s3://b/out", "--labels", "../labels.csv"]
    options, launch = parse_options([*argv, *PORTABLE, endpoint])
    assert options.files.input == str(tmp_path / "in")
    assert options.files.output == "s3://b/out"
    assert options.files.labels == str(tmp_path / ".." / "labels.csv")
    assert launch.arguments == ("--job_endpoint", endpoint)


def test_prism_is_looked_for(tmp_path: Path) -> None:
    prism = tmp_path / "prism"
    prism.write_text("#!/bin/sh\n")
    prism.chmod(0o755)
    _, launch = parse_options([*FILES, "--runner", "prism"])
    assert launch.arguments == ("--prism_location", str(prism), "--environment_type", "LOOPBACK")


@pytest.fixture
def java(tmp_path: Path) -> None:
    """A machine with Java, or what looks like it."""
    (tmp_path / "java").write_text("#!/bin/sh\n")
    (tmp_path / "java").chmod(0o755)


@pytest.mark.parametrize(
    "master",
    [
        *("local", "local[4]", "local[*]", "local[4,2]", "local[*,2]", "local-cluster[2,1,1024]"),
        *("yarn", "spark://localhost:{open}", "spark://localhost:{closed},localhost:{open}"),
        *("k8s://https://localhost:{open}", "k8s://localhost:{open}"),
    ],
)
def test_every_form_of_spark_masters_is_taken(
    master: str, ports: dict[str, int], java: None
) -> None:
    given = ("--spark_master_url", master.format(**ports))
    _, launch = parse_options([*FILES, "--runner", "spark", *given])
    here = ("--environment_type", "LOOPBACK") if master.startswith("local") else ()
    assert launch.arguments == (*given, *here)
    _, launch = parse_options([*FILES, "--runner", "spark", *given, "--environment_type=DOCKER"])
    assert launch.arguments == (*given, "--environment_type=DOCKER")


@pytest.mark.parametrize("master", ["[local]", "[auto]"])
def test_flink_on_this_machine_needs_no_containers(master: str, java: None) -> None:
    given = ("--flink_master", master)
    _, launch = parse_options([*FILES, "--runner", "flink", *given])
    assert launch.arguments == (*given, "--environment_type", "LOOPBACK")


def test_an_uber_jar_needs_neither_java_nor_a_master(ports: dict[str, int]) -> None:
    given = ("--spark_submit_uber_jar", "--spark_rest_url", f"http://localhost:{ports['open']}")
    _, launch = parse_options([*FILES, "--runner", "spark", *given])
    assert launch.arguments == given


def test_flink_and_spark_need_java(ports: dict[str, int]) -> None:
    flink = ["--runner", "FlinkRunner", "--flink_master", f"localhost:{ports['open']}"]
    with pytest.raises(UsageError, match="needs Java; install it, or give the address"):
        parse_options([*FILES, *flink])


def test_a_thread_of_dataflow_has_its_own_decoder() -> None:
    _, launch = parse_options([*URLS, *CLOUD])
    assert launch.arguments[-2:] == ("--number_of_worker_harness_threads", "1")
    _, launch = parse_options([*URLS, *CLOUD, "--number_of_worker_harness_threads=4"])
    assert launch.arguments[-1] == "--number_of_worker_harness_threads=4"


def test_help_names_the_runners(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in RUNNERS)


def test_beams_options_are_known(ports: dict[str, int]) -> None:
    """Options that people give to these runners, in every form that argparse takes."""
    extra = ["--parallelism=4", "--environment_type", "PROCESS", "--experiments", "a"]
    endpoint = f"localhost:{ports['open']}"
    _, launch = parse_options([*FILES, "--runner", "flink", "--job_endpoint", endpoint, *extra])
    assert launch.arguments == ("--job_endpoint", endpoint, *extra)
