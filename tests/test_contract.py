"""The shard directory: layout.py, what the pipeline writes, and the README agree."""

import ast
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from beam_pipeline.command_line import parse_options
from beam_pipeline.finish import finish_directory
from beam_pipeline.options import LeakCheck, Options
from beam_pipeline.shards.formats import decode_example
from headct import layout
from headct.errors import UsageError
from headct.json_documents import check_document
from headct.layout import ShardFile
from headct.manifest import Labels, Manifest, parse_manifest
from headct.tfrecord import read_records
from tests.beam_pipeline.dicom_files import make_dicom
from tests.beam_pipeline.steps import write_shards
from trainer.data.input_pipeline import TEXTS
from trainer.data.shards import PREPROCESSING, read_shard_directory

ROOT = Path(__file__).parents[1]
FEATURES = {feature.name: feature for feature in layout.EXAMPLE_FEATURES}
COLUMNS = {column.name: column for column in layout.INDEX_COLUMNS}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard directory of four slices in two folds, and a reject."""
    folder = tmp_path_factory.mktemp("contract")
    (folder / "in").mkdir()
    for patient in range(4):
        path = folder / "in" / f"ID_{patient}.dcm"
        path.write_bytes(make_dicom(PatientID=f"P{patient}"))
    (folder / "in" / "ID_4.dcm").write_bytes(b"no DICOM")
    rows = [f"ID_{slice_}_any,{slice_ % 2}" for slice_ in range(4)]
    (folder / "labels.csv").write_text("\n".join(["ID,Label", *rows]))
    options = Options.of(
        input=str(folder / "in"),
        labels=str(folder / "labels.csv"),
        output=str(folder / "out"),
        image_size=16,
        folds=2,
        leak_check=LeakCheck.OFF,  # all slices are the same
        max_reject_fraction=0.5,
    )
    finish_directory(write_shards(options), options)
    return folder / "out"


def manifest_of(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / layout.MANIFEST).read_text()))


def table(title: str) -> list[tuple[str, ...]]:
    """The rows of the README's table whose first column has a title."""
    _, _, rest = (ROOT / "README.md").read_text().partition(f"\n| {title} | ")
    lines = rest.split("\n\n")[0].splitlines()[2:]
    return [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in lines]


def test_a_directory_has_the_files_of_the_layout(written: Path) -> None:
    shards = {path.name for path in written.iterdir()} - {*layout.FILES, layout.CARD}
    assert {path.name for path in written.iterdir()} >= {*layout.FILES, layout.CARD}
    assert {ShardFile.parse(name).name for name in shards} == shards
    splits = {ShardFile.parse(name).split for name in shards}
    assert splits == {layout.fold_split(0), layout.fold_split(1)}


def test_the_toml_file_makes_the_same_directory(written: Path, tmp_path: Path) -> None:
    flags = ["--config", str(written / layout.CONFIG), "--output", str(tmp_path / "out")]
    options, _ = parse_options(flags)
    finish_directory(write_shards(options), options)
    for path in written.iterdir():
        if path.name not in (layout.MANIFEST, layout.CARD):
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    assert manifest_of(tmp_path / "out")["digest"] == manifest_of(written)["digest"]


def test_an_example_has_the_features_of_the_layout(written: Path) -> None:
    kinds = {"PNG": bytes, "string": bytes, "int64": int, "float32": float}
    for shard in written.glob(f"{layout.DATASET}-*"):
        with shard.open("rb") as file:
            for example in map(decode_example, read_records(file)):
                assert example.keys() == FEATURES.keys()
                for name, values in example.items():
                    assert {type(value) for value in values} == {kinds[FEATURES[name].dtype]}
                    wanted = [1 if size == "labels" else size for size in FEATURES[name].shape]
                    assert [len(values)] == (wanted or [1])


def test_features_json_has_the_features_of_the_layout(written: Path) -> None:
    described = json.loads((written / layout.FEATURES).read_text())
    assert list(described["featuresDict"]["features"]) == list(FEATURES)


def test_an_index_has_the_columns_of_the_layout(written: Path) -> None:
    schema = pq.read_schema(written / layout.INDEX)
    found = [(field.name, str(field.type)) for field in schema]
    assert found == [
        (column.name.replace(layout.LABEL_PLACEHOLDER, "any"), column.dtype)
        for column in layout.INDEX_COLUMNS
    ]


def test_a_manifest_and_a_reject_have_the_keys_of_the_layout(written: Path) -> None:
    assert manifest_of(written).keys() == {*layout.MANIFEST_CONTENT, *layout.MANIFEST_ORIGIN}
    rejects = (written / layout.REJECTS).read_text().splitlines()
    assert [tuple(json.loads(reject)) for reject in rejects] == [layout.REJECT_COLUMNS]


def test_the_readme_has_the_files_of_the_layout() -> None:
    names = [name for cells in table("file") for name in re.findall(r"`([^`]+\.[^`]+)`", cells[0])]
    shards = [name for name in names if name.startswith(f"{layout.DATASET}-")]
    assert [ShardFile.parse(name).name for name in shards] == shards != []
    assert sorted({*names} - {*shards}) == sorted([*layout.FILES, layout.CARD])


