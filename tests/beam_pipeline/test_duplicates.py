from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import config
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from beam_pipeline.options import Options
from beam_pipeline.planning import duplicates
from beam_pipeline.planning.duplicates import ALONE, count_identical, find_identical, join_groups
from beam_pipeline.planning.inventory import inspect_part, list_parts
from beam_pipeline.planning.join_labels import Inventory
from beam_pipeline.shards.unfinished import IdenticalPixels
from beam_pipeline.workers import Watch
from headct.errors import StoreError
from headct.stores.local import LocalStore
from tests.beam_pipeline.dicom_files import make_dicom

WriteSlice = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, write_slice: WriteSlice) -> Path:
    """a and b have the same pixels, c their middle and last rows only, i their middle rows only.

    d and e have the same other pixels, f theirs but one pixel.

    d, e and f are flat in the middle.
    """
    folder = tmp_path / "in"
    pixels = np.random.default_rng(0).integers(0, 999, (256, 256)).astype(np.int16)
    write_slice(folder / "a.dcm", pixels)
    write_slice(folder / "b.dcm", pixels, PatientID="another", RescaleIntercept="-1000.00")
    corner = pixels.copy()
    corner[0, 0] += 1
    write_slice(folder / "c.dcm", corner)
    corner[255, 255] += 1
    write_slice(folder / "i.dcm", corner)
    flat = pixels.copy()
    flat[64:192] = 5
    write_slice(folder / "d.dcm", flat)
    write_slice(folder / "e.dcm", flat)
    other = flat.copy()
    other[255, 255] += 1
    write_slice(folder / "f.dcm", other)
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int | None]]:
    """Compare pixels in this process; what is read of slices: file, and number of bytes."""

    class Pool:
        def __init__(self, function: Callable[..., Any], _options: Options) -> None:
            self.function = function

        def map(self, tasks: list[Any]) -> Iterator[Any]:
            return (self.function(task, Watch()) for task in reversed(tasks))

    asked: list[tuple[str, int | None]] = []
    read = LocalStore.read

    def note(store: LocalStore, path: str, start: int = 0, length: int | None = None) -> bytes:
        if path.endswith(".dcm"):
            asked.append((path[-5:], length))
        return read(store, path, start, length)

    monkeypatch.setattr(LocalStore, "read", note)
    monkeypatch.setattr(duplicates, "open_pool", Pool)
    monkeypatch.setattr(duplicates, "_FILES_A_TASK", 2)
    return asked


def inspect(folder: Path) -> tuple[Inventory, Options]:
    options = Options.of(input=str(folder), output=str(folder.parent / "out"))
    assert len([*list_parts(options)]) == 1
    inspect_part(0, Watch(), options=options)
    return Inventory.load(1, options), options


def compare(inventory: Inventory, options: Options) -> dict[str, int]:
    """For each file, the number of the files that it is like."""
    found = find_identical(inventory, inventory.files, options)
    ((_, table),) = inventory.read(np.ones(len(found), np.bool_), ["source"])
    return dict(zip((s.decode() for s in table["source"].to_pylist()), found.tolist(), strict=True))


def test_files_with_equal_pixels_are_found_and_no_others(folder: Path) -> None:
    inventory, options = inspect(folder)
    a, b, c, d, e, f, i = inventory.files["fingerprint"]
    assert a == b == c == i  # the middle rows are equal
    assert d == e != f  # nothing to see in the middle: all rows count
    identical = compare(inventory, options)
    assert identical["a.dcm"] == identical["b.dcm"] != ALONE
    assert identical["d.dcm"] == identical["e.dcm"] not in (ALONE, identical["a.dcm"])
    assert [identical[f"{name}.dcm"] for name in "cfi"] == [ALONE] * 3
    off = options.changed(leak_check="off")
    assert set(compare(inventory, off).values()) == {ALONE}


@pytest.mark.usefixtures("asked")
def test_the_encoding_of_the_header_does_not_matter(folder: Path) -> None:
    with config.disable_value_validation():
        dataset = pydicom.dcmread(folder / "a.dcm", force=True)
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        dataset.save_as(folder / "g.dcm", implicit_vr=True, little_endian=True)
    identical = compare(*inspect(folder))
    assert identical["g.dcm"] == identical["a.dcm"] != ALONE


def test_only_files_with_equal_middles_and_ends_are_read_whole(
    folder: Path, asked: list[tuple[str, int | None]]
) -> None:
    for name in ("g.dcm", "h.dcm"):  # deflated, so without fingerprints
        (folder / name).write_bytes(make_dicom(syntax=DeflatedExplicitVRLittleEndian))
    inventory, options = inspect(folder)
    asked.clear()
    identical = compare(inventory, options)
    some, whole = 1 << 14, 2 * 256 * 256
    assert sorted(asked) == sorted(
        [(f"{name}.dcm", some) for name in "abcdei"] + [(f"{name}.dcm", whole) for name in "abcde"]
    )
    assert identical["g.dcm"] == identical["h.dcm"] == identical["i.dcm"] == ALONE
    assert identical["a.dcm"] == identical["b.dcm"] != ALONE


@pytest.mark.usefixtures("asked")
def test_a_candidate_that_vanished_is_identical_to_none(folder: Path) -> None:
    inventory, options = inspect(folder)
    (folder / "b.dcm").unlink()
    identical = compare(inventory, options)
    assert [identical[f"{name}.dcm"] for name in "abc"] == [ALONE] * 3
    assert identical["d.dcm"] == identical["e.dcm"] != ALONE


@pytest.mark.usefixtures("asked")
def test_candidates_that_cannot_be_read_are_not_identical_to_each_other(folder: Path) -> None:
    inventory, options = inspect(folder)
    for name in ("a.dcm", "b.dcm", "d.dcm"):
        (folder / name).unlink()
    (folder / "d.dcm").mkdir()
    assert set(compare(inventory, options).values()) == {ALONE}


@pytest.mark.usefixtures("asked")
def test_a_store_that_fails_while_pixels_are_compared_is_no_verdict(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inventory, options = inspect(folder)
    read = LocalStore.read

    def fail_at_b(store: LocalStore, path: str, start: int = 0, length: int | None = None) -> bytes:
        if path.endswith("b.dcm"):
            raise StoreError("the disk", "is on fire")
        return read(store, path, start, length)

    monkeypatch.setattr(LocalStore, "read", fail_at_b)
    with pytest.raises(StoreError, match="the disk: is on fire"):
        compare(inventory, options)


def sets(*numbers: int) -> np.ndarray:
    """Sets of identical slices; 0 is ALONE."""
    return np.array(numbers, np.int64) - 1


def test_groups_that_share_identical_slices_become_one() -> None:
    patients = np.array([0, 0, 1, 2, 2, 3, 4])
    assert join_groups(patients, sets(1, 0, 1, 2, 3, 3, 0)).tolist() == [0, 0, 0, 1, 1, 1, 2]
    chain = sets(1, 2, 2, 2, 3, 3, 0)  # 0 with 1 and 2, 2 with 3
    assert join_groups(patients, chain).tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert join_groups(patients[:0], sets()).tolist() == []


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
