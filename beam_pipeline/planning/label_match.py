"""Which files labels are of: by whichever of a file's ids the labels' ids match best."""

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
NO_LABEL = -1  # the place of a label that there is not
_CONFLICT = next(n for n, (why, _) in enumerate(PROBLEMS) if why is Reason.LABEL_CONFLICT)
_PEEKED = 64  # files whose UIDs are looked at where names fit no label

# What a suffix is: `name_of` says the same of one name.
_SUFFIX = r"([^/])\.(?:[^./]*[^./0-9][^./]*)?$"
# A label may name a converted image, or have a suffix where the file has none.
_IMAGE_SUFFIX = r"(?i)([^/])\.(?:dcm|dicom|ima|png|jpe?g)$"
_FOLDER = r"(?s)^.*/"
_UID_SHAPE = r"^[0-9]+(?:\.[0-9]+){3,}$"  # of PS3.5, section 9.1


class LabelForm(StrEnum):
    """What a label's id may be of a file; of forms that fit equally well, the first is taken."""

    NAME = "file name"
    FULL_NAME = "file name with its suffix"
    PATH = "path"
    FULL_PATH = "path with its suffix"
    UID = "SOP Instance UID"


class LabelIndex:
    """Finds labels by the ids of files.

    Args:
        keys: uint64 [labels], `image_keys` of their ids.
    """

    def __init__(self, keys: NDArray[np.uint64]) -> None:
        self._order = np.argsort(keys, kind="stable").astype(np.int32)
        self._keys = keys[self._order]

    @classmethod
    def of(cls, ids: pa.ChunkedArray) -> "LabelIndex":
        """The index of the labels' ids, whichever way these are written."""
        return cls(image_keys(plain_ids(ids)))

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int32]:
        """The place of each key's label, or NO_LABEL; int32 [n]."""
        if not len(self._keys):
            return np.full(len(keys), NO_LABEL, np.int32)
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[place] == keys, self._order[place], np.int32(NO_LABEL))

    def repeated(self) -> list[NDArray[np.int32]]:
        """The places of labels whose ids differ only in how they are written, id by id."""
        keys = np.unique(self._keys[1:][self._keys[1:] == self._keys[:-1]])
        firsts, ends = (np.searchsorted(self._keys, keys, side) for side in ("left", "right"))
        return [self._order[a:b] for a, b in zip(firsts.tolist(), ends.tolist(), strict=True)]


class FilePlaces:
    """The label of each file in every form that can be read off its path, a part at a time."""

    def __init__(self, index: LabelIndex) -> None:
        self._index = index
        self._parts: dict[LabelForm, list[NDArray[np.int32] | int]] = {}

    def add(self, paths: pa.Array) -> bool:
        """Look up files by their paths, as `encode_source` writes them; say if any has a label."""
        found = False
        known: dict[int, NDArray[np.int32]] = {}  # without folders, names are paths
        for form, ids in _ids_of(paths).items():
            if id(ids) not in known:
                known[id(ids)] = self._index.find(image_keys(ids))
            places = known[id(ids)]
            hit = bool((places != NO_LABEL).any())
            # Most forms fit nothing: of these only the length is kept.
            self._parts.setdefault(form, []).append(places if hit else len(places))
            found |= hit
        return found

    def join(self) -> dict[LabelForm, NDArray[np.int32]]:
        """For each form that fits any file, the places of all files' labels."""
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
    """Return ids as both sides write them: with slashes, without `./` and an image's suffix."""
    # Nearly all have nothing to be replaced, and to find that out takes a tenth of the time.
    if pc.any(pc.match_substring(texts, "\\")).as_py():
        texts = pc.replace_substring(texts, "\\", "/")
    if pc.any(pc.or_(pc.starts_with(texts, "/"), pc.starts_with(texts, "./"))).as_py():
        texts = pc.replace_substring_regex(texts, r"^(?:\.?/)+", "")
    if pc.any(pc.match_substring_regex(texts, _IMAGE_SUFFIX)).as_py():
        texts = pc.replace_substring_regex(texts, _IMAGE_SUFFIX, r"\1")
    return texts


