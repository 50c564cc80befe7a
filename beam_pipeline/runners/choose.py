"""Runners of the pipeline, and checks of a runner's options before a run starts."""

import argparse
import re
import shutil
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from beam_pipeline.errors import RunnerError
from headct.declarations import OneLineParser, did_you_mean, named_in
from headct.errors import UsageError
from headct.stores import is_local

_ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class Runner:
    """A Beam runner.

    Attributes:
        name: value of `--runner`.
        required: flags that the runner needs, with an example per flag; the address of a job
            service replaces the flags.
        shares_files: whether workers may see local paths of the machine that starts a run.
    """

    name: str
    required: tuple[tuple[str, str], ...] = ()
    shares_files: bool = True

    @property
    def is_local(self) -> bool:
        """Whether the run uses only processes of this command."""
        return self is LOCAL


@dataclass(frozen=True)
class ChosenRunner:
    """Runner, and its options; without effect on the output.

    Attributes:
        runner: the runner.
        arguments: Beam's options for the runner.
        cancel_on_interrupt: whether Ctrl-C cancels the job; otherwise the job continues.
    """

    runner: Runner
    arguments: tuple[str, ...] = ()
    cancel_on_interrupt: bool = False


LOCAL = Runner("local")
DATAFLOW = Runner(
    "DataflowRunner",
    (
        ("project", "my-project"),
        ("region", "europe-west1"),
        ("temp_location", "gs://my-bucket/temp"),
    ),
    shares_files=False,
)
_RUNNERS = (
    LOCAL,
    Runner("PrismRunner", (("prism_location", "/usr/local/bin/prism"),)),
    Runner("FlinkRunner", (("flink_master", "http://jobmanager:8081"),)),
    Runner("SparkRunner", (("spark_master_url", "spark://master:7077"),)),
    Runner("PortableRunner", (("job_endpoint", "localhost:8099"),)),
    DATAFLOW,
)
RUNNERS = {runner.name: runner for runner in _RUNNERS}
# Runners with a job server in Java, and their names in the job server's options.
ENGINES = {"FlinkRunner": "flink", "SparkRunner": "spark"}
_MASTERS = {"FlinkRunner": "flink_master", "SparkRunner": "spark_master_url"}
# Beam's DirectRunner looks for a program on the network, or else uses only one process.
_ALIASES = {"DirectRunner": LOCAL.name}
_REFUSED = {
    "DaskRunner": "it computes some steps twice and drops what a bundle ends with, so that counts "
    "are wrong",
    "InteractiveRunner": "it is for notebooks",
}
_HTTP = r"(?:https?://)?"
# Per option with an address: its scheme, its values for an engine on this machine, and examples.
_ADDRESSES = {
    "job_endpoint": ("", "embed", "an address such as host:8099"),
    "flink_master": (
        _HTTP,
        r"\[(auto|local)\]",
        "an address such as http://jobmanager:8081, or [local]",
    ),
    # https://spark.apache.org/docs/3.5.9/submitting-applications.html#master-urls
    "spark_master_url": (
        r"spark://|k8s://(?:https?://)?",
        r"local(\[(\d+|\*)(\s*,\s*\d+)?\])?|local-cluster\[\s*\d+\s*,\s*\d+\s*,\s*\d+\s*\]",
        "spark://host:7077, k8s://https://host:443, yarn, local[4] or local-cluster[2,1,1024]",
    ),
    "spark_rest_url": (_HTTP, r"(?!)", "an address such as http://master:6066"),
}


def choose_runner(name: str) -> Runner:
    """Return the runner with a name, ignoring case and a trailing `Runner`.

    Raises:
        UsageError: the runner is unknown, or known to fail.
    """
    names = {known.lower(): known for known in (*RUNNERS, *_ALIASES, *_REFUSED)}
    known = names.get(name.lower()) or names.get(f"{name.lower()}runner")
    choices = f"choose from {', '.join(RUNNERS)}"
    if known in _REFUSED:
        raise UsageError(f"--runner {known} is not supported: {_REFUSED[known]}; {choices}")
    if known is None:
        raise UsageError(
            f"there is no --runner {name}{did_you_mean(name, names.values())}; {choices}"
        )
    return RUNNERS[_ALIASES.get(known, known)]


