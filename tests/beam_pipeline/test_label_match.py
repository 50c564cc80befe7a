from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipeline.options import ImageId, Options
from beam_pipeline.planning import join_labels, label_match
from beam_pipeline.planning.inventory import name_of
from beam_pipeline.planning.join_labels import Inventory
from beam_pipeline.planning.label_match import (
    LabelForm,
    check_labels_fit,
    image_keys,
    path_ids,
    path_keys,
)
from beam_pipeline.planning.labels import Labels, plain_ids
from headct.errors import UsageError
from headct.layout import ID_COLUMNS
from headct.stores import FileInfo, InputFiles

UIDS = ["1.2.826.0.1.10", "1.2.826.0.1.11", "1.2.826.0.1.12", "1.2.826.0.1.13"]
FLAT = [b"ID_1.dcm", b"ID_2.dcm", b"ID_3.dcm", b"ID_4.dcm"]
NESTED = [b"a/s1/IM0001", b"a/s2/IM0001", b"b/s1/IM0001", b"b/s1/IM0002.dcm"]
Match = tuple[LabelForm, list[int], list[bool]]


def match(
    labels: Sequence[str], files: Sequence[bytes], used: Iterable[int] | None = None
) -> Match:
    """Match labels and files, the SOP Instance UIDs of which are UIDS."""
    ids = plain_ids(pa.array(labels))
    frame = pd.DataFrame(path_keys(pa.array(files, pa.binary())))
    frame["sop_instance_uid"] = image_keys(pa.array(UIDS[: len(files)]))
    frame[[*ID_COLUMNS]] = 0
    texts = {column: ["some id"] for column in ID_COLUMNS}
    inventory = Inventory(None, [], frame, texts, 0)  # type: ignore[arg-type]
    slices = np.isin(np.arange(len(files)), [*(range(len(files)) if used is None else used)])
    values = np.zeros((len(ids), 1), np.int8)
    options = Options.of(input="in", output="out", identifiers="keep", image_id=ImageId.ORDINAL)
    form, found, shared = join_labels._match(
        inventory, slices, Labels(("any",), ids, values), options
    )
    return form, found.tolist(), shared.tolist()


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
    assert match(labels, files) == (form, places, [False] * len(labels))


def test_the_form_that_fits_most_labels_is_taken_and_the_others_labels_have_no_file() -> None:
    files = [b"a/ID_1", b"a/ID_2", b"a/ID_3"]
    assert match(["a/ID_1", "ID_2", "a/ID_3"], files)[:2] == (LabelForm.PATH, [0, -1, 2])
    assert match(["a/ID_1", "ID_3"], files)[0] is LabelForm.NAME  # of two that fit as well


def test_a_label_of_several_slices_is_of_none() -> None:
    form, _, shared = match(["IM0001", "IM0002"], NESTED)
    assert (form, shared) == (LabelForm.NAME, [True, False])
    # Copies, and files that are no slices, do not count.
    assert match(["IM0001"], NESTED, used=[0, 3])[2] == [False]
    assert match(["IM0001", "b/s1/IM0002"], NESTED)[0] is LabelForm.PATH


def test_labels_of_files_that_are_no_slices_are_joined_too() -> None:
    assert match(["b/s1/IM0002"], NESTED, used=[0])[:2] == (LabelForm.PATH, [-1, -1, -1, 0])


def test_uids_are_only_asked_for_where_another_form_leaves_slices_and_labels_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(join_labels, "_find_by_uid", lambda *_: pytest.fail("no UID is needed"))
    assert match(["ID_1", "ID_2"], FLAT)[0] is LabelForm.NAME  # all labels
    assert match(["ID_1", "ID_2", *UIDS], FLAT, used=[0, 1])[0] is LabelForm.NAME  # all slices


names = st.text(st.sampled_from("ab1.~ é"), min_size=1).filter(lambda text: text not in ("..", "."))


