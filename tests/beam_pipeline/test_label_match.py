from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipeline.planning import label_match
from beam_pipeline.planning.image_ids import image_keys
from beam_pipeline.planning.label_match import (
    NO_LABEL,
    FilePlaces,
    LabelForm,
    LabelIndex,
    LabelMatch,
    check_labels_fit,
    match_labels,
    settle_repeated,
)
from beam_pipeline.planning.labels import PROBLEMS, Labels
from beam_pipeline.planning.pseudonyms import name_of
from headct.errors import UsageError
from headct.reasons import Reason

UIDS = ["1.2.826.0.1.10", "1.2.826.0.1.11", "1.2.826.0.1.12", "1.2.826.0.1.13"]
FLAT = [b"ID_1.dcm", b"ID_2.dcm", b"ID_3.dcm", b"ID_4.dcm"]
NESTED = [b"a/s1/IM0001", b"a/s2/IM0001", b"b/s1/IM0001", b"b/s1/IM0002.dcm"]


def chunked(texts: Sequence[str]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(texts[:2], pa.string()), pa.array(texts[2:], pa.string())])


def match(
    labels: Sequence[str], files: Sequence[bytes], used: Iterable[int] | None = None
) -> LabelMatch:
    """Match labels and files, the SOP Instance UIDs of which are UIDS."""
    index = LabelIndex.of(chunked(labels))
    places = FilePlaces(index)
    for file in files:  # each a part of the inventory
        places.add(pa.array([file], pa.binary()))
    slices = np.array([*(range(len(files)) if used is None else used)])
    keys = image_keys(pa.array(UIDS[: len(files)], pa.string()))
    return match_labels(places.join(), slices, len(labels), lambda: index.find(keys))


@pytest.mark.parametrize(
    ("files", "labels", "form", "places"),
    [
        (FLAT, ["ID_2", "ID_1", "ID_9"], LabelForm.NAME, [1, 0, -1, -1]),
        (FLAT, ["ID_2.dcm", "ID_1", "ID_3.png"], LabelForm.NAME, [1, 0, 2, -1]),
        (FLAT, ["./ID_2", "ID_1"], LabelForm.NAME, [1, 0, -1, -1]),
        (FLAT, UIDS[::-1], LabelForm.UID, [3, 2, 1, 0]),
        (FLAT, [f"{uid}.dcm" for uid in UIDS], LabelForm.UID, [0, 1, 2, 3]),
        ([b"a/x.ct", b"b/x.v2"], ["x.v2", "x.ct"], LabelForm.FULL_NAME, [1, 0]),
        ([b"a/x.ct", b"a/x.v2"], ["a/x.v2", "a/x.ct"], LabelForm.FULL_PATH, [1, 0]),
        (NESTED, ["b/s1/IM0001", "a/s1/IM0001.dcm"], LabelForm.PATH, [1, -1, 0, -1]),
        (NESTED, [r"b\s1\IM0001", r".\a\s1\IM0001"], LabelForm.PATH, [1, -1, 0, -1]),
        (NESTED, ["/b/s1/IM0002.DCM"], LabelForm.PATH, [-1, -1, -1, 0]),
        (NESTED, ["b/s1/IM0002"], LabelForm.PATH, [-1, -1, -1, 0]),
        (NESTED, ["IM0002", "x"], LabelForm.NAME, [-1, -1, -1, 0]),
        (NESTED, UIDS, LabelForm.UID, [0, 1, 2, 3]),
        ([b"caf\xe9.dcm"], [r"caf\xe9"], LabelForm.NAME, [0]),
    ],
)
def test_labels_are_joined_by_what_their_ids_are(
    files: list[bytes], labels: list[str], form: LabelForm, places: list[int]
) -> None:
    found = match(labels, files)
    assert (found.form, found.places.tolist()) == (form, places)
    assert not found.shared.any()


def test_the_form_that_fits_most_labels_is_taken_and_the_others_labels_have_no_file() -> None:
    files = [b"a/ID_1", b"a/ID_2", b"a/ID_3"]
    found = match(["a/ID_1", "ID_2", "a/ID_3"], files)
    assert (found.form, found.places.tolist()) == (LabelForm.PATH, [0, -1, 2])
    equal = match(["a/ID_1", "ID_3"], files)
    assert equal.form is LabelForm.NAME  # the first of two that fit as well


def test_a_label_of_several_slices_is_of_none() -> None:
    found = match(["IM0001", "IM0002"], NESTED)
    assert found.form is LabelForm.NAME
    assert found.shared.tolist() == [True, False]
    # Copies, and files that are no slices, do not count.
    assert not match(["IM0001"], NESTED, used=[0, 3]).shared.any()


def test_paths_are_better_than_a_name_that_several_slices_have() -> None:
    assert match(["IM0001", "b/s1/IM0002"], NESTED).form is LabelForm.PATH


def test_labels_of_files_that_are_no_slices_are_joined_too() -> None:
    found = match(["b/s1/IM0002"], NESTED, used=[0])
    assert (found.form, found.places.tolist()) == (LabelForm.PATH, [-1, -1, -1, 0])
    assert match(["x"], FLAT).is_empty
    assert not found.is_empty


