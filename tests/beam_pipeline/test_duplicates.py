from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import config
from pydicom.uid import ImplicitVRLittleEndian

from beam_pipeline.options import Options
from beam_pipeline.planning.duplicates import (
    NOT_IDENTICAL,
    IdenticalPixels,
    PixelRange,
    compare_pixels,
    count_identical,
    find_candidates,
    join_groups,
)
from beam_pipeline.planning.inventory import inspect_part, list_parts
from beam_pipeline.shards.unfinished import Unfinished
from beam_pipeline.workers import Watch
from headct.errors import StoreError
from headct.layout import inventory_table
from headct.stores import Folder, InputFiles
from headct.stores.local import LocalStore

WriteSlice = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, write_slice: WriteSlice) -> Path:
    """a and b have the same pixels, c their middle rows only, d and e another same, f but a pixel.

    d, e and f are flat in the middle.
    """
    folder = tmp_path / "in"
    pixels = np.random.default_rng(0).integers(0, 999, (256, 256)).astype(np.int16)
    write_slice(folder / "a.dcm", pixels)
    write_slice(folder / "b.dcm", pixels, PatientID="another", RescaleIntercept="-1000.00")
    corner = pixels.copy()
    corner[0, 0] += 1
    write_slice(folder / "c.dcm", corner)
    flat = pixels.copy()
    flat[64:192] = 5
    write_slice(folder / "d.dcm", flat)
    write_slice(folder / "e.dcm", flat)
    other = flat.copy()
    other[255, 255] += 1
    write_slice(folder / "f.dcm", other)
    return folder


def inspect(folder: Path) -> dict[str, tuple[int, PixelRange]]:
    """Each file's fingerprint, and where its pixels are."""
    options = Options.of(input=str(folder), output=str(folder.parent / "out"))
    assert len([*list_parts(options.files)]) == 1
    inspect_part(0, Watch(), options=options)
    table = Unfinished(Folder(options.files.output)).read(inventory_table(0))
    found = {}
    for row in table.to_pylist():
        source = row["source"].decode()
        pixels = PixelRange(source, row["pixel_offset"], row["pixel_bytes"])
        found[source] = row["fingerprint"], pixels
    return found


def compare(inventory: dict[str, tuple[int, PixelRange]], folder: Path) -> dict[str, int]:
    """For each candidate, the number of the files that it is like."""
    candidates = find_candidates(np.array([f for f, _ in inventory.values()], np.uint64))
    ranges = [[*inventory.values()][place][1] for place in candidates]
    identical = compare_pixels(ranges, InputFiles(str(folder)))
    return dict(zip((found.source for found in ranges), identical.tolist(), strict=True))


def test_files_with_equal_pixels_are_found_and_no_others(folder: Path) -> None:
    inventory = inspect(folder)
    a, b, c, d, e, f = (fingerprint for fingerprint, _ in inventory.values())
    assert a == b == c  # the middle rows are equal
    assert d == e != f  # nothing to see in the middle: all rows count
    identical = compare(inventory, folder)
    assert identical["a.dcm"] == identical["b.dcm"] != NOT_IDENTICAL
    assert identical["d.dcm"] == identical["e.dcm"] not in (NOT_IDENTICAL, identical["a.dcm"])
    assert identical["c.dcm"] == NOT_IDENTICAL
    assert "f.dcm" not in identical


def test_the_encoding_of_the_header_does_not_matter(folder: Path) -> None:
    with config.disable_value_validation():
        dataset = pydicom.dcmread(folder / "a.dcm", force=True)
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        dataset.save_as(folder / "g.dcm", implicit_vr=True, little_endian=True)
    identical = compare(inspect(folder), folder)
    assert identical["g.dcm"] == identical["a.dcm"] != NOT_IDENTICAL


def test_a_candidate_that_vanished_is_identical_to_none(folder: Path) -> None:
    inventory = inspect(folder)
    (folder / "b.dcm").unlink()
    identical = compare(inventory, folder)
    assert [identical[f"{name}.dcm"] for name in "abc"] == [NOT_IDENTICAL] * 3
    assert identical["d.dcm"] == identical["e.dcm"] != NOT_IDENTICAL


def test_candidates_that_cannot_be_read_are_not_identical_to_each_other(folder: Path) -> None:
    inventory = inspect(folder)
    for name in ("a.dcm", "b.dcm", "d.dcm"):
        (folder / name).unlink()
    (folder / "d.dcm").mkdir()
    assert set(compare(inventory, folder).values()) == {NOT_IDENTICAL}


