"""Matching of labels to files, by the kind of file id that fits the labels' ids best."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beam_pipeline.planning.image_ids import image_keys
from beam_pipeline.planning.labels import PROBLEMS, Labels
from headct.errors import UsageError
from headct.reasons import Reason
from headct.stores import decode_source, show_source

_NAMES_AT_A_TIME = 10_000
NO_LABEL = -1  # label index of a file without a label
_CONFLICT = next(n for n, (why, _) in enumerate(PROBLEMS) if why is Reason.LABEL_CONFLICT)
_PEEKED = 64  # files to read UIDs from if no name fits a label

# Suffix of a file name, as `name_of` defines it.
_SUFFIX = r"([^/])\.(?:[^./]*[^./0-9][^./]*)?$"
# A label may name a converted image, or have a suffix where the file has none.
_IMAGE_SUFFIX = r"(?i)([^/])\.(?:dcm|dicom|ima|png|jpe?g)$"
_FOLDER = r"(?s)^.*/"
_UID_SHAPE = r"^[0-9]+(?:\.[0-9]+){3,}$"  # of PS3.5, section 9.1


class LabelForm(StrEnum):
    """Forms of a label's id; of forms that fit equally well, the first is chosen."""

    NAME = "file name"
    FULL_NAME = "file name with its suffix"
    PATH = "path"
    FULL_PATH = "path with its suffix"
    UID = "SOP Instance UID"


class LabelIndex:
    """Index of labels by id.

    Args:
        keys: uint64 [labels], `image_keys` of the labels' ids.
    """

    def __init__(self, keys: NDArray[np.uint64]) -> None:
        self._order = np.argsort(keys, kind="stable").astype(np.int32)
        self._keys = keys[self._order]

    @classmethod
    def of(cls, ids: pa.ChunkedArray) -> "LabelIndex":
        """Return the index of the labels' ids, normalized by `plain_ids`."""
        return cls(image_keys(plain_ids(ids)))

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Return the label index per key, or NO_LABEL; int32 [n]."""
        if not len(self._keys):
            return np.full(len(keys), NO_LABEL, np.int32)
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[place] == keys, self._order[place], np.int32(NO_LABEL))

    def repeated(self) -> list[NDArray[np.int32]]:
        """Return the indices of labels with equal normalized ids, one array per id."""
        keys = np.unique(self._keys[1:][self._keys[1:] == self._keys[:-1]])
        firsts, ends = (np.searchsorted(self._keys, keys, side) for side in ("left", "right"))
        return [self._order[a:b] for a, b in zip(firsts.tolist(), ends.tolist(), strict=True)]


class FilePlaces:
    """Labels of files, per id form that follows from the path; filled in batches."""

    def __init__(self, index: LabelIndex) -> None:
        self._index = index
        self._parts: dict[LabelForm, list[NDArray[np.int32] | int]] = {}

    def add(self, paths: pa.Array) -> bool:
        """Look up files by path (see `encode_source`); return whether any file has a label."""
        found = False
        known: dict[int, NDArray[np.int32]] = {}  # without folders, names are paths
        for form, ids in _ids_of(paths).items():
            if id(ids) not in known:
                known[id(ids)] = self._index.find(image_keys(ids))
            places = known[id(ids)]
            hit = bool((places != NO_LABEL).any())
            # Most forms fit no file: storing only the length saves memory.
            self._parts.setdefault(form, []).append(places if hit else len(places))
            found |= hit
        return found

    def join(self) -> dict[LabelForm, NDArray[np.int32]]:
        """Return the label indices of all files, per form that fits any file."""
        return {
            form: np.concatenate(
                [np.full(p, NO_LABEL, np.int32) if isinstance(p, int) else p for p in parts]
            )
            for form, parts in self._parts.items()
            if not all(isinstance(part, int) for part in parts)
        }


def _ids_of(paths: pa.Array) -> dict[LabelForm, pa.Array]:
    try:
        texts = pc.cast(paths, pa.string())
    except pa.ArrowInvalid:  # a name that is not UTF-8
        shown = [show_source(decode_source(path)) for path in paths.to_pylist()]
        texts = pa.array(shown, pa.string())
    path = pc.replace_substring_regex(texts, _SUFFIX, r"\1")
    nested = pc.any(pc.match_substring(texts, "/")).as_py()
    paths = plain_ids(path), plain_ids(texts)
    names = paths
    if nested:
        name, full_name = (pc.replace_substring_regex(each, _FOLDER, "") for each in (path, texts))
        names = plain_ids(name), plain_ids(full_name)
    return dict(zip(LabelForm, (*names, *paths), strict=False))


def plain_ids(texts: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return normalized ids: with slashes, without a leading `./` and an image suffix."""
    # Few ids need a replacement, and the check takes a tenth of the time.
    if pc.any(pc.match_substring(texts, "\\")).as_py():
        texts = pc.replace_substring(texts, "\\", "/")
    if pc.any(pc.or_(pc.starts_with(texts, "/"), pc.starts_with(texts, "./"))).as_py():
        texts = pc.replace_substring_regex(texts, r"^(?:\.?/)+", "")
    if pc.any(pc.match_substring_regex(texts, _IMAGE_SUFFIX)).as_py():
        texts = pc.replace_substring_regex(texts, _IMAGE_SUFFIX, r"\1")
    return texts


