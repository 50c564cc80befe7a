from collections.abc import Iterator
from pathlib import Path

import pytest

from beam_pipeline.errors import UsageError
from beam_pipeline.planning import label_match
from beam_pipeline.planning.label_match import check_labels_fit
from beam_pipeline.planning.labels import LabelFile


@pytest.fixture
def labels(tmp_path: Path) -> LabelFile:
    lines = [f"ID_{number:03},0" for number in range(100)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,any", *lines]))
    return LabelFile(str(tmp_path / "labels.csv"))


def test_one_label_in_common_is_enough_and_ends_the_search(labels: LabelFile) -> None:
    def names() -> Iterator[str]:
        yield from (f"other_{number}" for number in range(label_match._NAMES_AT_A_TIME))
        yield "ID_099"
        yield from (f"more_{number}" for number in range(label_match._NAMES_AT_A_TIME - 1))
        pytest.fail("no more names are needed")

    check_labels_fit(labels, names())


def test_labels_of_other_files_are_refused_with_an_id_of_each(labels: LabelFile) -> None:
    names = [f"slice-{number}" for number in range(25_000)]
    with pytest.raises(UsageError, match="like 'ID_000', those of the files like 'slice-0'"):
        check_labels_fit(labels, names)
    check_labels_fit(labels, [*names, "ID_050"])


def test_labels_are_read_to_their_end_before_there_is_none(
    labels: LabelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beam_pipeline.planning.labels._BLOCK_BYTES", 64)
    assert len(list(labels.image_ids())) > 5
    check_labels_fit(labels, ["slice-1", "ID_098"])
    with pytest.raises(UsageError, match="no image of label file"):
        check_labels_fit(labels, ["slice-1", "slice-2"])


def test_without_labels_there_is_nothing_to_compare(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,any\n")
    check_labels_fit(LabelFile(str(tmp_path / "labels.csv")), ["a"])
