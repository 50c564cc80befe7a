"""The whole graph on a small data set, run as users run it and on a runner's own workers."""

import base64
import bz2
import dataclasses
import importlib
import io
import json
import os
import pickle
import pickletools
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from rich.console import Console

from beam_pipeline import pipeline
from beam_pipeline.command_line import parse_options
from beam_pipeline.errors import Refusal
from beam_pipeline.finish import finish_directory
from beam_pipeline.keys import KEY_VARIABLE
from beam_pipeline.options import ImageId, Options
from beam_pipeline.planning.plan_shards import REJECTS_SCHEMA
from beam_pipeline.progress import show_summary
from beam_pipeline.shards.manifest import read_rejects
from beam_pipeline.shards.output import read_refusal
from beam_pipeline.shards.unfinished import IdenticalPixels, Plan, encode_table
from beam_pipeline.verify.findings import Check
from beam_pipeline.verify.verification import verify_directory
from headct.stores import Folder
from tests.beam_pipeline.steps import contents, small_options

# Beam's own use of deprecated Python features.
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning:apache_beam.*")


@pytest.fixture(scope="module")
def options(small_data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Options:
    return small_options(small_data_set, tmp_path_factory.mktemp("shards") / "out", 4, workers=2)


@pytest.fixture(scope="module")
def shards(options: Options) -> Path:
    """The shard directory of the small data set, made with two workers."""
    pipeline.run_here(options)
    return Path(options.files.output)


def read(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())


def test_nothing_is_lost(shards: Path) -> None:
    manifest = read(shards)
    assert manifest["counts"] == {
        "files_seen": 33,
        "written": 30,
        "rejected": 3,
        "rejected_by_reason": {"constant_image": 1, "label_missing": 1, "not_dicom": 1},
        "excluded": 0,
        "excluded_by_reason": {},
        "repaired": {},
        "resized": 0,
        "labels_without_file": 1,
        "unlabeled_skipped": 0,
        "not_sampled": 0,
        "not_listed": 0,
        "identifying_paths": 0,
        "without_patient_id": {"slices": 0, "studies": 0},
        "identical_pixels": {
            "groups": 0,
            "slices": 0,
            "groups_across_patients": 0,
            "groups_with_conflicting_labels": 0,
        },
    }
    rejects = [json.loads(line) for line in (shards / "rejects.jsonl").read_text().splitlines()]
    assert [(reject["source"], reject["reason"]) for reject in rejects] == [
        ("ID_flat.dcm", "constant_image"),
        ("ID_text.dcm", "not_dicom"),
        ("ID_unlabeled.dcm", "label_missing"),
    ]


def test_the_manifest_describes_the_directory(shards: Path, options: Options) -> None:
    manifest = read(shards)
    assert manifest["schema_version"] == 1
    assert manifest["windows"] == [dataclasses.asdict(window) for window in options.image.windows]
    assert manifest["image"] == {
        "height": 32,
        "width": 32,
        "channels": 3,
        "dtype": "uint8",
    }
    assert sum(split["patients"] for split in manifest["splits"].values()) == 6
    assert [s["label_counts"]["subdural"] for s in manifest["splits"].values()] == [3, 3]
    listed = [shard for split in manifest["splits"].values() for shard in split["shards"]]
    described = {"manifest.json", "index.parquet", "rejects.jsonl"}
    described |= {"features.json", "dataset_info.json", "preprocess.toml", "report.html"}
    described |= {"README.md", "croissant.json"}
    assert {path.name for path in shards.iterdir()} == described | {s["file"] for s in listed}
    assert all((shards / shard["file"]).stat().st_size == shard["bytes"] for shard in listed)


@pytest.mark.filterwarnings("ignore")  # of TensorFlow Datasets, which is only a witness here
def test_a_directory_without_labels_claims_none(options: Options, tmp_path: Path) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")

    folder = tmp_path / "unlabeled"
    pipeline.run_here(options.changed(labels=None, output=str(folder)))
    manifest = read(folder)
    assert manifest["labels"] == []
    assert manifest["splits"]["test"]["label_counts"] == {}
    assert manifest["counts"]["written"] == 31
    columns = pd.read_parquet(folder / "index.parquet").columns
    assert not [name for name in columns if name.startswith("label_")]
    assert not verify_directory(str(folder)).findings.failed
    assert "The set has no labels" in (folder / "report.html").read_text()
    examples = [*tfds.builder_from_directory(folder).as_dataset(split="test")]
    assert {tuple(each["label"].shape) for each in examples} == {(0,)}
    assert len(examples) == 31


def test_the_index_has_a_row_an_example(shards: Path) -> None:
    index = pd.read_parquet(shards / "index.parquet")
    assert len(index) == 30
    assert index.columns.tolist()[:9] == [
        "image_id",
        "split",
        "shard",
        "record",
        "offset",
        "bytes",
        "image_offset",
        "image_bytes",
        "label_epidural",
    ]
    assert (index.groupby("patient_id")["split"].nunique() == 1).all()
    assert index["source"].is_unique


@dataclasses.dataclass(frozen=True)
class Setup:
    """How the same graph is run."""

    workers: int = 1
    runner: dict[str, Any] = dataclasses.field(default_factory=dict)
    beam: tuple[str, ...] = ()


SETUPS = {
    "one process": Setup(),
    "three processes": Setup(workers=3),
    "every bundle twice": Setup(runner={"bundle_repeat": 1}),
    "two of Beam's workers": Setup(
        beam=("--direct_running_mode=multi_threading", "--direct_num_workers=2")
    ),
}


@pytest.mark.parametrize("name", SETUPS)
def test_shards_are_the_same_whoever_does_the_work(
    shards: Path, options: Options, tmp_path: Path, name: str
) -> None:
    setup = SETUPS[name]
    options = options.changed(output=str(tmp_path / "again"), workers=setup.workers)
    runner = FnApiRunner(**setup.runner)
    with beam.Pipeline(runner=runner, options=PipelineOptions([*setup.beam])) as graph:
        pipeline.build(graph, options)
    assert read(tmp_path / "again")["digest"] == read(shards)["digest"]
    assert contents(tmp_path / "again") == contents(shards)


def test_another_seed_gives_other_shards(shards: Path, options: Options, tmp_path: Path) -> None:
    options = options.changed(output=str(tmp_path / "other"), seed=1)
    pipeline.run_here(options)
    assert read(tmp_path / "other")["splits"] != read(shards)["splits"]


@pytest.mark.parametrize("left", [[], ["plan.json"], ["plan.json", "rejects.arrow"]])
def test_the_last_step_may_be_done_again(
    shards: Path, options: Options, tmp_path: Path, left: list[str]
) -> None:
    """As by a runner that lost the worker which had just removed some of what is not needed."""
    options = options.changed(output=str(shutil.copytree(shards, tmp_path / "out")))
    before = contents(tmp_path / "out"), read(tmp_path / "out")
    files = [shard["file"] for split in before[1]["splits"].values() for shard in split["shards"]]
    names = tuple(before[1]["labels"])
    plan = Plan(names, 33, 0, 1, 0, "file_name", None, (), IdenticalPixels(), tuple(files), 30)
    rejects = pa.Table.from_pylist([], REJECTS_SCHEMA)
    tables = {
        "plan.json": json.dumps(asdict(plan)).encode(),
        "rejects.arrow": encode_table(rejects),
    }
    for name in left:
        Folder(options.files.output).write(f".unfinished/{name}", tables[name])
    finish_directory(len(files), options)
    assert (contents(tmp_path / "out"), read(tmp_path / "out")) == before


@pytest.mark.parametrize("stage", ["planning", "writing"])
def test_a_refused_run_is_a_failed_job(options: Options, tmp_path: Path, stage: str) -> None:
    """Planning rejects two files of 33, writing a third."""
    allowed = {"planning": 1 / 33, "writing": 2 / 33}[stage]
    options = options.changed(output=str(tmp_path / "out"), max_reject_fraction=allowed)
    with pytest.raises(Refusal, match=r"[23] of 33 files were rejected"):
        pipeline.run_here(options)
    refusal = read_refusal(options.files.folder)
    assert refusal is not None
    assert (refusal.exit_code, not read_rejects(options.files.folder)) == (3, False)
    assert not (tmp_path / "out" / "manifest.json").exists()


# What Beam is given


def unpacked(data: bytes) -> Iterator[bytes]:
    """Some bytes, and all that is pickled and compressed in them."""
    yield data
    for text in re.findall(rb"[A-Za-z0-9+/]{32,}=*", data):
        for start in range(4):  # what is before it may look as if it belonged to it
            length = (len(text) - start) // 4 * 4
            packed = base64.b64decode(text[start : start + length])
            for decompressor in (bz2.BZ2Decompressor(), zlib.decompressobj()):
                try:
                    pickled = decompressor.decompress(packed)
                except (OSError, zlib.error):
                    continue
                yield pickled
                for _, value, _ in pickletools.genops(pickled):
                    if isinstance(value, bytes | str):
                        inner = value.encode() if isinstance(value, str) else value
                        yield from unpacked(inner)


def graph_of(options: Options) -> bytes:
    graph = beam.Pipeline(runner=FnApiRunner())
    pipeline.build(graph, options)
    serialized: bytes = graph.to_runner_api().SerializeToString()
    return serialized


KEY = "the-key-of-all-identifiers-0123456789"


@pytest.fixture(params=["file", "environment"])
def hashing(
    request: pytest.FixtureRequest,
    small_data_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> list[str]:
    """The arguments of a run that hashes ids."""
    argv = ["--input", str(small_data_set / "slices"), "--output", str(tmp_path / "out")]
    argv += ["--labels", str(small_data_set / "labels.csv"), "--identifiers", "hash"]
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    if request.param == "environment":
        monkeypatch.setenv(KEY_VARIABLE, KEY)
        return argv
    (tmp_path / "key").write_text(KEY)
    return [*argv, "--identifier_key_file", str(tmp_path / "key")]


def test_the_graph_holds_no_key_no_id_and_no_file_name(hashing: list[str]) -> None:
    options, _ = parse_options(hashing)
    parts = list(unpacked(graph_of(options)))
    # Long enough not to be in compressed bytes by chance.
    words = [KEY, "Secret^Name", "secret.study", "secret.series", "ID_0", ".dcm"]
    for word in words:
        for secret in (word.encode(), base64.b64encode(word.encode()).rstrip(b"=")[:-1]):
            assert not any(secret in part for part in parts), word
    # So it would be found.
    for known in (
        options.files.input,
        options.identifiers.identifier_key_check,
        "inspect_part",
        "write_shard",
    ):
        assert any(known.encode() in part for part in parts), known
    assert not any(known.encode() in parts[0] for known in (options.files.input, "inspect_part"))


def test_the_graph_does_not_grow_with_the_data(
    options: Options, tmp_path: Path, full: bool
) -> None:
    folder = tmp_path / "slices"
    folder.mkdir()
    options = options.changed(input=str(folder))
    graphs = []
    for first, end in ((0, 300), (300, 100_000 if full else 20_000)):
        for number in range(first, end):
            os.close(os.open(folder / f"ID_{number}.dcm", os.O_CREAT | os.O_WRONLY))
        graphs.append(graph_of(options))
    shutil.rmtree(folder)
    few, many = map(pickled, graphs)
    assert len(few) > 10
    assert few == many
    # Compressed, too, but for random numbers in it.
    assert len(graphs[0]) == pytest.approx(len(graphs[1]), abs=100)


def pickled(graph: bytes) -> list[bytes]:
    """All that a graph has pickled, without the random numbers that name classes."""
    return [re.sub(rb"[0-9a-f]{32}", b"", part) for part in [*unpacked(graph)][1:]]


# Names and files of all kinds


@pytest.fixture
def odd_files(tmp_path: Path, write_slice: Callable[..., Path]) -> dict[str, str]:
    """What becomes of each file in `in`, by its source as it is to be shown."""
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    for number, path in enumerate(
        (
            folder / os.fsdecode(b"caf\xe9.dcm"),
            folder / os.fsdecode(b"M\xfcller") / "a.dcm",
            folder / "1.2.840.113619.2.5.17",
            folder / "1.2.840.113619.2.5.18",
            folder / "br[1]" / "b.dcm",
            elsewhere / "c.dcm",
        )
    ):
        pixels = np.random.default_rng(number).integers(0, 1200, (32, 32)).astype(np.int16)
        write_slice(path, pixels, SOPInstanceUID=f"1.2.3.{number}", PatientID=f"p{number}")
    (folder / os.fsdecode(b"sch\xf6n.dcm")).write_text("not DICOM")
    (folder / "linked").symlink_to("../elsewhere")
    (folder / "dangling.dcm").symlink_to("nowhere")
    (folder / "br[1]" / "up").symlink_to("..")
    os.mkfifo(folder / "pipe.dcm")
    return {
        "caf\\xe9.dcm": "written",
        "M\\xfcller/a.dcm": "written",
        "1.2.840.113619.2.5.17": "written",
        "1.2.840.113619.2.5.18": "written",
        "br[1]/b.dcm": "written",
        "linked/c.dcm": "written",
        "sch\\xf6n.dcm": "not_dicom",
        "dangling.dcm": "vanished",
        "pipe.dcm": "read_error",
    }


@pytest.mark.parametrize(
    "step",
    [
        pytest.param("inspect_part", marks=pytest.mark.full),
        pytest.param("plan_shards", marks=pytest.mark.full),
        "write_shard",
        "_finish",
    ],
)
def test_two_runs_at_once_end_in_one_right_directory(
    shards: Path,
    options: Options,
    tmp_path: Path,
    step: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Another run completes the directory when this one is about to begin a step."""
    options = options.changed(output=str(tmp_path / "out"))
    module = "beam_pipeline.finish" if step == "_finish" else "beam_pipeline.pipeline"
    monkeypatch.setattr(f"{module}.{step}", partial(finish_first, getattr_of(module, step)))
    pipeline.run_here(options)
    assert contents(tmp_path / "out") == contents(shards)
    assert read(tmp_path / "out")["digest"] == read(shards)["digest"]
    assert not (tmp_path / "out" / ".unfinished").exists()
    assert "Traceback" not in capfd.readouterr().err


def getattr_of(module: str, name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


def finish_first(step: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Let another run complete the directory, unless it did, and then do a step."""
    options = next(value for value in (*args, *named.values()) if isinstance(value, Options))
    if not Path(options.files.output, "manifest.json").exists():
        command = [sys.executable, "-c", OTHER_RUN]
        subprocess.run(command, input=pickle.dumps(options), check=True, timeout=120)
    return step(*args, **named)


OTHER_RUN = """
import pickle, sys
from beam_pipeline import pipeline
from beam_pipeline.workers import start_server
if __name__ == "__main__":
    start_server()
    pipeline.run_here(pickle.load(sys.stdin.buffer))
"""


@pytest.mark.parametrize("image_id", ImageId)
def test_files_of_all_kinds_are_written_or_rejected(
    odd_files: dict[str, str], tmp_path: Path, image_id: ImageId
) -> None:
    output = tmp_path / "out"
    options = Options.of(
        input=str(tmp_path / "in"),
        output=str(output),
        image_size=32,
        image_id=image_id,
        max_reject_fraction=0.5,
    )
    pipeline.run_here(options)
    index = pd.read_parquet(output / "index.parquet")
    rejects = [json.loads(line) for line in (output / "rejects.jsonl").read_text().splitlines()]
    found = dict.fromkeys(index["source"], "written")
    found |= {reject["source"]: reject["reason"] for reject in rejects}
    if image_id is ImageId.ORDINAL:
        order = ["1.2.840.113619.2.5.17", "1.2.840.113619.2.5.18", "M\\xfcller/a.dcm"]
        order += ["br[1]/b.dcm", "caf\\xe9.dcm", "dangling.dcm", "linked/c.dcm", "pipe.dcm"]
        order += ["sch\\xf6n.dcm"]
        assert found == {f"file_{i + 1:06d}": odd_files[source] for i, source in enumerate(order)}
    else:
        assert found == odd_files
    if image_id is ImageId.FILE_NAME:
        image_ids = dict(zip(index["source"], index["image_id"], strict=True))
        assert image_ids["caf\\xe9.dcm"] == "caf\\xe9"
        assert image_ids["1.2.840.113619.2.5.17"] == "1.2.840.113619.2.5.17"
    counts = read(output)["counts"]
    assert counts["files_seen"] == counts["written"] + counts["rejected"] == len(odd_files)
    assert (counts["written"], counts["rejected"]) == (len(index), len(rejects))
    result = verify_directory(str(output), source=options.files.input)
    assert [str(finding) for finding in result.findings.kept] == []
    assert result.findings.checked[Check.SOURCE] == counts["written"]


@pytest.mark.parametrize(
    ("identifiers", "group_by"), [("ordinal", "patient"), ("hash", "patient"), ("keep", "study")]
)
def test_studies_stand_for_patients_without_an_id(
    write_slice: Callable[..., Path],
    tmp_path: Path,
    identifiers: str,
    group_by: str,
) -> None:
    (tmp_path / "key").write_text("0123456789abcdef")
    rows = ["image_id,any"]
    for study in range(6):
        for number in range(2):
            # Studies 0 to 2 name nobody, study 3 in one file alone.
            name = f"s{study}_{number}"
            patient = f"P{study}" if study > 3 or (study == 3 and number) else ""
            write_slice(
                tmp_path / "in" / f"{name}.dcm", PatientID=patient, StudyInstanceUID=f"1.2.{study}"
            )
            rows.append(f"{name},{study % 2}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    given = {"input": str(tmp_path / "in"), "labels": str(tmp_path / "labels.csv")}
    given |= {"identifiers": identifiers, "group_by": group_by, "output": str(tmp_path / "out")}
    given |= {"identifier_key_file": str(tmp_path / "key")} if identifiers == "hash" else {}
    pipeline.run_here(Options.of(**given, image_size=32, folds=2, workers=1))
    manifest = read(tmp_path / "out")
    assert manifest["counts"]["without_patient_id"] == {"slices": 7, "studies": 4}
    assert manifest["counts"]["written"] == 12
    index = pd.read_parquet(tmp_path / "out" / "index.parquet")
    study = index["image_id"].str[:2]
    assert (index.groupby(study)["split"].nunique() == 1).all()
    assert index.groupby(study)["patient_id"].nunique().tolist() == [1, 1, 1, 2, 1, 1]
    assert index["patient_id"].nunique() == 7
    if identifiers != "ordinal":
        unnamed = index[index["image_id"] == "s0_0"].iloc[0]
        assert unnamed["patient_id"] == f"study \\ {unnamed['study_id']}"
    assert verify_directory(str(tmp_path / "out")).findings.ok
    console = Console(file=io.StringIO(), width=200)
    show_summary(console, manifest, Folder("out"), 1.0)
    told = "7 slices of 4 studies have no PatientID: each study stands for a patient"
    assert told in console.file.getvalue()