@dataclass(frozen=True)
class LabelMatch:
    """Labels matched to files.

    Attributes:
        form: form of the labels' ids.
        places: int32 [files], label index per file, or NO_LABEL.
        shared: bool [labels], whether a label's id fits several slices.
    """

    form: LabelForm
    places: NDArray[np.int32]
    shared: NDArray[np.bool_]

    @property
    def is_empty(self) -> bool:
        """Whether no file has a label."""
        return not (self.places != NO_LABEL).any()


def match_labels(
    places: Mapping[LabelForm, NDArray[np.int32]],
    used: NDArray[np.int64],
    labels: int,
    find_by_uid: Callable[[], NDArray[np.int32]],
) -> LabelMatch:
    """Choose the form by which most labels match exactly one slice.

    Args:
        places: label indices of all files, per form that fits any file.
        used: indices of the files that are slices.
        labels: number of labels.
        find_by_uid: returns the label indices by UID; called only if no other form matches all
            slices or all labels.
    """
    counts = {form: _count_slices(found, used, labels) for form, found in places.items()}
    fits = {form: int((count == 1).sum()) for form, count in counts.items()}
    if max(fits.values(), default=0) < min(len(used), labels):
        places = {**places, LabelForm.UID: find_by_uid()}
        counts[LabelForm.UID] = _count_slices(places[LabelForm.UID], used, labels)
        fits[LabelForm.UID] = int((counts[LabelForm.UID] == 1).sum())
    # Forms that fit only rejected files rank above forms that fit no file.
    tried = [form for form in LabelForm if form in places]
    best = max(tried, key=lambda form: (fits[form], (places[form] != NO_LABEL).any()))
    return LabelMatch(best, places[best], counts[best] > 1)


def _count_slices(
    places: NDArray[np.int32], used: NDArray[np.int64], labels: int
) -> NDArray[np.int64]:
    """Return the number of slices per label."""
    found = places[used]
    return np.bincount(found[found != NO_LABEL], minlength=labels)


def settle_repeated(labels: Labels, index: LabelIndex) -> Labels:
    """Return the labels, with a conflict where equal normalized ids have different values."""
    problems = labels.problems.copy()
    for places in index.repeated():
        rows = np.column_stack([labels.values[places], labels.problems[places]])
        if (rows != rows[0]).any():
            problems[places] = _CONFLICT
    return replace(labels, problems=problems)


def check_labels_fit(
    ids: pa.ChunkedArray,
    label_file: str,
    paths: Iterable[bytes],
    read_uids: Callable[[Sequence[bytes]], Iterable[str]],
    *,
    hidden: bool = False,
) -> None:
    """Raise an error if no label can match a file, before all headers are read.

    The first match ends the check. The error needs a comparison of all names and of some files'
    UIDs.

    Args:
        ids: the labels' ids.
        label_file: path of the label file, for the message.
        paths: paths of the files, as `encode_source` writes them.
        read_uids: returns the SOP Instance UIDs of some files.
        hidden: whether to hide file names.

    Raises:
        UsageError: no label matches; the message quotes a label's id and a file's path.
    """
    index, seen, names = LabelIndex.of(ids), list[pa.Array](), iter(paths)
    while part := list(islice(names, _NAMES_AT_A_TIME)):
        seen.append(pa.array(part, pa.binary()))
        if FilePlaces(index).add(seen[-1]):
            return
    if not len(ids) or not seen or pc.any(pc.match_substring_regex(ids, _UID_SHAPE)).as_py():
        return  # UIDs can only be compared after headers are read
    every = pa.chunked_array(seen)
    some = np.unique(np.linspace(0, len(every) - 1, _PEEKED).astype(np.int64))
    uids = read_uids([every[place].as_py() for place in some.tolist()])
    if any((index.find(image_keys(pa.array([uid], pa.string()))) >= 0).any() for uid in uids):
        return
    raise no_match(ids, label_file, b"" if hidden else every[0].as_py())


def no_match(ids: pa.ChunkedArray, label_file: str, path: bytes) -> UsageError:
    """Return the error that no label matches; `path` is an example, or empty to hide paths."""
    files = f", those of the files like {show_source(decode_source(path))!r}" if path else ""
    return UsageError(
        f"no image of label file {label_file} is among the files: its ids are like "
        f"{ids[0].as_py()!r}{files}; they may be file names, paths below the input or SOP Instance "
        "UIDs; --id_column names another column"
    )
