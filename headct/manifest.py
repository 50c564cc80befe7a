"""Model of manifest.json for readers of shards; errors name the invalid value in one line."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from headct.errors import UsageError
from headct.json_documents import PRINTABLE, check_document, key_path, must, parse_json
from headct.layout import (
    INDEX,
    MANIFEST,
    MAX_LABEL_LENGTH,
    MAX_LABELS,
    ORDINAL,
    REJECTS,
    SCHEMA_VERSION,
    UNLABELED_SPLIT,
)
from headct.printable import LONGEST_SHOWN, shown

Path = list[str | int]  # of a value in the manifest


def _different(values: list[Any]) -> list[Any]:
    if len({*values}) < len(values):
        raise ValueError("has a value twice")
    return values


Count = Annotated[
    int, Field(strict=True, ge=0, le=(1 << 53) - 1), must("a whole number, 0 or more")
]
Pixels = Annotated[
    int, Field(strict=True, ge=1, le=8192), must("a whole number of pixels from 1 to 8192")
]
Hounsfield = Annotated[
    float,
    Field(strict=True, ge=-100000, le=100000),
    must("a number of HU from -100000 to 100000, or null"),
]
Width = Annotated[
    float,
    Field(strict=True, gt=0, le=1000000),
    must("a number of HU above 0, up to 1000000, or null"),
]
Name = Annotated[
    str,
    Field(min_length=1, max_length=MAX_LABEL_LENGTH),
    PRINTABLE,
    must("printable text of 1 to 100 characters"),
]
Sha256 = Annotated[
    str,
    Field(pattern="^[0-9a-f]{64}$"),
    must("64 hexadecimal digits in lower case"),
]
FileName = Annotated[
    str,
    Field(max_length=200, pattern=r"^[^./\\:][^/\\:]*$"),
    PRINTABLE,
    must("the name of a file in the same folder"),
]
SplitName = Annotated[
    str,
    Field(max_length=64, pattern="^[A-Za-z0-9_][A-Za-z0-9_.-]*$"),
    must("a name of up to 64 letters, digits, '_', '-' and '.'"),
]
Labels = Annotated[
    list[Name],
    Field(max_length=MAX_LABELS),
    AfterValidator(_different),
    must(f"a list of up to {MAX_LABELS} different labels"),
]
Counts = Annotated[dict[str, Count], must("an object of whole numbers")]
LabelCounts = Annotated[dict[str, Count] | None, must("an object with a whole number per label")]
Options = Annotated[dict[str, Any], must("an object of options")]


@dataclass(frozen=True)
class Window:
    """A display window in Hounsfield units; without numbers if files had their own windows."""

    name: Name
    center: Hounsfield | None
    width: Width | None


Windows = Annotated[
    list[Annotated[Window, must("an object with name, center and width")]],
    Field(max_length=100),
    must("a list of up to 100 windows"),
]


def _zero_for_null(value: Any) -> Any:
    """Return 0 for null, the value in manifests of windowed images."""
    return 0 if value is None else value


@dataclass(frozen=True)
class ImageSpec:
    """The stored image: [height, width, channels] of `dtype` (uint8 or uint16).

    A uint16 image holds Hounsfield units: HU = value + hu_offset.
    """

    height: Pixels
    width: Pixels
    channels: Annotated[int, Field(strict=True, ge=1, le=4), must("a whole number from 1 to 4")]
    dtype: Annotated[Literal["uint8", "uint16"], must("uint8 or uint16")] = "uint8"
    hu_offset: Annotated[Hounsfield, BeforeValidator(_zero_for_null)] = 0.0

    @property
    def is_hounsfield(self) -> bool:
        """Whether values are Hounsfield units: no window is applied yet."""
        return self.dtype == "uint16"


@dataclass(frozen=True)
class FileEntry:
    """A file next to the shards."""

    bytes: Count
    sha256: Sha256


@dataclass(frozen=True)
class ShardEntry:
    """A shard of a split; `label_counts` has the positives per label, if known."""

    file: FileName
    examples: Count
    bytes: Count
    sha256: Sha256
    label_counts: LabelCounts = None


@dataclass(frozen=True)
class SplitEntry:
    """A split; `label_counts` has the positives per label, if known."""

    examples: Count
    patients: Count
    shards: Annotated[
        list[Annotated[ShardEntry, must("an object with file, examples, bytes and sha256")]],
        must("a list of shards"),
    ]
    label_counts: LabelCounts = None


@dataclass(frozen=True)
class Manifest:
    """The manifest of a shard directory.

    Attributes:
        schema_version: of the manifest.
        labels: in the order of an example's values.
        windows: one per channel; none in shards of Hounsfield units.
        image: the stored image.
        splits: by name.
        files: other files in the directory, by name.
        options: of the pipeline's run.
        image_id: the source of unique image ids.
        label_level: what the label file's ids name: image, series, study or patient; all slices of
            a series, study or patient have its labels. None without labels, and in older manifests.
    """

    schema_version: Annotated[int, Field(strict=True), must("1")]
    labels: Labels
    windows: Windows
    image: Annotated[ImageSpec, must("an object with height, width and channels")]
    splits: Annotated[
        dict[
            SplitName, Annotated[SplitEntry, must("an object with examples, patients and shards")]
        ],
        Field(min_length=1),
        must(
            "an object with a split or more; a name is up to 64 letters, digits, '_', '-' and '.'"
        ),
    ]
    files: Annotated[
        dict[str, Annotated[FileEntry, must("an object with bytes and sha256")]],
        must("an object of files"),
    ] = field(default_factory=dict)
    options: Options = field(default_factory=dict)
    image_id: Any = None
    label_level: Annotated[
        Literal["image", "series", "study", "patient"] | None,
        must("image, series, study, patient or null"),
    ] = None

    @property
    def patient_ids(self) -> str:
        """Kind of patient ids; every hash key is a kind of its own. Empty if unknown.

        Ids of the same kind are comparable between directories, except ordinals.
        """
        options = self.options
        kind, key = options.get("identifiers"), options.get("identifier_key_check")
        if kind == "hash":
            return f"hash {key}"[:LONGEST_SHOWN] if key else ORDINAL
        return kind if kind in ("keep", ORDINAL) else ""

    @property
    def image_ids(self) -> str:
        """Kind of image ids, likewise."""
        kind = self.options.get("image_id")
        if kind == "auto" and self.image_id == "sop_instance_uid":
            return self.patient_ids if self.patient_ids != "keep" else "sop_instance_uid"
        if kind == "auto":
            return "file_name"
        return kind if kind in ("file_name", "sop_instance_uid", ORDINAL) else ""


def parse_manifest(data: bytes, name: str, model: type[Manifest] = Manifest) -> Manifest:
    """Parse a manifest; check that its values are valid and consistent.

    Args:
        data: content of the file.
        name: of the file, for messages.
        model: a class that may require more keys.

    Raises:
        UsageError: wrong version, an invalid value, or contradictory values.
    """
    document = parse_json(data, name)
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:  # other versions may differ in every key
        raise UsageError(
            f"{name}: schema_version {shown(version)}; this version reads {SCHEMA_VERSION}"
        )
    manifest: Manifest = check_document(document, model, name)
    for path, value, requirement in _contradictions(manifest):
        raise UsageError(f"{name}: {key_path(path)}: {shown(value)}: must {requirement}")
    return manifest


def _contradictions(manifest: Manifest) -> Iterator[tuple[Path, Any, str]]:
    """Yield the values that contradict others: path, value, and what the value must be or do."""
    names = {MANIFEST, INDEX, REJECTS}
    for split, entry in manifest.splits.items():
        path: Path = ["splits", split]
        examples = sum(shard.examples for shard in entry.shards)
        if entry.examples != examples:
            yield [*path, "examples"], entry.examples, f"be {examples}, as its shards have"
        yield from _excessive_labels(path, entry, manifest.labels)
        for number, shard in enumerate(entry.shards):
            here: Path = [*path, "shards", number]
            yield from _excessive_labels(here, shard, manifest.labels)
            if shard.file in names:
                yield [*here, "file"], shard.file, "be a name of its own"
            names.add(shard.file)
        if entry.label_counts and all(shard.label_counts for shard in entry.shards):
            totals = Counter[str]()
            for shard in entry.shards:
                totals.update(shard.label_counts)
            for label in entry.label_counts.keys() | totals.keys():
                stated = entry.label_counts.get(label, 0)
                if stated != totals[label]:
                    where = [*path, "label_counts", label]
                    yield where, stated, f"be {totals[label]}, as its shards have"
        if not manifest.labels and split != UNLABELED_SPLIT and entry.examples:
            yield ["labels"], manifest.labels, f"name the labels of {split}"


def _excessive_labels(
    path: Path, entry: SplitEntry | ShardEntry, labels: list[str]
) -> Iterator[tuple[Path, Any, str]]:
    """Yield unknown labels, and counts above the number of examples."""
    here = [*path, "label_counts"]
    for label, positives in (entry.label_counts or {}).items():
        if label not in labels:
            yield here, label, "be one of the labels"
        elif positives > entry.examples:
            yield [*here, label], positives, f"be at most {entry.examples}, the examples"