def test_the_readme_has_the_features_of_the_layout() -> None:
    def dtype(feature: layout.Feature) -> str:
        return " ".join([feature.dtype, *([f"[{feature.shape[0]}]"] if feature.shape else [])])

    assert table("feature") == [
        (f"`{feature.name}`", dtype(feature), feature.meaning)
        for feature in layout.EXAMPLE_FEATURES
    ]


def test_the_readme_has_the_columns_of_the_layout() -> None:
    assert table("column") == [
        (f"`{column.name}`", column.dtype, column.meaning) for column in layout.INDEX_COLUMNS
    ]


def test_a_fold_has_a_number_and_other_splits_have_none() -> None:
    assert [layout.fold_number(layout.fold_split(number)) for number in (0, 12)] == [0, 12]
    for other in (layout.UNLABELED_SPLIT, layout.HOLDOUT_SPLIT, "fold", "fold0x"):
        assert layout.fold_number(other) is None


def test_the_trainer_reads_features_of_the_layout() -> None:
    assert {layout.IMAGE, layout.LABEL, layout.POSITION, *TEXTS} <= FEATURES.keys()


def test_the_model_of_a_manifest_asks_for_no_more_than_a_manifest_has(written: Path) -> None:
    names = {field.name for field in dataclasses.fields(Manifest)}
    assert names <= {*layout.MANIFEST_CONTENT, *layout.MANIFEST_ORIGIN}
    manifest = parse_manifest((written / layout.MANIFEST).read_bytes(), layout.MANIFEST)
    assert manifest.schema_version == layout.SCHEMA_VERSION
    assert {*PREPROCESSING} <= manifest.options.keys()


def test_the_trainer_opens_what_the_pipeline_wrote(written: Path) -> None:
    shards = read_shard_directory(written)
    assert [split.name for split in shards.folds()] == ["fold0", "fold1"]
    assert shards.preprocessing.keys() == {*PREPROCESSING}
    assert (shards.manifest.patient_ids, shards.manifest.image_ids) == ("ordinal", "file_name")
    examples = shards.examples(shards.folds())
    ids = examples.rows
    assert sorted(ids["image_id"]) == [f"ID_{patient}" for patient in range(4)]
    assert ids["patient_id"].nunique() == 4
    assert sorted(examples.label_values.iloc[:, 0]) == [0, 0, 1, 1]
    for name, records in ids.groupby("shard"):
        assert (shards.path / str(name)).stat().st_size == records["bytes"].sum()


def stated(package: str, declaration: str) -> Iterator[tuple[str, str]]:
    """Each text in the code of a package, but for the module that declares it: module, text."""
    for path in sorted((ROOT / package).rglob("*.py")):
        module = path.relative_to(ROOT / package).as_posix()
        if module != declaration:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield module, node.value


@pytest.mark.parametrize(
    ("package", "declaration", "more", "other"),
    [
        # `verify` has expectations of its own.
        ("beam_pipeline", "", {layout.LABEL_PREFIX, layout.CARD}, "verify"),
        # Predictions have columns label_..., and runs a report.html, too.
        ("trainer", "", set(), ""),
        ("headct", "layout.py", set(), ""),
    ],
)
def test_no_name_of_a_file_is_stated_twice(
    package: str, declaration: str, more: set[str], other: str
) -> None:
    names = {*layout.FILES, layout.UNFINISHED, *more}
    parts = (f".{layout.FILE_FORMAT}", "-of-")
    wrong = [
        (module, text)
        for module, text in stated(package, declaration)
        if module.partition("/")[0] != other
        if text.strip("/") in names or any(part in text for part in parts)
        if "\n" not in text and not text.endswith(".")  # a docstring
    ]
    assert not wrong


@pytest.mark.parametrize(
    "name",
    ["any", "$a$b", 'a "quoted" name', "a,b=c;d", "\u00e4", "\u8840", "x" * 100, "_", "0"],
)
def test_a_manifest_takes_whatever_a_label_may_be_called(name: str) -> None:
    layout.check_label_names([name])
    assert check_document([name], Labels, "f") == [name]


@pytest.mark.parametrize(
    "name",
    ["", "x" * 101, "\x1b[31m", "a\nb", "a\x85b", "\u2028", "\ud800", "\u202eb", " a", "a "],
    ids=ascii,
)
def test_a_label_that_no_terminal_can_show_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="want 1 to 100 printable characters") as caught:
        layout.check_label_names(["any", name])
    assert str(caught.value).isprintable()


def test_a_manifest_takes_as_many_labels_as_there_may_be() -> None:
    names = [f"label {number}" for number in range(layout.MAX_LABELS + 1)]
    layout.check_label_names(names[1:])
    assert check_document(names[1:], Labels, "f") == names[1:]
    with pytest.raises(UsageError, match="a list of 1001: must be a list of up to 1000"):
        check_document(names, Labels, "f")
    with pytest.raises(ValueError, match="there are 1001 classes; want at most 1000"):
        layout.check_label_names(names)
    with pytest.raises(ValueError, match="two classes are called 'any' and 'Any'"):
        layout.check_label_names(["any", "x", "Any"])
