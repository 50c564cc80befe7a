"""Object stores that fail: a run goes on or says so, and no file is rejected for it.

The pipeline runs as users run it, on servers of S3 and of Google Cloud Storage behind a proxy that
fails requests. A part of the table of stages and faults is tested, with each stage and each fault
in it; --full tests the whole table, for a quarter of an hour.
"""

import dataclasses
import gzip
import hashlib
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import JPEG2000Lossless

from beam_pipeline.card.card import MOST_EXAMPLES, SAMPLED
from headct.stores import InputFiles
from tests.beam_pipeline.dicom_files import make_dicom
from tests.headct.faulty_proxy import (
    Fault,
    FaultyProxy,
    Request,
    Rule,
    Stage,
    Traffic,
    no_latency,
)
from tests.headct.object_stores import S3_CREDENTIALS, ObjectServer, serve_gcs, serve_s3
from tests.headct.ports import free_port
from tests.headct.scripted_store import s3_at
from tests.processes import run_python

pytestmark = pytest.mark.system

# Seconds. The next byte of an answer is waited for during a quarter of them, and 1 s at least.
PATIENCE, SHORT_PATIENCE = 4, 1
LONGEST_RUN = 240  # seconds, after which a run counts as one that never ends
SETTINGS = ("--image_size=32", "--folds=2", "--examples_per_shard=8", "--workers=2")
SETTINGS += ("--max_reject_fraction=0.9",)

# The pipeline, and how it ended

_HOST = """
import json, os, sys, traceback
from beam_pipeline.__main__ import main
answers = os.fdopen(int(sys.argv[1]), "w", buffering=1)
for line in sys.stdin:
    try:
        print(main(json.loads(line)), file=answers)
    except Exception:
        traceback.print_exc()
        print(1, file=answers)
"""
_TRYING_AGAIN = re.compile(r"(s3|gs)://[a-z-]+: .+; trying again for up to \d+ s\.")


@dataclass(frozen=True)
class Ended:
    """A run's exit code, and what it wrote to standard error."""

    code: int
    errors: str

    def told(self) -> list[str]:
        """The lines of standard error but for those that say that a request is tried again."""
        return [line for line in self.errors.splitlines() if not _TRYING_AGAIN.fullmatch(line)]

    def assert_done(self) -> None:
        assert (self.code, self.told()) == (0, []), self.errors

    def assert_store_failed(self, store: str) -> None:
        """It ended with one line that names the store."""
        assert self.code == 5, self.errors
        assert len(self.told()) == 1, self.errors
        (line,) = self.told()
        assert re.match(rf"beam_pipeline: error: {store}(/labels.csv)?: ", line)
        assert line.endswith("; the same command resumes")


class Pipeline:
    """Runs the pipeline's commands, one after the other, in a process that loads Beam only once."""

    def __init__(self, errors: Path, environment: dict[str, str]) -> None:
        self._errors = errors
        answers, told = os.pipe()
        with errors.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _HOST, str(told)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=file,
                pass_fds=[told],
                env=os.environ | environment,
                text=True,
            )
        os.close(told)
        self._answers = os.fdopen(answers)

    def run(self, arguments: list[str]) -> Ended:
        """Run `python -m beam_pipeline` with arguments."""
        before = self._errors.stat().st_size
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._answers], [], [], LONGEST_RUN)
        errors = self._errors.read_bytes()[before:].decode()
        assert ready, f"no end after {LONGEST_RUN} s: {errors}"
        return Ended(int(self._answers.readline()), errors)

    def close(self) -> None:
        """End the process."""
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._answers.close()


@dataclass(frozen=True)
class Directory:
    """A complete shard directory.

    Attributes:
        files: SHA-256 of each file but those that hold a date.
        digest: of the manifest.
        files_seen: how many files the input had.
        rejects: source and reason of each file that was rejected.
    """

    files: dict[str, str]
    digest: str
    files_seen: int
    rejects: dict[str, str]

    @classmethod
    def of(cls, contents: dict[str, bytes]) -> "Directory":
        """What a folder holds; its counts must add up."""
        manifest = json.loads(contents["manifest.json"])
        counts, rejects = manifest["counts"], read_rejects(contents)
        assert counts["files_seen"] == counts["written"] + counts["rejected"]
        assert counts["rejected"] == len(rejects)
        files = {
            name: hashlib.sha256(content).hexdigest()
            for name, content in sorted(contents.items())
            if name not in ("manifest.json", "preprocess.toml", "report.html")
        }
        return cls(files, manifest["digest"], counts["files_seen"], rejects)