@dataclass(frozen=True)
class LabelMatch:
    """Which label each file has.

    Attributes:
        form: what the labels' ids are.
        places: int32 [files], of each file's label, or NO_LABEL.
        shared: bool [labels], whether a label's id fits more than one slice.
    """

    form: LabelForm
    places: NDArray[np.int32]
    shared: NDArray[np.bool_]

    @property
    def is_empty(self) -> bool:
        """Whether no label is of any file."""
        return not (self.places != NO_LABEL).any()


def match_labels(
    places: Mapping[LabelForm, NDArray[np.int32]],
    used: NDArray[np.int64],
    labels: int,
    find_by_uid: Callable[[], NDArray[np.int32]],
) -> LabelMatch:
    """Choose the form by which most labels have one slice and no other.

    Args:
        places: of the labels of all files, by each form that fits any.
        used: the files that are slices.
        labels: how many there are.
        find_by_uid: returns the places by UID; asked only where another form leaves slices and
            labels over.
    """
    counts = {form: _count_slices(found, used, labels) for form, found in places.items()}
    fits = {form: int((count == 1).sum()) for form, count in counts.items()}
    if max(fits.values(), default=0) < min(len(used), labels):
        places = {**places, LabelForm.UID: find_by_uid()}
        counts[LabelForm.UID] = _count_slices(places[LabelForm.UID], used, labels)
        fits[LabelForm.UID] = int((counts[LabelForm.UID] == 1).sum())
    # Forms that fit rejected files alone come before those that fit nothing.
    tried = [form for form in LabelForm if form in places]
    best = max(tried, key=lambda form: (fits[form], (places[form] != NO_LABEL).any()))
    return LabelMatch(best, places[best], counts[best] > 1)


def _count_slices(
    places: NDArray[np.int32], used: NDArray[np.int64], labels: int
) -> NDArray[np.int64]:
    """How many slices each label is of."""
    found = places[used]
    return np.bincount(found[found != NO_LABEL], minlength=labels)


def settle_repeated(labels: Labels, index: LabelIndex) -> Labels:
    """Return labels where ids that differ only in how they are written do not contradict."""
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
    """Raise if no label can be of a file, before all headers are read.

    Most often the first names tell that one is; all are compared, and the UIDs of some files,
    before none is.

    Args:
        ids: of the labels.
        label_file: its path, for the message.
        paths: of the files, as `encode_source` writes them.
        read_uids: returns the SOP Instance UIDs of some files.
        hidden: whether names of files must not be shown.

    Raises:
        UsageError: an id of each is quoted.
    """
    index, seen, names = LabelIndex.of(ids), list[pa.Array](), iter(paths)
    while part := list(islice(names, _NAMES_AT_A_TIME)):
        seen.append(pa.array(part, pa.binary()))
        if FilePlaces(index).add(seen[-1]):
            return
    if not len(ids) or not seen or pc.any(pc.match_substring_regex(ids, _UID_SHAPE)).as_py():
        return  # only headers can tell
    every = pa.chunked_array(seen)
    some = np.unique(np.linspace(0, len(every) - 1, _PEEKED).astype(np.int64))
    uids = read_uids([every[place].as_py() for place in some.tolist()])
    if any((index.find(image_keys(pa.array([uid], pa.string()))) >= 0).any() for uid in uids):
        return
    raise no_match(ids, label_file, b"" if hidden else every[0].as_py())


def no_match(ids: pa.ChunkedArray, label_file: str, path: bytes) -> UsageError:
    """The error that no label is of a file; `path` is one's, or empty if it must not be shown."""
    files = f", those of the files like {show_source(decode_source(path))!r}" if path else ""
    return UsageError(
        f"no image of label file {label_file} is among the files: its ids are like "
        f"{ids[0].as_py()!r}{files}; they may be file names, paths below the input or SOP Instance "
        "UIDs; --id_column names another column"
    )
