"""Verification of a shard directory: manifest, index, rejects and metadata, then all shards.

Errors: missing, damaged or unlisted files; contradictions between values (manifest, index, records,
metadata, and with `--source` the DICOM files); duplicate image ids; patients in two splits. Shown
without an error: the balance of labels over splits, since patients are indivisible and slices may
be rejected after their assignment; identical images, since keeping identical images together is an
option of the run.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, field
from typing import Annotated, Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field
from pydantic.dataclasses import dataclass
from rich.console import Console
from rich.progress import track

from beam_pipeline.dicom.hounsfield import Repair
from beam_pipeline.options import ImageId, ImageOptions, fill_in
from beam_pipeline.planning.inventory import locate_sources
from beam_pipeline.shards.formats import describe_dataset, describe_features, index_schema
from beam_pipeline.shards.manifest import describe_image, manifest_digest
from beam_pipeline.verify.findings import Check, Findings, KeyPath
from beam_pipeline.verify.shard import (
    FILE,
    ShardReport,
    ShardTask,
    check_shard,
    contents_schema,
    show_id,
)
from beam_pipeline.workers import Watch, WorkerPool
from headct.errors import UsageError
from headct.json_documents import check_document, must, parse_json
from headct.layout import (
    DATASET_INFO,
    FEATURES,
    INDEX,
    MANIFEST,
    REJECTS,
    ShardFile,
    count_input,
    label_column,
)
from headct.manifest import (
    Count,
    Counts,
    FileEntry,
    ImageSpec,
    Manifest,
    Options,
    Sha256,
    parse_manifest,
)
from headct.printable import quoted
from headct.reasons import Reason
from headct.stores import Folder, InputFiles
from headct.terminal import can_redraw

_Text = Annotated[str, Field(strict=True), must("text")]


@dataclass(frozen=True, kw_only=True)
class _FileCounts:
    files_seen: Count
    written: Count
    rejected: Count
    rejected_by_reason: Counts
    repaired: Counts
    resized: Count
    labels_without_file: Count
    excluded: Count = 0  # earlier versions rejected these files
    excluded_by_reason: Counts = field(default_factory=dict)
    unlabeled_skipped: Count = 0
    not_sampled: Count = 0
    not_listed: Count = 0


@dataclass(frozen=True, kw_only=True)
class _WrittenManifest(Manifest):
    """The manifest as the pipeline writes it; other readers need less."""

    options: Options
    counts: Annotated[_FileCounts, must("an object of counts")]
    acquisition: Annotated[dict[str, Counts], must("an object of counts")] = field(
        default_factory=dict
    )  # earlier versions have none
    files: Annotated[dict[str, FileEntry], must("an object of files")]
    digest: Sha256


@dataclass(frozen=True)
class _Reject:
    """A line of rejects.jsonl."""

    source: _Text
    image_id: _Text
    reason: Annotated[Reason, must("a known reason")]
    detail: _Text


class Verification(NamedTuple):
    """Result of a verification.

    Attributes:
        findings: the problems.
        splits: per split, by name: patients, readable shards and slices, MB, labeled slices, and
            slices per label; empty if the manifest is invalid.
        repeated: examples that repeat an earlier example's image.
        across_splits: images in more than one split.
    """

    findings: Findings
    splits: pd.DataFrame = pd.DataFrame()
    repeated: int = 0
    across_splits: int = 0


def verify_directory(url: str, *, source: str | None = None, workers: int = 0) -> Verification:
    """Check a shard directory, and compare its images with the input if given.

    A worker keeps one record in memory; this process keeps the ids of all records. Without workers
    this process runs all checks. An invalid manifest ends the verification.

    Raises:
        UsageError: the directory, its manifest or the input does not exist.
    """
    folder, findings = Folder(url), Findings()
    try:
        names = folder.names()
        if MANIFEST not in names:
            raise UsageError(f"it is no finished shard directory: it has no {MANIFEST}")
        data = folder.read(MANIFEST)
    except (OSError, ValueError, ImportError, UsageError) as error:
        raise UsageError(f"cannot read {folder.url}: {error}") from None
    findings.checked[Check.MANIFEST] += 1
    try:
        manifest = asdict(parse_manifest(data, MANIFEST, _WrittenManifest))
        digest = manifest_digest(parse_json(data, MANIFEST))
    except (UsageError, RecursionError) as error:
        findings.add(Check.MANIFEST, str(error).removeprefix(f"{MANIFEST}: "), MANIFEST)
        return Verification(findings)
    if manifest["digest"] != digest:
        message = "its content is not that of its own digest: it was edited or damaged"
        findings.add(Check.MANIFEST, message, MANIFEST)
    return _DirectoryChecker(folder, manifest, findings).check(names, source, workers)


@contextmanager
def _reporting(
    findings: Findings, check: Check, file: str, record: int | None = None
) -> Iterator[None]:
    """Make a finding of an error that the content of a file raises; the block ends there."""
    try:
        yield
    except FileNotFoundError:
        findings.add(check, "missing", file, record)
    except OSError as error:
        findings.add(check, f"cannot be read: {error.strerror or error}", file, record)
    except (UsageError, ValueError, RecursionError) as error:
        findings.add(check, str(error).removeprefix(f"{file}: "), file, record)


class _DirectoryChecker:
    """Checks a directory whose manifest is valid, and collects findings."""

    def __init__(self, folder: Folder, manifest: dict[str, Any], findings: Findings) -> None:
        self._folder = folder
        self._manifest = manifest
        self._findings = findings
        self._source: InputFiles | None = None  # the DICOM files, to compare pixels
        self._options: ImageOptions | None = None  # None if they are invalid
        self._shards = {
            shard["file"]: (split, shard)
            for split, described in manifest["splits"].items()
            for shard in described["shards"]
        }

    def check(self, names: set[str], source: str | None, workers: int) -> Verification:
        """Check the files with these names."""
        self._source = None if source is None else InputFiles.parse(source)
        self._check_values()
        self._check_metadata()
        index: pa.Table | None = None
        with _reporting(self._findings, Check.INDEX, INDEX):
            index = self._check_index(self._read(INDEX, Check.INDEX))
        with _reporting(self._findings, Check.REJECTS, REJECTS):
            self._check_rejects(self._read(REJECTS, Check.REJECTS), index)
        if index is not None and self._source is not None:
            index = self._add_paths(index, self._source)
        reports = sorted(self._check_shards(index, workers), key=lambda report: report.file)
        for report in reports:
            self._findings.merge(report.findings)
        for name in sorted(names - self._shards.keys()):
            if ".tfrecord" in name and not name.startswith("."):
                self._findings.add(Check.FILES, "not listed in the manifest", name)
        return self._check_partition(reports)

    def _check_values(self) -> None:
        """Compare values of the manifest with other values that determine them."""
        counts, splits = self._manifest["counts"], self._manifest["splits"]
        expected = {
            "files_seen": sum(
                counts[name] for name in ("written", "rejected", "excluded", "not_sampled")
            ),
            "written": sum(split["examples"] for split in splits.values()),
            "rejected": sum(counts["rejected_by_reason"].values()),
            "excluded": sum(counts["excluded_by_reason"].values()),
        }
        given = {name: counts[name] for name in expected}
        self._findings.compare(Check.MANIFEST, ["counts"], given, expected, MANIFEST)
        for name, values in self._manifest["acquisition"].items():
            path: KeyPath = ["acquisition", name]
            total = sum(values.values())
            self._findings.compare(Check.MANIFEST, path, total, counts["written"], MANIFEST)
        for name, split in splits.items():
            files = [shard["file"] for shard in split["shards"]]
            names = [ShardFile(name, number, len(files)).name for number in range(len(files))]
            self._findings.compare(Check.MANIFEST, ["splits", name], files, names, MANIFEST)
        with _reporting(self._findings, Check.MANIFEST, MANIFEST):
            recorded = fill_in(self._manifest["options"])
            options = ImageOptions(**{name: recorded[name] for name in ImageOptions.model_fields})
            windows = options.model_dump(mode="json")["windows"]
            image = asdict(ImageSpec(**describe_image(options)))
            for what, value in {"windows": windows, "image": image}.items():
                found = self._manifest[what]
                self._findings.compare(Check.MANIFEST, [what], found, value, MANIFEST)
            self._options = options

    def _read(self, name: str, check: Check) -> bytes:
        """Return the bytes of a file, after a comparison with the manifest's `files`.

        Raises:
            OSError: the file cannot be read.
            ValueError: the manifest does not describe the file.
        """
        self._findings.checked[check] += 1
        data = self._folder.read(name)
        actual = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if name not in self._manifest["files"]:
            raise ValueError(f"not described in {MANIFEST}")
        for what, value in actual.items():
            self._findings.compare(check, [what], value, self._manifest["files"][name][what], name)
        return data

    def _check_index(self, data: bytes) -> pa.Table:
        """Return the rows of index.parquet, after a comparison with the manifest.

        Raises:
            ValueError: the index is damaged, or has other columns or empty cells.
        """
        try:
            table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
            table.validate(full=True)
        except pa.ArrowException as error:
            raise ValueError(f"cannot be read: {error}") from None
        schema = index_schema(self._manifest["labels"])
        types = {field.name: str(field.type) for field in table.schema}
        expected = {field.name: str(field.type) for field in schema}
        self._findings.compare(Check.INDEX, ["columns"], types, expected, INDEX)
        if types != expected or len(table.schema) != len(schema):
            raise ValueError(f"has {len(table.schema)} columns, not the {len(schema)} of an index")
        for column in schema:  # Arrow writes the NaN of an unknown position or spacing as null
            if not pa.types.is_floating(column.type) and table[column.name].null_count:
                raise ValueError(f"{column.name} has empty cells")
        repairs = Counter(table["repair"].to_pylist())
        del repairs[Repair.NONE]
        counts = {
            "written": len(table),
            "resized": pc.sum(table["resized"], min_count=0).as_py(),
            "repaired": dict(repairs),
        }
        given = {name: self._manifest["counts"][name] for name in counts}
        self._findings.compare(Check.INDEX, ["counts"], counts, given, INDEX)
        if (level := self._manifest["label_level"]) not in (None, "image"):
            labels = map(label_column, self._manifest["labels"])
            of_scans = table.group_by([f"{level}_id", *labels]).aggregate([])[f"{level}_id"]
            if several := len(of_scans) - pc.count_distinct(of_scans).as_py():
                message = f"label_level is {level}, but slices of one differ in labels"
                self._findings.add(Check.INDEX, f"{message} ({several} times)", INDEX)
        return table.combine_chunks()

    def _check_metadata(self) -> None:
        """Check features.json and dataset_info.json: the manifest determines their content."""
        features = describe_features(len(self._manifest["labels"]), self._manifest["image"])
        info = describe_dataset(self._manifest["splits"])
        for name, expected in (FEATURES, features), (DATASET_INFO, info):
            with _reporting(self._findings, Check.METADATA, name):
                content = parse_json(self._read(name, Check.METADATA), name)
                self._findings.compare(Check.METADATA, ["content"], content, expected, name)

    def _check_rejects(self, data: bytes, index: pa.Table | None) -> None:
        """Check rejects.jsonl: lines, counts per reason, sources unique and not in the index."""
        reasons: Counter[str] = Counter()
        lines: dict[str, int] = {}  # line numbers by source
        written = set() if index is None else {*index["source"].to_pylist()}
        for number, line in enumerate(data.splitlines()):
            self._findings.checked[Check.REJECTS] += 1
            with _reporting(self._findings, Check.REJECTS, REJECTS, number):
                reject = check_document(parse_json(line, REJECTS), _Reject, REJECTS)
                reasons[reject.reason.value] += 1
                first = lines.setdefault(reject.source, number)
                if first != number:
                    raise ValueError(f"the same source as line {first}")
                if reject.source in written:
                    raise ValueError("its source is in the index too")
        counts = self._manifest["counts"]
        expected = counts["rejected_by_reason"] | counts["excluded_by_reason"]
        self._findings.compare(Check.REJECTS, ["reasons"], dict(reasons), expected, REJECTS)

    def _add_paths(self, index: pa.Table, files: InputFiles) -> pa.Table:
        """Return the index with the column FILE, unless the input has more or fewer files now."""
        numbered = self._manifest["options"].get("image_id") == ImageId.ORDINAL
        count = count_input(self._manifest["counts"])
        sources = index["source"].to_pylist()
        try:
            paths = locate_sources(files, sources, numbered=numbered, count=count)
        except ValueError as error:
            self._findings.add(Check.SOURCE, str(error), MANIFEST)
            self._source = None
            return index
        return index.append_column(FILE, pa.array([path or b"" for path in paths], pa.binary()))

    def _tasks(self, index: pa.Table | None) -> Iterator[ShardTask]:
        """Yield a task per shard, with its rows of the index.

        Duplicate record numbers need no check: the index has as many rows as the shards have
        records, and every record must have a row.
        """
        positions: dict[Any, Any] = {}
        if index is not None:
            self._findings.checked[Check.INDEX] += len(index)
            shards = index["shard"].to_numpy(zero_copy_only=False)
            positions = dict(pd.Series(range(len(index))).groupby(shards).indices)
            for file in sorted(positions.keys() - self._shards.keys()):
                message = f"{len(positions[file])} rows are of {quoted(file)}, which is not listed"
                self._findings.add(Check.INDEX, message, INDEX)
        for file, (split, shard) in self._shards.items():
            rows = None
            if index is not None:
                own = index.take(pa.array(positions.get(file, ()), pa.int64())).to_pylist()
                rows = {row["record"]: row for row in own}
            labels, image = self._manifest["labels"], ImageSpec(**self._manifest["image"])
            files = self._folder.url, split, shard
            yield ShardTask(*files, labels, image, rows, self._source, self._options)

    def _check_shards(self, index: pa.Table | None, workers: int) -> Iterable[ShardReport]:
        if not workers:
            return (check_shard(task, Watch()) for task in self._tasks(index))
        pool: WorkerPool[ShardTask, ShardReport] = WorkerPool(check_shard, workers)
        reports = pool.map(self._tasks(index))
        console = Console(stderr=True)
        hidden, total = not can_redraw(console), len(self._shards)
        return track(reports, "Read shards", total, console=console, transient=True, disable=hidden)

    def _check_partition(self, reports: list[ShardReport]) -> Verification:
        """Check that image ids are unique, and that every patient is in one split.

        Identical images and uneven labels are no errors; the result describes them.
        """
        empty = contents_schema(self._manifest["labels"]).empty_table()
        contents = [empty, *(report.contents for report in reports)]
        examples: pd.DataFrame = pa.concat_tables(contents).to_pandas()
        self._findings.checked[Check.PARTITION] += len(examples)
        firsts = examples.drop_duplicates("image_id").set_index("image_id")
        for row in examples[examples.duplicated("image_id")].to_dict("records"):
            first = firsts.loc[row["image_id"]]
            message = f"the same image_id as record {first['record']} of {first['shard']}"
            location = row["shard"], row["record"], None, row["image_id"]
            self._findings.add(Check.PARTITION, message, *location)
        # An option of the run keeps studies together instead of patients.
        group = "study" if self._manifest["options"].get("group_by") == "study" else "patient"
        pairs = examples.drop_duplicates([f"{group}_id", "split"])
        divided = pairs[pairs.duplicated(f"{group}_id", keep=False)]
        for name, rows in divided.groupby(f"{group}_id"):
            locations = [
                f"{row['shard']} record {row['record']}" for row in rows.to_dict("records")
            ]
            message = f"is in {len(rows)} splits: {', '.join(locations)}"
            self._findings.add(Check.PARTITION, f"{group} {show_id(name)} {message}")
        pairs = examples.drop_duplicates(["image", "split"])
        across = pairs.loc[pairs.duplicated("image"), "image"].nunique()
        splits = self._summarize(examples, reports)
        return Verification(
            self._findings, splits, int(examples.duplicated("image").sum()), int(across)
        )

    def _summarize(self, examples: pd.DataFrame, reports: list[ShardReport]) -> pd.DataFrame:
        """Return the table of splits; compare its patients with the manifest."""
        splits: dict[str, dict[str, Any]] = {}
        columns = [label_column(label) for label in self._manifest["labels"]]
        for name, described in self._manifest["splits"].items():
            own = [report for report in reports if report.split == name]
            rows = examples[examples["split"] == name]
            readable = [report for report in own if report.bytes is not None]
            splits[name] = {
                "patients": rows["patient_id"].nunique(),
                "shards": len(readable),
                "slices": len(rows),
                "MB": sum(report.bytes or 0 for report in readable) / 1e6,
                "labeled": int((rows[columns] >= 0).all(axis=1).sum()),
                **(rows[columns] == 1).sum(),
            }
            if len(readable) == len(own) and sum(r.records for r in own) == len(rows):
                patients, expected = splits[name]["patients"], described["patients"]
                path: KeyPath = ["splits", name, "patients"]
                self._findings.compare(Check.COUNTS, path, patients, expected, MANIFEST)
        return pd.DataFrame.from_dict(splits, orient="index")
