"""Shards in local folders, and in buckets on servers of S3 and of Google Cloud Storage here."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headct.errors import StorageError, UsageError
from tests.headct.faulty_proxy import Fault, FaultyProxy, Request, Rule, Traffic, no_latency
from tests.headct.object_stores import S3_CREDENTIALS, ObjectServer, serve_gcs, serve_s3
from tests.headct.scripted_store import Answer, ScriptedStore, forget_stores, refusal, serve
from trainer.__main__ import main
from trainer.data.shard_source import LocalShards, ShardSource, find_shards
from trainer.data.shards import ShardDirectory
from trainer.display import Display
from trainer.options import ShardAccess, TrainOptions
from trainer.runs.training_setup import prepare_training

PATIENCE = 4.0
COPY = """
import sys
from trainer.options import ShardAccess
from trainer.display import Display
from trainer.data.shard_source import find_shards
url, cache = sys.argv[1:]
source = find_shards(url, ShardAccess(shard_cache=cache), Display())
shards = source.open()
source.provide(shards, shards.splits)
"""


@dataclass(frozen=True)
class Cloud:
    """A server, and the proxy before it that counts and fails requests."""

    server: ObjectServer
    proxy: FaultyProxy

    def upload(self, folder: Path, name: str = "ich") -> str:
        """Uploads a folder; its URL."""
        for key in self.server.get(name):
            self.server.delete(f"{name}/{key}")
        self.server.put({f"{name}/{path.name}": path.read_bytes() for path in folder.iterdir()})
        return f"{self.server.url}/{name}"

    def fetched(self) -> Counter[str]:
        """How often each file was asked for since the traffic was last set."""
        return Counter(
            request.path.rpartition("/")[2]
            for request in self.proxy.traffic.requests
            if request.method == "GET"
        )


@pytest.fixture(scope="module")
def s3_cloud() -> Iterator[Cloud]:
    """A server of S3, and the environment that leads to it."""
    with FaultyProxy() as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in (S3_CREDENTIALS | {"AWS_ENDPOINT_URL": proxy.address}).items():
            patch.setenv(name, value)
        with serve_s3(proxy) as server:
            forget_stores()
            yield Cloud(server, proxy)
            forget_stores()


@pytest.fixture(scope="module")
def gs_cloud() -> Iterator[Cloud]:
    """A server of Google Cloud Storage, and the environment that leads to it."""
    with FaultyProxy() as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", proxy.address)
        with serve_gcs(proxy) as server:
            forget_stores()
            yield Cloud(server, proxy)
            forget_stores()


@pytest.fixture(params=["s3", "gs"])
def cloud(request: pytest.FixtureRequest) -> Cloud:
    return renewed(request.getfixturevalue(f"{request.param}_cloud"))


@pytest.fixture
def s3(s3_cloud: Cloud) -> Cloud:
    return renewed(s3_cloud)


def renewed(cloud: Cloud) -> Cloud:
    cloud.proxy.traffic, cloud.proxy.latency = Traffic(), no_latency
    return cloud


def is_shard(request: Request) -> bool:
    return ".tfrecord-" in request.path


def is_any(_: Request) -> bool:
    return True


def source_of(url: str, cache: Path, gb: float = 0.0) -> ShardSource:
    access = ShardAccess(shard_cache=str(cache), shard_cache_gb=gb, storage_patience=PATIENCE)
    return find_shards(url, access, Display())


def copy_all(url: str, cache: Path, gb: float = 0.0) -> ShardDirectory:
    source = source_of(url, cache, gb)
    shards = source.open()
    source.provide(shards, shards.splits)
    return shards


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".")
    }


# The same figures


def outcome(shards: str, folder: Path, flags: list[str]) -> dict[str, Any]:
    """Trains one epoch, evaluates and predicts; the figures, and the rows of the submission."""
    run = ["--run", str(folder / "run"), *flags]
    output = folder / "submission.csv"
    tiny = ["--model=smallresnet", "--weights=none", "--image_size=16", "--batch_size=8"]
    train = ["train", "--shards", shards, *run, *tiny, "--epochs=1", "--deterministic"]
    assert main([*train, "--no-report"]) == 0
    assert main(["evaluate", *run, "--batch_size=8"]) == 0
    assert main(["predict", "--shards", shards, *run, "--output", str(output)]) == 0
    metrics, evaluation = (
        json.loads((folder / "run" / name).read_text())
        for name in ("metrics.json", "evaluation-fold0.json")
    )
    return {
        "run": json.loads((folder / "run" / "run.json").read_text()),
        "trained": metrics["labels"],
        "evaluated": evaluation["labels"],
        "predicted": output.read_text(),
    }


@pytest.fixture(scope="module")
def from_disk(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return outcome(str(shards), tmp_path_factory.mktemp("local"), [])


def test_one_request_in_five_fails_and_the_figures_are_those_from_disk(
    cloud: Cloud, shards: Path, from_disk: dict[str, Any], tmp_path: Path
) -> None:
    url = cloud.upload(shards)
    flags = ["--shard_cache", str(tmp_path / "cache"), f"--storage_patience={PATIENCE}"]
    rule = Rule(is_any, Fault.UNAVAILABLE, every=5)
    with cloud.proxy.failing(rule):
        found = outcome(url, tmp_path, flags)
    assert rule.struck >= 3
    assert found["run"]["shards"].pop("path") == url
    assert found["run"]["shards"].items() <= from_disk["run"]["shards"].items()
    for name in ("trained", "evaluated", "predicted"):
        assert found[name] == from_disk[name]
    shard_requests = sum(count for name, count in cloud.fetched().items() if "fold" in name)
    assert shard_requests <= 6 + rule.struck


# Faults


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.STALL, Fault.CUT, Fault.RESET])
def test_what_passes_is_tried_again(
    cloud: Cloud, shards: Path, tmp_path: Path, fault: Fault
) -> None:
    url = cloud.upload(shards)
    with cloud.proxy.failing(Rule(is_any, fault, every=5)) as rule:
        copied = copy_all(url, tmp_path / "cache")
    assert rule.struck >= 2
    assert files_of(copied.path) == files_of(shards)


def test_a_store_that_is_down_for_longer_than_its_library_waits(
    s3: Cloud, shards: Path, tmp_path: Path
) -> None:
    url = s3.upload(shards)
    with s3.proxy.failing(Rule(is_any, Fault.UNAVAILABLE, seconds=0.75 * PATIENCE)):
        copied = copy_all(url, tmp_path / "cache")
    assert files_of(copied.path) == files_of(shards)


def failure(argv: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with."""
    assert main(argv) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("trainer: ")
    return error