def test_a_store_that_fails_while_pixels_are_compared_is_no_verdict(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inventory = inspect(folder)
    read = LocalStore.read

    def fail_at_b(store: LocalStore, path: str, start: int = 0, length: int | None = None) -> bytes:
        if path.endswith("b.dcm"):
            raise StoreError("the disk", "is on fire")
        return read(store, path, start, length)

    monkeypatch.setattr(LocalStore, "read", fail_at_b)
    with pytest.raises(StoreError, match="the disk: is on fire"):
        compare(inventory, folder)


def test_nothing_to_compare_gives_nothing(tmp_path: Path) -> None:
    assert compare_pixels([], InputFiles(str(tmp_path))).tolist() == []


def test_candidates_are_places_whose_fingerprint_is_there_twice() -> None:
    fingerprints = np.array([7, 0, 9, 7, 0, 2**64 - 1, 8, 2**64 - 1, 7], np.uint64)
    assert find_candidates(fingerprints).tolist() == [0, 3, 5, 7, 8]
    assert find_candidates(np.empty(0, np.uint64)).tolist() == []


@given(st.lists(st.integers(0, 6)))
def test_candidates_are_what_counting_finds(fingerprints: list[int]) -> None:
    counts = Counter(fingerprints)
    expected = [i for i, found in enumerate(fingerprints) if found and counts[found] > 1]
    assert find_candidates(np.array(fingerprints, np.uint64)).tolist() == expected


def sets(*numbers: int) -> np.ndarray:
    """Sets of identical slices; 0 is NOT_IDENTICAL."""
    return np.array(numbers, np.int64) - 1


def test_groups_that_share_identical_slices_become_one() -> None:
    patients = np.array([0, 0, 1, 2, 2, 3, 4])
    assert join_groups(patients, sets(1, 0, 1, 2, 3, 3, 0)).tolist() == [0, 0, 0, 1, 1, 1, 2]
    chain = sets(1, 2, 2, 2, 3, 3, 0)  # 0 with 1 and 2, 2 with 3
    assert join_groups(patients, chain).tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert join_groups(patients[:0], sets()).tolist() == []


def test_groups_are_numbered_by_their_first_slice() -> None:
    assert join_groups(np.array([3, 1, 3, 0]), sets(0, 1, 0, 1)).tolist() == [0, 1, 0, 1]


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(-1, 4)), min_size=1))
def test_joined_groups_are_the_components_of_a_graph(slices: list[tuple[int, int]]) -> None:
    groups, identical = np.array(slices, np.int64).T
    joined = join_groups(groups, identical)
    lowest = {("group", group): group for group in range(8)}  # of the nodes that are linked
    lowest |= {("set", number): 8 + number for number in range(5)}
    links = [(("group", group), ("set", number)) for group, number in slices if number >= 0]
    for one, other in links * 13:  # on each round, from one node to the next at least
        lowest[one] = lowest[other] = min(lowest[one], lowest[other])
    component = np.array([lowest["group", group] for group, _ in slices])
    same = joined[:, None] == joined[None]
    np.testing.assert_array_equal(same, component[:, None] == component[None])
    assert [*dict.fromkeys(joined.tolist())] == [*range(joined.max() + 1)]


def test_identical_slices_are_counted_with_their_conflicts() -> None:
    identical = sets(1, 1, 2, 2, 2, 0, 0)
    patients = np.array([0, 1, 2, 2, 2, 0, 1])
    labels = np.array([[0, 0], [1, 0], [1, 0], [1, 0], [1, 0], [0, 0], [1, 0]], np.int8)
    assert count_identical(identical, patients, labels) == IdenticalPixels(
        groups=2, slices=5, groups_across_patients=1, groups_with_conflicting_labels=1
    )
    assert count_identical(sets(*[0] * 7), patients, labels) == IdenticalPixels()


def test_a_slice_whose_duplicate_was_rejected_is_no_group() -> None:
    patients, labels = np.array([1, 1, 2, 3]), np.array([[0], [0], [0], [1]], np.int8)
    assert count_identical(sets(1, 0, 1, 2), patients, labels) == IdenticalPixels(
        groups=1, slices=2, groups_across_patients=1
    )