def test_uids_are_only_asked_for_where_another_form_leaves_slices_and_labels_over() -> None:
    def fail() -> Any:
        pytest.fail("no UID is needed")

    every = {LabelForm.NAME: np.array([0, 1, NO_LABEL], np.int32)}
    assert match_labels(every, np.arange(3), 2, fail).form is LabelForm.NAME  # all labels
    assert match_labels(every, np.arange(2), 9, fail).form is LabelForm.NAME  # all slices


names = st.text(st.sampled_from("ab1.~ é"), min_size=1).filter(lambda text: text not in ("..", "."))


@given(st.lists(names, min_size=1, max_size=3))
def test_a_suffix_is_what_name_of_says(parts: list[str]) -> None:
    path = "/".join(parts)
    folder = "".join(path.rpartition("/")[:2])
    ids = label_match._ids_of(pa.array([path.encode()], pa.binary()))
    expected = [name_of(path), parts[-1], folder + name_of(path), path]
    assert [array[0].as_py() for array in ids.values()] == [*map(plain, expected)]
    assert [*ids] == [*LabelForm][:4]


def plain(path: str) -> str:
    return str(label_match.plain_ids(pa.array([path]))[0].as_py())


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (r"a\b\c.dcm", "a/b/c"),
        ("a.b", "a.b"),
        ("1.2.840.1", "1.2.840.1"),
        (".dcm", ".dcm"),
        ("a/.png", "a/.png"),
        ("a.JPG", "a"),
        ("./a/b", "a/b"),
        (r".\a\b", "a/b"),
        ("/a", "a"),
        ("././/a", "a"),
        ("../a", "../a"),
        (".a/b", ".a/b"),
    ],
)
def test_a_path_is_the_same_however_it_is_written(written: str, found: str) -> None:
    assert plain(written) == found


def test_ids_that_differ_only_in_how_they_are_written_must_not_contradict() -> None:
    ids = ["a/1", "b/1", r"a\1", "./b/1.dcm", "c"]
    values = np.array([[0], [1], [1], [1], [0]], np.int8)
    labels = Labels(("any",), chunked(ids), values, np.full(5, -1, np.int8))
    settled = settle_repeated(labels, LabelIndex.of(labels.image_ids))
    conflict = next(n for n, (why, _) in enumerate(PROBLEMS) if why is Reason.LABEL_CONFLICT)
    assert settled.problems.tolist() == [conflict, -1, conflict, -1, -1]
    assert labels.problems.tolist() == [-1] * 5


def test_no_labels_are_found_among_none() -> None:
    assert (
        LabelIndex.of(pa.chunked_array([pa.array([], pa.string())]))
        .find(np.array([1, 2], np.uint64))
        .tolist()
        == [NO_LABEL] * 2
    )


LABELS = chunked([f"ID_{number:03}" for number in range(100)])


def check(
    paths: Iterable[str], uids: Sequence[str] = (), ids: pa.ChunkedArray = LABELS, **more: Any
) -> None:
    encoded = (path.encode() for path in paths)
    check_labels_fit(ids, "labels.csv", encoded, lambda _: uids, **more)


def test_one_label_in_common_is_enough_and_ends_the_search() -> None:
    def paths() -> Iterator[str]:
        yield from (f"other_{number}" for number in range(label_match._NAMES_AT_A_TIME))
        yield "some/where/ID_099.dcm"
        yield from (f"more_{number}" for number in range(label_match._NAMES_AT_A_TIME - 1))
        pytest.fail("no more names are needed")

    check(paths())


def test_labels_of_other_files_are_refused_with_an_id_of_each() -> None:
    paths = [f"in/slice-{number}" for number in range(25_000)]
    with pytest.raises(UsageError, match="like 'ID_000', those of the files like 'in/slice-0'"):
        check(paths, ["1.2"])
    check([*paths, "ID_050"])


def test_a_hidden_name_is_not_shown() -> None:
    with pytest.raises(UsageError, match="its ids are like 'ID_000'; they may be") as refused:
        check(["slice-0"], hidden=True)
    assert "slice-0" not in str(refused.value)


def test_all_labels_are_compared_before_there_is_none() -> None:
    parts = [LABELS.chunk(1)[first : first + 7] for first in range(0, 98, 7)]
    check(["slice-1", "ID_098"], ids=pa.chunked_array(parts))
    with pytest.raises(UsageError, match="no image of label file labels"):
        check(["slice-1", "slice-2"], ids=pa.chunked_array(parts))


def test_labels_may_be_of_uids_that_only_headers_have() -> None:
    check(["IM0001", "IM0002"], ["1.2", "ID_007"])  # of RSNA, whose UIDs are none
    with pytest.raises(UsageError):
        check(["IM0001", "IM0002"], ["1.2", "1.3"])
    check(["IM0001", "IM0002"], ["1.2"], ids=chunked(UIDS))  # of others, perhaps


def test_the_files_whose_uids_are_compared_are_spread_over_the_input() -> None:
    asked: list[bytes] = []

    def read_uids(paths: Sequence[bytes]) -> list[str]:
        asked.extend(paths)
        return ["ID_007"]

    paths = [f"slice-{number}".encode() for number in range(25_000)]
    check_labels_fit(LABELS, "labels.csv", paths, read_uids)
    assert len(asked) == label_match._PEEKED
    assert (asked[0], asked[-1]) == (paths[0], paths[-1])
