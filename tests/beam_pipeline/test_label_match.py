from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from beam_pipeline.errors import UsageError
from beam_pipeline.planning import label_match
from beam_pipeline.planning.label_file import LabelFile
from beam_pipeline.planning.label_match import check_labels_fit
from beam_pipeline.planning.labels import Labels


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    lines = [f"ID_{number:03},0" for number in range(100)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,any", *lines]))
    return LabelFile(str(tmp_path / "labels.csv")).read()


def test_one_label_in_common_is_enough_and_ends_the_search(labels: Labels) -> None:
    def names() -> Iterator[str]:
        yield from (f"other_{number}" for number in range(label_match._NAMES_AT_A_TIME))
        yield "ID_099"
        yield from (f"more_{number}" for number in range(label_match._NAMES_AT_A_TIME - 1))
        pytest.fail("no more names are needed")

    check_labels_fit(labels, "labels.csv", names())


def test_labels_of_other_files_are_refused_with_an_id_of_each(labels: Labels) -> None:
    names = [f"slice-{number}" for number in range(25_000)]
    with pytest.raises(UsageError, match="like 'ID_000', those of the files like 'slice-0'"):
        check_labels_fit(labels, "labels.csv", names)
    check_labels_fit(labels, "labels.csv", [*names, "ID_050"])


def test_all_labels_are_compared_before_there_is_none(labels: Labels) -> None:
    parts = [labels.image_ids.chunk(0)[first : first + 7] for first in range(0, 100, 7)]
    labels = replace(labels, image_ids=pa.chunked_array(parts))
    check_labels_fit(labels, "labels.csv", ["slice-1", "ID_098"])
    with pytest.raises(UsageError, match="no image of label file labels"):
        check_labels_fit(labels, "labels.csv", ["slice-1", "slice-2"])
