"""Labels of files, found by the kind of file id that fits the labels' ids best."""

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import islice

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beam_pipeline.keys import hash_id
from beam_pipeline.options import ImageId, LabelLevel, Options
from beam_pipeline.planning.inventory import read_ids
from beam_pipeline.planning.labels import plain_ids
from headct.errors import UsageError
from headct.stores import FileInfo, InputFiles, decode_source, encode_source, show_source

_NAMES_AT_A_TIME = 10_000
NO_LABEL = -1  # label index of a file without a label
_IDS_AT_A_TIME = 1 << 16  # converted together: a Python object takes 60 bytes or more
_PEEKED = 64  # files to read UIDs from if no name fits a label

_SUFFIX = r"([^/])\.(?:[^./]*[^./0-9][^./]*)?$"  # of a file name, as `name_of` defines it
_FOLDER = r"(?s)^.*/"
_UID_SHAPE = r"^[0-9]+(?:\.[0-9]+){3,}$"  # of PS3.5, section 9.1


def image_keys(image_ids: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """Return a 64-bit key per image id, independent of the order (SipHash, of pandas): uint64 [n].

    The probability of a collision among ten million ids is 3 in a million.
    """
    parts = image_ids.chunks if isinstance(image_ids, pa.ChunkedArray) else [image_ids]
    keys = [
        pd.util.hash_array(
            part[first : first + _IDS_AT_A_TIME].to_numpy(zero_copy_only=False).astype(object),
            categorize=False,
        )
        for part in parts
        for first in range(0, len(part), _IDS_AT_A_TIME)
    ]
    return np.concatenate([np.empty(0, np.uint64), *keys])


class LabelForm(StrEnum):
    """Forms of a label's id; of forms that fit equally well, the first is chosen."""

    NAME = "file name"
    FULL_NAME = "file name with its suffix"
    PATH = "path"
    FULL_PATH = "path with its suffix"
    UID = "SOP Instance UID"
    SERIES = "Series Instance UID"
    STUDY = "Study Instance UID"
    PATIENT = "Patient ID"

    @property
    def level(self) -> LabelLevel:
        """What the ids name."""
        return LabelLevel[self.name] if self in SCAN_FORMS else LabelLevel.IMAGE


SCAN_FORMS = (LabelForm.SERIES, LabelForm.STUDY, LabelForm.PATIENT)  # from fine to coarse


def look_up(labels: pd.Index, keys: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Return the index of each key, or NO_LABEL."""
    return labels.get_indexer(pd.Index(keys)).astype(np.int32)


def look_up_scans(
    ids: pa.Array, key: bytes, column: str, known: Sequence[str], numbers: NDArray[np.integer]
) -> NDArray[np.int32]:
    """Return the label index of each file by the id of its series, study or patient.

    Args:
        ids: the labels' ids.
        key: hash key of the inventory's ids.
        column: one of ID_COLUMNS.
        known: ids of the inventory, by number.
        numbers: [files], the number of each file's id.
    """
    places = pd.Index(known)
    label_of = np.full(len(known), NO_LABEL, np.int32)
    for first in range(0, len(ids), _IDS_AT_A_TIME):
        texts = ids[first : first + _IDS_AT_A_TIME].to_pylist()
        found = places.get_indexer(pd.Index([hash_id(key, column, text) for text in texts]))
        label_of[found[found >= 0]] = first + np.flatnonzero(found >= 0)
    label_of[places == ""] = NO_LABEL  # of files without a readable header
    return np.asarray(label_of[numbers])


def path_keys(paths: pa.Array) -> dict[str, NDArray[np.uint64]]:
    """Return the keys of the ids that paths (see `encode_source`) give, by form."""
    ids, keys = path_ids(paths), dict[str, NDArray[np.uint64]]()
    for form, whole in (
        (LabelForm.PATH, LabelForm.PATH),
        (LabelForm.FULL_PATH, LabelForm.FULL_PATH),
        (LabelForm.NAME, LabelForm.PATH),
        (LabelForm.FULL_NAME, LabelForm.FULL_PATH),
    ):
        is_same = form != whole and ids[form] is ids[whole]
        keys[form] = keys[whole] if is_same else image_keys(ids[form])
    return keys


def path_ids(paths: pa.Array) -> dict[LabelForm, pa.Array]:
    """Return the ids that paths give, by form."""
    try:
        texts = pc.cast(paths, pa.string())
    except pa.ArrowInvalid:  # a name that is not UTF-8
        shown = [show_source(decode_source(path)) for path in paths.to_pylist()]
        texts = pa.array(shown, pa.string())
    stems = pc.replace_substring_regex(texts, _SUFFIX, r"\1")
    names = (pc.replace_substring_regex(each, _FOLDER, "") for each in (stems, texts))
    return dict(zip(LabelForm, map(plain_ids, (*names, stems, texts)), strict=False))


def check_labels_fit(
    ids: pa.Array, options: Options, files: InputFiles, found: Iterable[FileInfo]
) -> None:
    """Raise an error if no label can match a file, before all headers are read.

    The first match ends the check. The error needs a comparison of all names and of some files'
    UIDs and Patient IDs. Labels that `--label_level` says to be per scan are not checked here.

    Args:
        ids: the labels' ids.
        options: options of the run.
        files: the input.
        found: the listed files.

    Raises:
        UsageError: no label matches.
        StoreError: the store fails.
    """
    if options.labels.label_level not in (LabelLevel.AUTO, LabelLevel.IMAGE):
        return
    names = (encode_source(info.path) for info in found)
    labels, seen = pd.Index(image_keys(ids)), list[bytes]()
    while part := list(islice(names, _NAMES_AT_A_TIME)):
        seen += part
        keys = path_keys(pa.array(part, pa.binary()))
        if any(look_up(labels, of_form).max() != NO_LABEL for of_form in keys.values()):
            return
    if not seen or pc.any(pc.match_substring_regex(ids, _UID_SHAPE)).as_py():
        return  # UIDs can only be compared after headers are read
    some = np.unique(np.linspace(0, len(seen) - 1, _PEEKED).astype(np.int64))
    known = read_ids(files, [seen[place] for place in some.tolist()])
    if not pc.any(pc.is_in(pa.array(known, ids.type), ids)).as_py():
        raise no_match(ids, options, seen[0], len(some) if len(some) < len(seen) else None)


def no_match(
    ids: pa.Array, options: Options, path: bytes, compared: int | None = None
) -> UsageError:
    """Return the error that no label matches; it shows the form of an id and, perhaps, a path.

    Args:
        ids: the labels' ids.
        options: options of the run.
        path: of a file.
        compared: number of files whose headers were read; None if all.
    """
    some = f" (of {compared} files so far; --label_level patient reads all)" if compared else ""
    like = f", the files like {show_source(decode_source(path))!r}"
    hidden = options.labels.image_id is ImageId.ORDINAL  # ordinals hide file names
    # The id may be a patient's: its letters and digits are replaced.
    form = re.sub(r"[^\W\d_]", "A", re.sub(r"\d", "0", ids[0].as_py()))
    return UsageError(
        f"no label of {options.files.labels} is of a slice: its ids have the form "
        f"{form!r}{'' if hidden else like}; they may be file names, paths below the input, UIDs of "
        f"image, series or study, or Patient IDs{some}; --id_column names another "
        "column, --label_level what the ids name"
    )


def two_levels(forms: Sequence[LabelForm], options: Options) -> UsageError:
    """Return the error that ids fit two kinds of scans equally well."""
    choices = " or ".join(f"--label_level {form.level}" for form in forms)
    return UsageError(
        f"the ids of label file {options.files.labels} fit "
        f"{' and '.join(f'{form}s' for form in forms)} equally well: want {choices}"
    )