def test_what_does_not_pass_is_one_line_that_says_what_to_do(
    cloud: Cloud, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, bucket = cloud.upload(shards), cloud.server.url
    flags = ["--run", str(tmp_path / "run"), "--shard_cache", str(tmp_path / "cache")]
    flags += ["--storage_patience=1", "--batch_size=8"]
    train = ["train", *flags, "--shards"]
    with cloud.proxy.failing(Rule(is_any, Fault.DENIED)):
        denied = failure([*train, url], 5, capsys)
    assert f"{bucket}: access denied (403 Forbidden, AccessDenied); " in denied
    assert "must name an account with access" in denied
    with cloud.proxy.failing(Rule(is_any, Fault.UNAVAILABLE)):
        assert f"{bucket}: no answer for 1 s (503" in failure([*train, url], 5, capsys)
    missing = f"{bucket}/nothing: no manifest.json"
    assert missing in failure([*train, f"{bucket}/nothing"], 2, capsys)
    assert not (tmp_path / "run").exists()


def test_a_bucket_that_is_not_there(s3: Cloud, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"s3://nowhere: there is no such bucket"):
        source_of("s3://nowhere/ich", tmp_path).open()


def spoil(data: bytes, how: str) -> bytes:
    return {"changed": data[:-1] + b"?", "cut": data[:-9], "empty": b""}[how]


@pytest.mark.parametrize("how", ["changed", "cut", "empty"])
def test_a_damaged_object_is_refused_by_its_name(
    cloud: Cloud, shards: Path, tmp_path: Path, how: str
) -> None:
    url = cloud.upload(shards)
    name = "ich-fold1.tfrecord-00000-of-00002"
    cloud.server.put({f"ich/{name}": spoil((shards / name).read_bytes(), how)})
    with pytest.raises(UsageError) as raised:
        copy_all(url, tmp_path)
    assert str(raised.value).startswith(f"{url}/{name}: damaged, or replaced since: ")
    assert not list(tmp_path.rglob("*.part"))
    assert not list(tmp_path.rglob(name))


def test_a_missing_object_is_refused_by_its_name(s3: Cloud, shards: Path, tmp_path: Path) -> None:
    url = s3.upload(shards)
    s3.server.delete("ich/ich-fold1.tfrecord-00000-of-00002")
    with pytest.raises(
        UsageError, match=f"{url}/ich-fold1.tfrecord-00000-of-00002: this file is mis"
    ):
        copy_all(url, tmp_path)


# The copy


def test_a_killed_copy_goes_on_with_what_is_missing(
    cloud: Cloud, shards: Path, tmp_path: Path
) -> None:
    url, cache = cloud.upload(shards), tmp_path / "cache"
    slow = "ich-fold2.tfrecord-00001-of-00002"
    cloud.proxy.latency = lambda request: 60.0 if request.path.endswith(slow) else 0.0
    process = subprocess.Popen(
        [sys.executable, "-c", COPY, url, str(cache)], stdout=subprocess.DEVNULL
    )
    wanted = len(files_of(shards)) - 1  # without the slow one
    end = time.monotonic() + 60
    while len([path for path in cache.rglob("[!.]*") if path.is_file()]) < wanted:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(cache.rglob("*.part"))
    renewed(cloud)
    copied = copy_all(url, cache)
    assert cloud.fetched() == {"manifest.json": 1, slow: 1}
    assert files_of(copied.path) == files_of(shards)
    assert not list(cache.rglob("*.part"))


@pytest.mark.parametrize("silent", ["manifest.json", "ich-fold1.tfrecord-00000-of-00002"])
def test_an_interrupt_ends_a_copy_at_once(
    s3: Cloud, shards: Path, tmp_path: Path, silent: str
) -> None:
    url = s3.upload(shards)
    s3.proxy.latency = lambda request: 60.0 if request.path.endswith(silent) else 0.0
    flags = ["--run", str(tmp_path / "run"), "--shard_cache", str(tmp_path / "cache")]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", "train", "--shards", url, "--batch_size=8", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    while not any(request.path.endswith(silent) for request in s3.proxy.traffic.requests):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert told == "trainer: interrupted; the same command resumes\n"
    assert process.returncode == 130
    assert not list(tmp_path.rglob("*.part"))


def test_what_is_there_is_not_fetched_again(s3: Cloud, shards: Path, tmp_path: Path) -> None:
    url = s3.upload(shards)
    copied = copy_all(url, tmp_path)
    path = copied.path / copied.splits[0].shards[0].file
    whole = path.read_bytes()
    renewed(s3)
    copy_all(url, tmp_path)
    assert s3.fetched() == {"manifest.json": 1}
    path.write_bytes(spoil(whole, "cut"))
    copy_all(url, tmp_path)
    assert s3.fetched() == {"manifest.json": 2, path.name: 1}
    assert path.read_bytes() == whole


def test_only_the_splits_that_are_asked_for_are_copied(
    s3: Cloud, shards: Path, tmp_path: Path
) -> None:
    source = source_of(s3.upload(shards), tmp_path)
    found = source.open()
    source.provide(found, (found.split("test"),))
    names = [path.name for path in tmp_path.rglob("ich-*") if path.is_file()]
    assert sorted(names) == [f"ich-test.tfrecord-{i:05d}-of-00002" for i in (0, 1)]


def test_a_directory_that_changed_is_noticed(
    s3: Cloud,
    shards: Path,
    split_rows: dict[str, Any],
    shards_writer: Callable[..., Path],
    tiny: dict[str, Any],
    tmp_path: Path,
) -> None:
    cache, run = tmp_path / "cache", tmp_path / "run"
    options = TrainOptions(
        shards=s3.upload(shards), run=run, shard_cache=str(cache), storage_patience=PATIENCE, **tiny
    )
    before = prepare_training(options)
    with before.run.begun(options, before.shards):
        pass
    prepare_training(options)  # is the same run
    fold1 = split_rows["fold1"][:-1] + split_rows["fold2"][:1]
    changed = shards_writer(tmp_path / "changed", split_rows | {"fold1": fold1})
    s3.upload(changed)
    with pytest.raises(UsageError, match="is of other options: other shards"):
        prepare_training(options)
    renewed(s3)
    after = prepare_training(TrainOptions(**dict(options) | {"run": tmp_path / "other"}))
    assert s3.fetched().keys() == {
        "manifest.json",
        "index.parquet",
        "ich-fold1.tfrecord-00001-of-00002",
    }
    for split in (*after.training, after.validation):
        for shard in split.shards:
            assert (after.shards.path / shard.file).read_bytes() == (
                changed / shard.file
            ).read_bytes()
    # What a run goes on with stays as it was until the run is over.
    assert files_of(before.shards.path).items() <= files_of(shards).items()
    old = before.shards.path
    del before
    assert old.is_dir()
    shutil.rmtree(after.shards.path)
    copy_all(options.shards, cache)
    assert not old.is_dir()


def test_two_processes_fill_one_cache(s3: Cloud, shards: Path, tmp_path: Path) -> None:
    url = s3.upload(shards)
    s3.proxy.latency = lambda request: 0.3 if is_shard(request) else 0.0
    command = [sys.executable, "-c", COPY, url, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("another process is copying it; waiting" in text for text in told) <= 1
    assert set(s3.fetched().values()) == {1, 2}
    assert all(count == 1 for name, count in s3.fetched().items() if name != "manifest.json")
    assert files_of(copy_all(url, tmp_path).path) == files_of(shards)


def test_too_little_room(
    s3: Cloud, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = s3.upload(shards)
    size = sum(len(data) for data in files_of(shards).values())
    with pytest.raises(UsageError) as raised:
        copy_all(url, tmp_path, gb=size / 2 / 1e9)
    assert "are to be copied, and " in str(raised.value)
    assert "--shard_cache_gb" in str(raised.value)
    assert not [name for name in s3.fetched() if name.startswith("ich-")]


def test_copies_of_other_directories_stay(s3: Cloud, shards: Path, tmp_path: Path) -> None:
    gb = 1.5 * sum(len(data) for data in files_of(shards).values()) / 1e9
    first = copy_all(s3.upload(shards, "a"), tmp_path, gb).path
    with pytest.raises(UsageError, match=r"are to be copied, .* delete old copies in this folder"):
        copy_all(s3.upload(shards, "b"), tmp_path, gb)
    assert files_of(first) == files_of(shards)


def test_an_index_that_the_manifest_describes(
    s3: Cloud, edit_manifest: Callable[..., Path], shards: Path, tmp_path: Path
) -> None:
    data = (shards / "index.parquet").read_bytes()
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    url = s3.upload(edit_manifest(files={"index.parquet": entry}))
    copied = copy_all(url, tmp_path / "cache")
    assert (copied.path / "index.parquet").read_bytes() == data
    assert all(request.method == "GET" for request in s3.proxy.traffic.requests)
    s3.server.put({"ich/index.parquet": spoil(data, "changed")})
    with pytest.raises(UsageError, match=f"{url}/index.parquet: damaged"):
        copy_all(url, tmp_path / "other")


@pytest.mark.parametrize("text", ["{", '{"schema_version": 1}', ""])
def test_a_wrong_manifest_writes_nothing(s3: Cloud, tmp_path: Path, text: str) -> None:
    s3.server.put({"wrong/manifest.json": text.encode()})
    with pytest.raises(UsageError, match=r"s3://data/wrong/manifest\.json: "):
        source_of("s3://data/wrong", tmp_path).open()
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written(s3: Cloud, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UsageError, match=r"--shard_cache .*/file: cannot be written to \(Not a "):
        copy_all(s3.upload(shards), tmp_path / "file")


# Answers that the servers do not give

PAGE = b"<html><body>Please log in.</body></html>"
ENDPOINT = "check the endpoint, and proxies between it and this machine"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            refusal(403, "InvalidObjectState"),
            "/shards/manifest.json: archived (403 Forbidden, InvalidObjectState); restore it first",
        ),
        (
            refusal(400, "KMS.DisabledException"),
            "/shards/manifest.json: encrypted with a key that cannot be used (400 Bad Request,"
            " KMS.DisabledException); restore it first",
        ),
        (
            Answer(200, PAGE),
            ": the answer is not the requested range of an object, as of an object that is"
            f" stored with Content-Encoding: gzip; store it without, or {ENDPOINT}",
        ),
        (
            Answer(404, PAGE),
            f": a web page instead of an answer (404 Not Found); {ENDPOINT}",
        ),
    ],
)
def test_what_stays_wrong_is_one_line(tmp_path: Path, answer: Answer, message: str) -> None:
    with serve(ScriptedStore(answers={"shards/manifest.json": answer})):
        access = ShardAccess(shard_cache=str(tmp_path), storage_patience=1.0)
        with pytest.raises(StorageError) as failed:
            find_shards("s3://data/shards", access, Display()).open()
    assert str(failed.value) == f"s3://data{message}"


# Local folders


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (
            "ftp://host/x",
            "ftp://host/x: unknown kind of store ftp://; want a path or one of s3://",
        ),
        ("gs://", "want the name of a bucket or server behind gs://"),
        ("s3://bucket/a/../b", "cannot be read from a store: it has the part '.' or '..'"),
        ("s3://bucket/a//b", "cannot be read from a store: it has '//'"),
        ("s3://bucket/a\tb", "cannot be read from a store: it has a control character"),
        ("gs:/bucket/ich", "gs:/bucket/ich: no such folder; a URL is gs://bucket/ich"),
        ("lost", "lost: no such shard directory"),
        ("x" * 5000, "no such shard directory"),
    ],
)
def test_what_names_no_shards_is_one_line(location: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        find_shards(location, ShardAccess(), Display()).open()
    assert message in str(raised.value)


def test_a_path_is_a_folder_of_this_machine(shards: Path) -> None:
    for location in (shards, str(shards), f"file://{shards}"):
        found = find_shards(location, ShardAccess(), Display())
        assert found == LocalShards(shards)
        assert found.open().path == shards