@given(st.lists(names, min_size=1, max_size=3))
def test_a_suffix_is_what_name_of_says(parts: list[str]) -> None:
    path = "/".join(parts)
    folder = "".join(path.rpartition("/")[:2])
    ids = path_ids(pa.array([path.encode()], pa.binary()))
    expected = [name_of(path), parts[-1], folder + name_of(path), path]
    assert [array[0].as_py() for array in ids.values()] == [*map(plain, expected)]
    assert [*ids] == [*LabelForm][:4]


def plain(path: str) -> str:
    return str(plain_ids(pa.array([path]))[0].as_py())


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


LABELS = pa.array([f"ID_{number:03}" for number in range(100)])


def check(
    paths: Iterable[str], uids: Sequence[str] = (), ids: pa.Array = LABELS, **options_: Any
) -> list[bytes]:
    """Check labels; returns the files whose ids were read."""
    asked: list[bytes] = []
    options = Options.of(input="in", output="out", labels="labels.csv", **options_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_match, "read_ids", lambda _, some: asked.extend(some) or uids)
        found = (FileInfo(path, 0, "") for path in paths)
        check_labels_fit(ids, options, InputFiles("in"), found)
    return asked


def test_one_label_in_common_is_enough_and_ends_the_search() -> None:
    def paths() -> Iterator[str]:
        yield from (f"other_{number}" for number in range(label_match._NAMES_AT_A_TIME))
        yield "some/where/ID_099.dcm"
        yield from (f"more_{number}" for number in range(label_match._NAMES_AT_A_TIME - 1))
        pytest.fail("no more names are needed")

    check(paths())


def test_labels_of_other_files_are_refused_with_an_id_of_each() -> None:
    paths = [f"in/slice-{number}" for number in range(25_000)]
    with pytest.raises(UsageError, match="form 'AA_000', the files like 'in/slice-0'; they"):
        check(paths, ["1.2"])
    check([*paths, "ID_050"])


def test_a_hidden_name_is_not_shown() -> None:
    with pytest.raises(UsageError, match="its ids have the form 'AA_000'; they may be") as refused:
        check(["slice-0"], image_id=ImageId.ORDINAL)
    assert "slice-0" not in str(refused.value)


def test_labels_may_be_of_uids_that_only_headers_have() -> None:
    check(["IM0001", "IM0002"], ["1.2", "ID_007"])  # of RSNA, whose UIDs are none
    with pytest.raises(UsageError):
        check(["IM0001", "IM0002"], ["1.2", "1.3"])
    check(["IM0001", "IM0002"], ["1.2"], ids=pa.array(UIDS))  # of others, perhaps
    check(["IM0001", "IM0002"], ["1.2"], label_level="patient")  # of few patients, perhaps


def test_the_files_whose_uids_are_compared_are_spread_over_the_input() -> None:
    paths = [f"slice-{number}" for number in range(25_000)]
    asked = check(paths, ["ID_007"])
    assert len(asked) == label_match._PEEKED
    with pytest.raises(UsageError, match="of 64 files so far; --label_level patient reads all"):
        check(paths, ["P1"])
    assert (asked[0], asked[-1]) == (b"slice-0", b"slice-24999")


@given(st.lists(st.text(max_size=8)))
def test_image_ids_are_equal_where_their_keys_are(image_ids: list[str]) -> None:
    keys = image_keys(pa.array(image_ids, pa.string()))
    assert keys.dtype == np.uint64
    same = [[one == other for other in image_ids] for one in image_ids]
    assert (keys[:, None] == keys[None]).tolist() == same


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_key_is_the_same_wherever_the_image_id_stands(kind: pa.DataType) -> None:
    one, other = image_keys(pa.array(["ID_1", "ID_2"], pa.string())).tolist()
    chunks = pa.chunked_array([["x", "ID_2"], [], ["ID_1"]], kind)
    assert image_keys(chunks)[1:].tolist() == [other, one]
    assert image_keys(pa.array(["x", "ID_1", "y"], kind).slice(1, 1)).tolist() == [one]