def complete_arguments(runner: Runner, argv: Sequence[str], own: Iterable[str]) -> list[str]:
    """Check a runner's arguments; return them with the options that they imply.

    Args:
        runner: the runner.
        argv: arguments unknown to the pipeline's own parser.
        own: the pipeline's options, for suggestions.

    Raises:
        UsageError: an option is unknown, missing or has an unusable value.
        RunnerError: the runner cannot be reached.
    """
    if runner.is_local:
        if argv:
            raise _unknown(argv[0], own, f"--runner {runner.name}")
        return []
    parser = _beam_parser()
    parsed, unparsed = parser.parse_known_args(list(argv))
    for option in ("job_endpoint",) if parsed.job_endpoint else _ADDRESSES:
        value = getattr(parsed, option)
        if value is not None:
            _check_address(option, value)
    if parsed.prism_location and not Path(parsed.prism_location).is_file():
        raise UsageError(f"--prism_location {parsed.prism_location}: there is no such file")
    unknown = [argument.partition("=")[0] for argument in unparsed if argument.startswith("-")]
    if unknown and parsed.job_endpoint:
        described = _described_options(parsed.job_endpoint)
        unknown = [argument for argument in unknown if argument not in described]
    elif unparsed and not unknown:
        unknown = list(unparsed[:1])
    if unknown:
        given = next(argument for argument in argv if argument.startswith(unknown[0]))
        raise _unknown(given, [*own, *parser._option_string_actions], runner.name)
    implied = _implied(runner, parsed)
    required = () if parsed.job_endpoint else runner.required
    if required and runner.name == "SparkRunner" and parsed.spark_submit_uber_jar:
        required = (("spark_rest_url", "http://master:6066"),)
    missing = [
        f"--{name} (for instance {example})"
        for name, example in required
        if getattr(parsed, name) is None and name not in implied
    ]
    if missing:
        raise UsageError(f"--runner {runner.name} needs {', '.join(missing)}")
    engine = ENGINES.get(runner.name)
    starts_server = engine and not (
        parsed.job_endpoint or getattr(parsed, f"{engine}_submit_uber_jar")
    )
    if starts_server and not shutil.which(parsed.job_server_java_launcher):
        raise UsageError(
            f"--runner {runner.name} starts Beam's job server, which needs Java; install it, or "
            "give the address of a job server with --job_endpoint"
        )
    return [*argv, *(word for name, value in implied.items() for word in (f"--{name}", value))]


def place_path(runner: Runner, option: str, path: str | None) -> str | None:
    """Return a path that workers can open: absolute, since working directories differ.

    Raises:
        UsageError: the path is local, and invisible to the runner's workers.
    """
    if path is None or runner.is_local or not is_local(path):
        return path
    if not runner.shares_files:
        raise UsageError(
            f"--{option} {path} is a local path, which the workers of {runner.name} cannot see; "
            "want a URL such as gs://my-bucket/folder"
        )
    return str(Path(path.removeprefix("file://")).absolute())


def _beam_parser() -> OneLineParser:
    from apache_beam.options import pipeline_options

    parser = OneLineParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for options in pipeline_options.PipelineOptions.__subclasses__():
        if options.__module__ == pipeline_options.__name__:
            options._add_argparse_args(parser)
    # Beam's default addresses are valid: a missing option would go unnoticed.
    parser.set_defaults(**dict.fromkeys(_ADDRESSES))
    return parser


def _check_address(option: str, value: str) -> None:
    """Raise if a value is not an address, or no host answers at the address.

    Raises:
        UsageError: the value is invalid for the option.
        RunnerError: no host of the address can be reached.
    """
    form, here, wanted = _ADDRESSES[option]
    if re.fullmatch(here, value) or (option, value) == ("spark_master_url", "yarn"):
        return
    wrong = UsageError(f"--{option} {value}: want {wanted}")
    scheme = re.match(form, value)
    if scheme is None:
        raise wrong
    default = next(
        (port for port, name in ((80, "http://"), (443, "https://")) if scheme[0].endswith(name)), 0
    )
    hosts = []
    for host in value[scheme.end() :].split(","):  # several masters of Spark, one of them leads
        try:
            parts = urlsplit(f"//{host}")
            hosts.append((parts.hostname or "", parts.port or default))
        except ValueError:  # the port is not a number
            raise wrong from None
    if not all(name and port for name, port in hosts):
        raise wrong
    failures = []
    for address in hosts:
        try:
            socket.create_connection(address, _ANSWER_SECONDS).close()
        except OSError as error:
            silent = isinstance(error, TimeoutError)
            failures.append("no answer" if silent else error.strerror or str(error))
        else:
            return
    raise RunnerError(f"--{option} {value} cannot be reached: {failures[0]}")


def _described_options(endpoint: str) -> set[str]:
    """Return the options that a job service adds to Beam's Python options."""
    import grpc
    from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

    with grpc.insecure_channel(endpoint) as channel:
        service = beam_job_api_pb2_grpc.JobServiceStub(channel)
        request = beam_job_api_pb2.DescribePipelineOptionsRequest()
        try:
            answer = service.DescribePipelineOptions(request, timeout=_ANSWER_SECONDS)
        except grpc.RpcError:  # Beam's own job service describes none
            return set()
        return {f"--{option.name}" for option in answer.options}


def _unknown(option: str, known: Iterable[str], runner: str) -> UsageError:
    who = f"neither the pipeline nor {runner} knows it"
    name = option.partition("=")[0]
    return UsageError(f"{named_in(option)}unknown option {name}{did_you_mean(name, known)}: {who}")


def _implied(runner: Runner, parsed: argparse.Namespace) -> dict[str, str]:
    """Return options implied by other options or by installed software."""
    implied = {}
    prism = shutil.which("prism")
    if runner.name == "PrismRunner" and not parsed.prism_location and prism:
        implied["prism_location"] = prism
    option = _MASTERS.get(runner.name, "")
    master = getattr(parsed, option, None)
    is_here = master and not parsed.job_endpoint and re.fullmatch(_ADDRESSES[option][1], master)
    if (is_here or runner.name == "PrismRunner") and not parsed.environment_type:
        # Workers are threads of this process: containers would need Docker and a package.
        implied["environment_type"] = "LOOPBACK"
    if runner is DATAFLOW and parsed.number_of_worker_harness_threads is None:
        # Dataflow starts 12 threads per worker, and every thread would start decoder processes.
        implied["number_of_worker_harness_threads"] = "1"
    return implied