def read_rejects(contents: dict[str, bytes]) -> dict[str, str]:
    """Source and reason of each row of rejects.jsonl; none if a run did not come that far."""
    rows = map(json.loads, contents.get("rejects.jsonl", b"").splitlines())
    return {row["source"]: row["reason"] for row in rows}


# The input


@pytest.fixture(scope="module")
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`in/`: thirty slices of several patients, real if there are any; and `labels.csv`.

    Two slices have the same pixels, one has a name that is escaped in URLs, and two files cannot
    be used whatever the labels say.
    """
    folder = tmp_path_factory.mktemp("data")
    try:
        slices, labels = real_slices(request.getfixturevalue("real_data") / "rsna")
    except pytest.skip.Exception:
        make = tmp_path_factory.mktemp("slices")
        slices, labels = synthetic_slices(make, request.getfixturevalue("write_slice"))
    labeled = [name for name in sorted(slices) if f"\n{name}_" in labels]
    twin, odd = labeled[0], labeled[1]
    labels += relabel(labels, twin, "ID_twin") + relabel(labels, odd, "ID_ä+1%20#")
    files = slices | {"ID_twin": slices[twin], "sub folder/ID_ä+1%20#": slices.pop(odd)}
    files |= {"text": b"not DICOM", "cut": slices[twin][: len(slices[twin]) // 2]}
    for name, content in files.items():
        path = folder / "in" / f"{name}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "labels.csv").write_text(labels)
    return folder


def real_slices(folder: Path) -> tuple[dict[str, bytes], str]:
    found = sorted((folder / "slices").iterdir())[::9]
    return {path.stem: path.read_bytes() for path in found}, (folder / "labels.csv").read_text()


def synthetic_slices(
    folder: Path, write_slice: Callable[..., Path]
) -> tuple[dict[str, bytes], str]:
    slices, rows = {}, ["ID,Label"]
    for number in range(30):
        name = f"ID_{number}"
        pixels = np.random.default_rng(number).integers(0, 1200, (200, 200)).astype(np.int16)
        path = write_slice(folder / f"{name}.dcm", pixels, PatientID=f"p{number // 5}")
        slices[name] = path.read_bytes()
        rows.append(f"{name}_any,{number % 3 // 2}")
    return slices, "\n".join(rows) + "\n"


def relabel(labels: str, name: str, new: str) -> str:
    """The rows of an image, for another."""
    rows = [row for row in labels.splitlines() if row.startswith(f"{name}_")]
    return "".join(row.replace(name, new) + "\n" for row in rows)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# Stores and their runs


def run_on_disk(pipeline: Pipeline, folder: Path, source: str) -> Directory:
    """What the pipeline makes of a folder beside `labels.csv`."""
    where = [f"--input={folder / source}", f"--labels={folder}/labels.csv"]
    output = folder / f"from {source}"
    pipeline.run([*where, f"--output={output}", *SETTINGS]).assert_done()
    return Directory.of(files_of(output))


def upload(server: ObjectServer, folder: Path, source: str) -> None:
    files = files_of(folder / source)
    server.put({f"{source}/{name}": content for name, content in files.items()})


@dataclass(frozen=True)
class Cloud:
    """An object store that holds the input, what stands before it, and the pipeline."""

    server: ObjectServer
    proxy: FaultyProxy
    pipeline: Pipeline

    def run(self, output: str, patience: int = PATIENCE, source: str = "in") -> Ended:
        """Run the pipeline from a folder of the bucket to another one."""
        url = self.server.url
        where = [
            f"--input={url}/{source}",
            f"--labels={url}/labels.csv",
            f"--output={url}/{output}",
        ]
        return self.pipeline.run([*where, *SETTINGS, f"--storage_patience={patience}"])

    def directory(self, output: str) -> Directory:
        return Directory.of(self.server.get(output))


@pytest.fixture(scope="module")
def proxies() -> Iterator[tuple[FaultyProxy, FaultyProxy]]:
    """Before S3 and Google Cloud Storage."""
    with FaultyProxy() as s3, FaultyProxy() as gcs:
        yield s3, gcs


@pytest.fixture(scope="module")
def pipeline(
    proxies: tuple[FaultyProxy, FaultyProxy], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    """With the environment that leads to the proxies."""
    s3, gcs = (proxy.address for proxy in proxies)
    environment = S3_CREDENTIALS | {"AWS_ENDPOINT_URL": s3, "STORAGE_EMULATOR_HOST": gcs}
    started = Pipeline(tmp_path_factory.mktemp("pipeline") / "errors", environment)
    yield started
    started.close()


@pytest.fixture(scope="module")
def s3(proxies: tuple[FaultyProxy, FaultyProxy], pipeline: Pipeline, data: Path) -> Iterator[Cloud]:
    with serve_s3(proxies[0]) as server:
        upload(server, data, "in")
        server.put({"labels.csv": (data / "labels.csv").read_bytes()})
        yield Cloud(server, proxies[0], pipeline)


@pytest.fixture(scope="module")
def gcs(
    proxies: tuple[FaultyProxy, FaultyProxy], pipeline: Pipeline, data: Path
) -> Iterator[Cloud]:
    with serve_gcs(proxies[1]) as server:
        upload(server, data, "in")
        server.put({"labels.csv": (data / "labels.csv").read_bytes()})
        yield Cloud(server, proxies[1], pipeline)


@pytest.fixture(scope="module")
def undisturbed(s3: Cloud) -> Directory:
    """What a run leaves where nothing fails."""
    s3.run("undisturbed").assert_done()
    return s3.directory("undisturbed")


@pytest.fixture(scope="module")
def undisturbed_gcs(gcs: Cloud) -> Directory:
    gcs.run("undisturbed").assert_done()
    return gcs.directory("undisturbed")


# Stages and faults


def is_listing(request: Request) -> bool:
    return request.method == "GET" and "list-type=2" in request.query


def is_header(request: Request) -> bool:
    return request.path.endswith(".dcm") and request.start == 0


def is_fingerprint(request: Request) -> bool:
    return request.path.endswith(".dcm") and bool(request.start)


def is_key(request: Request) -> bool:
    """Whether it asks for what ids are hashed with: once per process, however many files."""
    return is_header(request) and request.end == (1 << 18) - 1


def is_labels(request: Request) -> bool:
    return request.path.endswith("/labels.csv")


def is_shard_data(request: Request) -> bool:
    return request.path.endswith(".dcm") and request.start is None


def is_shard_upload(request: Request) -> bool:
    return request.method == "PUT" and "/ich-" in request.path and not is_table(request)


def is_manifest(request: Request) -> bool:
    return request.method == "PUT" and request.path.endswith("/manifest.json")


def is_table(request: Request) -> bool:
    return request.method in ("GET", "PUT") and "/.unfinished/" in request.path


def is_look_up(request: Request) -> bool:
    return request.method == "HEAD"


def is_deletion(request: Request) -> bool:
    return request.method == "DELETE" or request.query == "delete"


def is_any(request: Request) -> bool:
    return True


STAGES: dict[str, tuple[Stage, Stage | None]] = {
    "listing": (is_listing, None),
    "headers": (is_header, None),
    "fingerprints": (is_fingerprint, None),
    "labels": (is_labels, None),
    "shard data": (is_shard_data, None),
    "shard upload": (is_shard_upload, None),
    "manifest": (is_manifest, None),
    "tables": (is_table, None),
    "look-ups": (is_look_up, None),
    "clean-up": (is_deletion, is_manifest),
    "last look": (is_look_up, is_manifest),
    "anything": (is_any, None),
}
# Faults that end while patience lasts, and those that do not.
PASSING: dict[str, dict[str, Any]] = {
    "503 twice": {"fault": Fault.UNAVAILABLE, "first": 2},
    "503 for 2 s": {"fault": Fault.UNAVAILABLE, "seconds": 2},
    "one in five 503": {"fault": Fault.UNAVAILABLE, "every": 5},
    "stall": {"fault": Fault.STALL, "first": 1},
    "cut": {"fault": Fault.CUT, "first": 1},
    "reset": {"fault": Fault.RESET, "first": 1},
}
LASTING: dict[str, dict[str, Any]] = {fault.value: {"fault": fault} for fault in Fault}

SOME_PASSING = [
    ("anything", "one in five 503"),
    ("headers", "503 for 2 s"),
    ("shard data", "stall"),
    ("shard data", "cut"),
    ("shard upload", "reset"),
    ("manifest", "cut"),
]
# And those of Google Cloud Storage below, of headers and of data.
SOME_LASTING = [
    ("listing", "503"),
    ("fingerprints", "cut"),
    ("labels", "403"),
    ("shard upload", "403"),
    ("tables", "reset"),
    ("clean-up", "403"),
    ("last look", "503"),
]


def cases(some: list[tuple[str, str]], faults: dict[str, Any]) -> Any:
    """The whole table, of which some run without --full, too."""
    every = [
        pytest.param(*case, marks=[] if case in some else [pytest.mark.full])
        for case in itertools.product(STAGES, faults)
    ]
    return pytest.mark.parametrize(("stage", "fault"), every)


def rule_of(stage: str, settings: dict[str, Any]) -> Rule:
    fails, after = STAGES[stage]
    return Rule(fails, after=after, **settings)


@pytest.fixture
def output(request: pytest.FixtureRequest) -> str:
    """A folder of the bucket that no other test has."""
    return re.sub(r"\W+", "-", request.node.name).strip("-")


def assert_fault_changes_nothing(
    cloud: Cloud, rule: Rule, output: str, undisturbed: Directory
) -> None:
    with cloud.proxy.failing(rule):
        ended = cloud.run(output)
    assert rule.struck
    ended.assert_done()
    assert cloud.directory(output) == undisturbed


def assert_fault_stops_and_run_resumes(
    cloud: Cloud, rule: Rule, output: str, undisturbed: Directory
) -> None:
    with cloud.proxy.failing(rule):
        ended = cloud.run(output, SHORT_PATIENCE)
    assert rule.struck
    ended.assert_store_failed(cloud.server.url)
    assert read_rejects(cloud.server.get(output)).items() <= undisturbed.rejects.items()
    cloud.run(output).assert_done()
    assert cloud.directory(output) == undisturbed


@cases(SOME_PASSING, PASSING)
def test_a_fault_that_passes_changes_nothing(
    s3: Cloud, undisturbed: Directory, output: str, stage: str, fault: str
) -> None:
    assert_fault_changes_nothing(s3, rule_of(stage, PASSING[fault]), output, undisturbed)


@cases(SOME_LASTING, LASTING)
def test_a_fault_that_lasts_ends_the_run_and_the_same_command_resumes(
    s3: Cloud, undisturbed: Directory, output: str, stage: str, fault: str
) -> None:
    assert_fault_stops_and_run_resumes(s3, rule_of(stage, LASTING[fault]), output, undisturbed)


@pytest.mark.parametrize(("stage", "fault"), [("anything", "one in five 503")])
def test_a_fault_of_google_cloud_storage_that_passes_changes_nothing(
    gcs: Cloud, undisturbed_gcs: Directory, output: str, stage: str, fault: str
) -> None:
    assert_fault_changes_nothing(gcs, rule_of(stage, PASSING[fault]), output, undisturbed_gcs)


@pytest.mark.parametrize(("stage", "fault"), [("headers", "403"), ("shard data", "stall")])
def test_a_fault_of_google_cloud_storage_that_lasts_ends_the_run(
    gcs: Cloud, undisturbed_gcs: Directory, output: str, stage: str, fault: str
) -> None:
    rule = rule_of(stage, LASTING[fault])
    assert_fault_stops_and_run_resumes(gcs, rule, output, undisturbed_gcs)


def test_a_store_that_is_down_for_a_while_changes_nothing(
    s3: Cloud, undisturbed: Directory, output: str
) -> None:
    with s3.proxy.before(is_shard_data, lambda: s3.proxy.go_down(2)):
        ended = s3.run(output)
    ended.assert_done()
    assert s3.directory(output) == undisturbed


def test_a_store_that_stays_down_ends_the_run(
    s3: Cloud, undisturbed: Directory, output: str
) -> None:
    with s3.proxy.before(is_shard_data, s3.proxy.go_down):
        ended = s3.run(output, SHORT_PATIENCE)
    s3.proxy.listen()
    ended.assert_store_failed("s3://data")
    s3.run(output).assert_done()
    assert s3.directory(output) == undisturbed


# Stores where nothing fails


@pytest.fixture(scope="module")
def from_disk(pipeline: Pipeline, data: Path) -> Directory:
    return run_on_disk(pipeline, data, "in")


def test_s3_gives_the_bytes_of_a_disk(undisturbed: Directory, from_disk: Directory) -> None:
    assert undisturbed == from_disk


def test_google_cloud_storage_gives_the_bytes_of_a_disk(
    undisturbed_gcs: Directory, from_disk: Directory
) -> None:
    assert undisturbed_gcs == from_disk


def test_files_that_end_early_are_rejected_as_from_a_disk(
    s3: Cloud, data: Path, output: str
) -> None:
    compressed = make_dicom(syntax=JPEG2000Lossless, frame=bytes(100))
    pixels = compressed.index(b"\xe0\x7f\x10\x00OB") + 12
    native = next((data / "in").glob("ID_*")).read_bytes()
    files = {"empty": b"", "one byte": b"D", "cut where a frame begins": compressed[:pixels]}
    files |= {"cut in the header": native[:300], "cut in a frame": compressed[: pixels + 20]}
    for name, content in files.items():
        (data / "short").mkdir(exist_ok=True)
        (data / "short" / f"{name}.dcm").write_bytes(content)
    for path in sorted((data / "in").glob("ID_*"))[:6]:
        shutil.copy(path, data / "short")
    upload(s3.server, data, "short")
    expected = run_on_disk(s3.pipeline, data, "short")
    assert {f"{name}.dcm" for name in files} <= expected.rejects.keys()
    s3.run(output, source="short").assert_done()
    assert s3.directory(output) == expected


@dataclass(frozen=True)
class Plain:
    """An undisturbed run over slices only, no two alike, in the folder `plain`.

    Attributes:
        contents: of the folder, by the keys behind it.
        traffic: of the run, in which a header takes as long as from another continent.
        written: what the run left.
    """

    contents: dict[str, bytes]
    traffic: Traffic
    written: Directory


@pytest.fixture(scope="module")
def plain(s3: Cloud, data: Path) -> Plain:
    contents = {
        path.name: path.read_bytes()
        for path in (data / "in").glob("ID_*")
        if "twin" not in path.name
    }
    s3.server.put({f"plain/{name}": content for name, content in contents.items()})
    s3.proxy.traffic = Traffic()
    s3.proxy.latency = lambda request: 0.25 * is_header(request)
    s3.run("from-plain", source="plain").assert_done()
    s3.proxy.latency = no_latency
    return Plain(contents, s3.proxy.traffic, s3.directory("from-plain"))


def test_a_slice_costs_three_requests(plain: Plain) -> None:
    files = len(plain.contents)
    requests, sent = plain.traffic.of(
        lambda request: (is_header(request) or is_fingerprint(request)) and not is_key(request)
    )
    assert requests <= 2 * files
    assert sent <= (48 << 10) * files
    # Reading headers, and joining labels where some fit no name, take the key of the input.
    assert plain.traffic.of(is_key)[0] <= 2
    requests, _ = plain.traffic.of(lambda request: request.path.endswith(".dcm"))
    # The data card reads a few dozen files once more, however many there are.
    assert requests <= 3.3 * files + MOST_EXAMPLES + SAMPLED


def test_requests_for_many_headers_are_in_flight_at_once(plain: Plain) -> None:
    assert plain.traffic.peak >= 0.8 * len(plain.contents)


@pytest.mark.parametrize("stage", ["headers", "shard data"])
def test_only_a_file_that_vanishes_is_rejected(
    s3: Cloud, plain: Plain, output: str, stage: str
) -> None:
    victim = max(plain.contents.keys() - plain.written.rejects.keys())
    with s3.proxy.before(STAGES[stage][0], lambda: s3.server.delete(f"plain/{victim}")):
        ended = s3.run(output, source="plain")
    s3.server.put({f"plain/{victim}": plain.contents[victim]})
    ended.assert_done()
    written = s3.directory(output)
    assert written.files_seen == len(plain.contents)
    assert written.rejects == plain.written.rejects | {victim: "vanished"}


@pytest.mark.parametrize("stage", ["headers", "shard data"])
def test_only_an_object_that_is_kept_back_is_rejected(
    s3: Cloud, plain: Plain, output: str, stage: str
) -> None:
    victim = max(plain.contents.keys() - plain.written.rejects.keys())
    first = is_shard_data if stage == "shard data" else None
    denied = Rule(lambda asked: asked.path.endswith(victim), Fault.DENIED, after=first)
    with s3.proxy.failing(denied):
        ended = s3.run(output, source="plain")
    ended.assert_done()
    assert s3.directory(output).rejects == plain.written.rejects | {victim: "object_unavailable"}


def test_an_object_with_an_odd_key_is_rejected(s3: Cloud, plain: Plain, output: str) -> None:
    odd = ("a//b.dcm", "c.dcm/")
    for method in ("PUT", "DELETE"):
        for key in odd:
            address = f"{s3.proxy.address}/data/plain/{key}"
            request = urllib.request.Request(address, b"slice", method=method)
            urllib.request.urlopen(request, timeout=10).close()
        if method == "PUT":
            ended = s3.run(output, source="plain")
    ended.assert_done()
    rejects = plain.written.rejects | dict.fromkeys(odd, "unusable_key")
    assert s3.directory(output).rejects == rejects


def test_odd_objects_of_google_cloud_storage_are_rejected(
    gcs: Cloud, plain: Plain, output: str
) -> None:
    gcs.server.put({f"odd/{name}": content for name, content in plain.contents.items()})
    address = f"{gcs.proxy.address}/upload/storage/v1/b/data-bucket/o?uploadType=multipart"
    odd = dict.fromkeys(("a//b.dcm", r"a\tb.dcm", "c.dcm/"), "unusable_key")
    for key in (*odd, "zip.dcm"):
        name = f"odd/{key}".replace(r"\t", "\t")
        encoding = "gzip" if key == "zip.dcm" else ""
        described = json.dumps({"name": name, "contentEncoding": encoding}).encode()
        content = gzip.compress(next(iter(plain.contents.values())))
        head = b"\r\n--x\r\nContent-Type: application/json\r\n\r\n"
        body = head + described + head + content + b"\r\n--x--"
        headers = {"Content-Type": "multipart/related; boundary=x"}
        request = urllib.request.Request(address, body, headers)
        urllib.request.urlopen(request, timeout=10).close()
    gcs.run(output, source="odd").assert_done()
    odd["zip.dcm"] = "object_unavailable"
    assert gcs.directory(output).rejects == plain.written.rejects | odd


def test_a_bucket_that_is_not_there_is_named(s3: Cloud, output: str) -> None:
    nowhere = dataclasses.replace(s3, server=ObjectServer(None, "s3://no-such-bucket"))
    ended = nowhere.run(output)
    assert (ended.code, ended.told()) == (
        5,
        [
            "beam_pipeline: error: s3://no-such-bucket: there is no such bucket; check its name "
            "and the endpoint"
        ],
    )


def test_a_store_that_refuses_connections_is_named(tmp_path: Path) -> None:
    environment = S3_CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
    where = ["--input=s3://data/in", f"--output={tmp_path / 'out'}", "--storage_patience=1"]
    ended = run_python("-m", "beam_pipeline", *where, code=5, **environment)
    Ended(ended.returncode, ended.stderr).assert_store_failed("s3://data")


# Long listings

MANY = [f"many/{folder:03d}/{number}.dcm" for folder in range(1000) for number in range(10)]


@pytest.fixture(scope="module")
def many_files(s3: Cloud) -> Iterator[str]:
    """The URL of 10,000 files in 1,000 folders, for this process."""
    if s3.server.is_slow:
        pytest.skip("moto lists 10,000 objects too slowly; gofakes3 needs Go")
    s3.server.put(dict.fromkeys(MANY, b"slice"))
    with s3_at(s3.proxy.address):
        yield "s3://data/many"


def list_all(url: str) -> list[str]:
    return [info.path for info in InputFiles.parse(url, PATIENCE).list()]


def test_ten_thousand_files_are_listed_with_a_dozen_requests(s3: Cloud, many_files: str) -> None:
    s3.proxy.traffic = Traffic()
    found = list_all(many_files)
    assert found == [key.removeprefix("many/") for key in MANY]
    assert len(s3.proxy.traffic.requests) <= 12


@pytest.mark.parametrize("fault", ["one in five 503", "cut", "reset"])
def test_a_listing_that_fails_in_the_middle_goes_on_there(
    s3: Cloud, many_files: str, fault: str
) -> None:
    with s3.proxy.failing(rule_of("listing", PASSING[fault])) as rule:
        found = list_all(many_files)
    assert rule.struck > 1
    assert found == [key.removeprefix("many/") for key in MANY]
