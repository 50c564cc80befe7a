"""Inventory and labels joined: a verdict on each file, and the labels of each slice."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beam_pipeline.dicom.acquisition import Acquisition
from beam_pipeline.dicom.kernels import Kernel, kernel_class
from beam_pipeline.keys import study_of
from beam_pipeline.options import (
    Identifiers,
    ImageId,
    LabelLevel,
    Options,
    SelectionOptions,
    Unlabeled,
)
from beam_pipeline.planning.choose_series import SERIES, few_slices, other_series
from beam_pipeline.planning.inventory import ACQUISITION, find_key, replace_uid
from beam_pipeline.planning.label_match import (
    NO_LABEL,
    SCAN_FORMS,
    LabelForm,
    image_keys,
    look_up,
    look_up_scans,
    no_match,
    path_keys,
    two_levels,
)
from beam_pipeline.planning.labels import PROBLEMS, Labels, read_labels
from beam_pipeline.shards.unfinished import Unfinished, table_metadata
from headct.errors import UsageError
from headct.layout import ID_COLUMNS, inventory_table, listing_table
from headct.reasons import Reason

# Verdicts: below 0 a used file, a file rejected by its header, a skipped file without a label, and
# a file of a patient who is not in the sample; else an index into VERDICTS.
USED, BY_HEADER, SKIPPED, NOT_SAMPLED = -1, -2, -3, -4
VERDICTS = (
    (Reason.DUPLICATE_ID, ""),
    (Reason.MISSING_ATTRIBUTE, "SOPInstanceUID"),
    (Reason.TOO_FEW_SLICES, ""),
    (Reason.OTHER_SERIES, ""),
    (Reason.LABEL_MISSING, ""),
    (Reason.LABEL_MISSING, "its row fits several slices: name paths or SOP Instance UIDs"),
    *PROBLEMS,
)
_DUPLICATE, _NO_UID, _TOO_FEW, _OTHER_SERIES = range(4)
_NO_LABEL, _SHARED_LABEL, _FIRST_PROBLEM = range(4, 7)
_IMAGE_IDS = ["image_id", "sop_instance_uid"]
_NO_KEY = 0  # of a SOP Instance UID that is absent
_IDS_AT_A_TIME = 1 << 16  # hashed together
_TEXT_COLUMNS = (*ID_COLUMNS, ACQUISITION)  # numbered: each text is in memory once
_COLUMNS = (*_IMAGE_IDS, *_TEXT_COLUMNS, "fingerprint", "path_identifies", "reason")


@dataclass(frozen=True)
class Identity:
    """Source of the image ids.

    Attributes:
        by: FILE_NAME or SOP_INSTANCE_UID.
        numbered: whether ordinals are written instead.
        ambiguous: number of usable files that share a name with another slice.
    """

    by: ImageId
    numbered: bool
    ambiguous: int

    @property
    def column(self) -> str:
        """The inventory's column that distinguishes slices."""
        return "image_id" if self.by is ImageId.FILE_NAME else "sop_instance_uid"

    def describe(self) -> str:
        """Return a sentence on why image ids are not file names; empty if they are."""
        if self.by is ImageId.FILE_NAME or not self.ambiguous:
            return ""
        written = "ordinals" if self.numbered else "these, by --identifiers"
        return (
            f"{self.ambiguous} files have the name of another slice, so slices are told apart by "
            f"SOP Instance UID; image ids are {written}."
        )


def choose_identity(files: pd.DataFrame, image_id: ImageId, identifiers: Identifiers) -> Identity:
    """Choose file names as ids if they distinguish the usable slices, else UIDs.

    Copies of a slice under one name do not count as ambiguous: they are duplicates by either id.
    """
    named = files.loc[files["usable"] & (files["sop_instance_uid"] != _NO_KEY), _IMAGE_IDS]
    slices = named.drop_duplicates()["image_id"]
    ambiguous = int(named["image_id"].isin(slices[slices.duplicated()]).sum())
    by = image_id
    if image_id in (ImageId.AUTO, ImageId.ORDINAL):
        by = ImageId.SOP_INSTANCE_UID if ambiguous else ImageId.FILE_NAME
    hidden = by is ImageId.SOP_INSTANCE_UID and identifiers is Identifiers.ORDINAL
    numbered = image_id is ImageId.ORDINAL or (image_id is ImageId.AUTO and hidden)
    return Identity(by, numbered, ambiguous)


@dataclass(frozen=True)
class Inventory:
    """The inventory: numbers of all files in memory; other columns are read in parts.

    Attributes:
        unfinished: the tables of the output.
        starts: index of each part's first file, and the number of all files.
        files: one row per file, in the order of the sources:
            image_id, sop_instance_uid: uint64, `image_keys`; 0 for an absent UID
            patient_id, study_id, series_id, acquisition: int32, numbers of the texts
            fingerprint: uint64, equal for files with possibly equal pixels; 0 if unknown
            usable: bool, whether the header is valid
            unnamed: bool, whether the study replaces a missing patient id
            a column per LabelForm of a path, if there are labels: uint64, `path_keys`
        texts: by number, per column of numbers.
        identifying_paths: number of files with an identifier of the patient in the path.
        numbers: int64 [files], numbers of the files in the whole input; None if it is all used.
    """

    unfinished: Unfinished
    starts: Sequence[int]
    files: pd.DataFrame
    texts: dict[str, list[str]]
    identifying_paths: int
    numbers: NDArray[np.int64] | None = None

    @classmethod
    def load(cls, parts: int, options: Options) -> "Inventory":
        """Read the inventory.

        Raises:
            UsageError: the input has no files, or changed between two parts.
            StoreError: the folder's store fails.
        """
        unfinished = Unfinished(options.files.folder)
        has_labels = options.files.labels is not None
        columns = [*_COLUMNS, *(["source"] if has_labels else [])]
        frames, checks, identifying = [], set(), 0
        texts: dict[str, list[pa.Array]] = {column: [] for column in _TEXT_COLUMNS}
        for table in unfinished.read_all([inventory_table(part) for part in range(parts)], columns):
            checks.add(table_metadata(table)["key_check"])
            identifying += pc.sum(table["path_identifies"], min_count=0).as_py()
            has_uid = pc.not_equal(table["sop_instance_uid"], "").to_numpy()
            numbers: dict[str, NDArray[Any]] = {
                "image_id": image_keys(table["image_id"]),
                "sop_instance_uid": image_keys(table["sop_instance_uid"]) * has_uid,
                "fingerprint": table["fingerprint"].to_numpy(),
                "usable": pc.equal(table["reason"].cast(pa.string()), "").to_numpy(),
            }
            if has_labels:
                numbers |= path_keys(table["source"].combine_chunks())
            frames.append(pd.DataFrame(numbers))
            for column, chunks in texts.items():
                chunks += table[column].chunks
        if not sum(map(len, frames)):
            raise UsageError(f"input {options.files.input} holds no files")
        if len(checks) > 1:  # ids were hashed with different keys
            raise UsageError(
                f"input {options.files.input} changed while its headers were read; the same "
                "command resumes"
            )
        files = pd.concat(frames, ignore_index=True)
        known = {}
        for column, chunks in texts.items():
            encoded = pa.chunked_array(chunks).unify_dictionaries()
            files[column] = np.concatenate([chunk.indices for chunk in encoded.chunks])
            known[column] = encoded.chunk(0).dictionary.to_pylist()
        are_studies = np.array([study_of(text) is not None for text in known["patient_id"]])
        files["unnamed"] = are_studies[files["patient_id"]]
        starts = np.cumsum([0, *map(len, frames)]).tolist()
        places = None
        if options.selection.files:
            names = [listing_table(part) for part in range(parts)]
            listed = unfinished.read_all(names, ["number"])
            places = np.concatenate([table["number"].to_numpy() for table in listed])
        return cls(unfinished, starts, files, known, identifying, places)

    def number(self, files: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of files, by index, in the whole input."""
        return files if self.numbers is None else self.numbers[files]

    @property
    def acquisitions(self) -> list[Acquisition]:
        """Acquisitions by number; unknown for files that are not usable."""
        return [*map(Acquisition.decode, self.texts[ACQUISITION])]

    def read(
        self, wanted: NDArray[np.bool_], columns: Sequence[str]
    ) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
        """Yield indices and rows of the wanted files; only parts with wanted files are read.

        Args:
            wanted: [files].
            columns: columns to read.
        """
        bounds = list(pairwise(self.starts))
        needed = [i for i, (first, end) in enumerate(bounds) if wanted[first:end].any()]
        names = [inventory_table(part) for part in needed]
        tables = self.unfinished.read_all(names, columns)
        for part, table in zip(needed, tables, strict=True):
            first, end = bounds[part]
            mask = wanted[first:end]
            rows = table if mask.all() else table.filter(pa.array(mask))
            yield np.flatnonzero(mask) + first, rows


@dataclass(frozen=True)
class JoinedFiles:
    """All files with their verdicts, and the slices to write with their labels.

    Attributes:
        inventory: inventory of all files.
        identity: source of the image ids.
        verdicts: int8 [files], one of USED to NOT_SAMPLED, or an index into VERDICTS.
        slices: rows of the used files in `Inventory.files`.
        names: names of the labels; empty without a label file.
        labels: int8 [slices, labels], 0 or 1.
        labels_without_file: number of labeled ids without a file.
        labels_joined_by: form of the label file's ids; None without a label file.
        notes: sentences on decisions that the data made.
    """

    inventory: Inventory
    identity: Identity
    verdicts: NDArray[np.int8]
    slices: pd.DataFrame
    names: tuple[str, ...]
    labels: NDArray[np.int8]
    labels_without_file: int
    labels_joined_by: LabelForm | None
    notes: tuple[str, ...]

    @property
    def files_seen(self) -> int:
        """Number of files of the input that are not skipped."""
        return len(self.verdicts) - self.skipped

    @property
    def skipped(self) -> int:
        """Number of files skipped because the label file lacks them."""
        return int((self.verdicts == SKIPPED).sum())


def join_labels(parts: int, options: Options) -> JoinedFiles:
    """Read the inventory and the labels, and decide which files are used.

    Args:
        parts: number of parts of the inventory.
        options: options of the run.

    Raises:
        UsageError: the input has no files, or no label matches a file.
        StoreError: a store fails.
    """
    files, labels = options.files, None
    if files.labels is not None:
        # The labels kept at the start may be gone when a template's job runs again.
        labels = Labels.find(Unfinished(files.folder)) or read_labels(
            files.labels, options.labels, files.storage_patience
        )
    return judge(Inventory.load(parts, options), labels, options)


def judge(inventory: Inventory, labels: Labels | None, options: Options) -> JoinedFiles:
    """Decide which files are used: of equal slices the first, of the chosen series, and labeled.

    Series are chosen before files without a label are rejected, but after they are skipped.
    """
    files = inventory.files
    identity = choose_identity(files, options.labels.image_id, options.identifiers.identifiers)
    notes = [identity.describe()] if identity.describe() else []
    verdicts = np.where(files["usable"], USED, BY_HEADER).astype(np.int8)
    keys = files[identity.column]
    if identity.by is ImageId.SOP_INSTANCE_UID:
        verdicts[files["usable"] & (keys == _NO_KEY)] = _NO_UID
    usable = np.flatnonzero(verdicts == USED)
    verdicts[usable[keys.iloc[usable].duplicated()]] = _DUPLICATE
    names: tuple[str, ...] = ()
    form, without_file, values = None, 0, np.empty((len(files), 0), np.int8)
    if labels:
        form, found, shared = _match(inventory, verdicts == USED, labels, options)
        if options.labels.unlabeled is Unlabeled.SKIP:
            verdicts[(verdicts == USED) & (found == NO_LABEL)] = SKIPPED
    notes += _choose_series(inventory, verdicts, options.selection)
    if labels:
        slices = verdicts == USED
        problems = labels.values.min(axis=1)
        judged = np.where(problems < 0, _FIRST_PROBLEM - 1 - problems, USED)
        judged[shared] = _SHARED_LABEL
        verdicts[slices] = np.where(found == NO_LABEL, _NO_LABEL, judged[found])[slices]
        names, values = labels.names, labels.values[found]
        have_file = np.zeros(len(labels.ids), np.bool_)
        have_file[found[found != NO_LABEL]] = True
        with_file, skipped = int(have_file.sum()), (verdicts == SKIPPED).sum()
        without_file = len(labels.ids) - with_file
        notes.append(
            f"Labels joined by {form}: {with_file} of {len(labels.ids)} labels, "
            f"{(found != NO_LABEL).sum()} of {len(found)} files"
            f"{f', {skipped} without a label skipped' if skipped else ''}."
        )
        if form in SCAN_FORMS:
            notes.append(
                f"The labels are per {form.level}: each slice has those of its {form.level}."
            )
    used = verdicts == USED
    return JoinedFiles(
        inventory,
        identity,
        verdicts,
        files[used],
        names,
        values[used],
        without_file,
        form,
        tuple(notes),
    )


def _choose_series(
    inventory: Inventory, verdicts: NDArray[np.int8], options: SelectionOptions
) -> list[str]:
    """Exclude slices of short series and of other series of a study; return notes.

    Args:
        inventory: inventory of all files.
        verdicts: [files], changed in place.
        options: which series are wanted.
    """
    used = np.flatnonzero(verdicts == USED)
    if options.min_slices > 1:
        few = few_slices(inventory.files.iloc[used], options.min_slices)
        verdicts[used[few]] = _TOO_FEW
        used = used[~few]
    if not options.one_series_per_study:
        return []
    slices = inventory.files[[*SERIES, ACQUISITION]].iloc[used]
    known, numbers = inventory.acquisitions, slices[ACQUISITION]
    kernels = np.array([kernel_class(each.kernel) for each in known], np.int8)
    thicknesses = np.array([each.slice_thickness or np.nan for each in known])
    slices = slices.assign(kernel=kernels[numbers], slice_thickness=thicknesses[numbers])
    others, chosen = other_series(slices, options.slice_thickness)
    verdicts[used[others]] = _OTHER_SERIES
    by_kernel = chosen["kernel"].value_counts()
    counts = [f"{by_kernel[each]} {each.name.lower()}" for each in Kernel if each in by_kernel]
    every = len(slices[SERIES].drop_duplicates())
    return [
        f"--one_series_per_study: {len(chosen)} of {every} series, by kernel {', '.join(counts)}."
    ]


def _match(
    inventory: Inventory, are_slices: NDArray[np.bool_], labels: Labels, options: Options
) -> tuple[LabelForm, NDArray[np.int32], NDArray[np.bool_]]:
    """Choose the form by which most labels match exactly one slice, or any slices of a scan.

    Returns the form, the label index per file, and whether each label's id fits several slices
    without being that of a scan.

    Raises:
        UsageError: no label matches, or as many match two kinds of scans.
    """
    files, total, slices = inventory.files, len(labels.ids), int(are_slices.sum())
    level = options.labels.label_level
    found: dict[LabelForm, NDArray[np.int32]] = {}
    fitting: dict[LabelForm, int] = {}  # labels
    shared = np.zeros(total, np.bool_)

    def count(form: LabelForm) -> NDArray[np.int64]:
        of_slices = found[form][are_slices]
        return np.bincount(of_slices[of_slices != NO_LABEL], minlength=total)

    def rank(form: LabelForm) -> tuple[int, bool]:
        # Forms that fit only rejected files rank above forms that fit no file.
        return fitting[form], bool((found[form] != NO_LABEL).any())

    if level in (LabelLevel.AUTO, LabelLevel.IMAGE):
        index = pd.Index(image_keys(labels.ids))
        for form in LabelForm:
            if form in files:
                found[form] = look_up(index, files[form].to_numpy())
                fitting[form] = int((count(form) == 1).sum())
        if max(fitting.values()) < min(slices, total):
            found[LabelForm.UID] = _find_by_uid(inventory, labels, options)
            fitting[LabelForm.UID] = int((count(LabelForm.UID) == 1).sum())
        best = max(found, key=rank)
        shared = count(best) > 1
    for form in SCAN_FORMS:
        column = f"{form.level}_id"
        # A level matches at most as many labels as it has scans: skip levels that cannot win.
        if level is form.level or (
            level is LabelLevel.AUTO
            and fitting[best] < min(total, files.loc[are_slices, column].nunique())
        ):
            known, numbers = inventory.texts[column], files[column].to_numpy()
            found[form] = look_up_scans(labels.ids, find_key(options), column, known, numbers)
            fitting[form] = int((count(form) > 0).sum())
    best = max(found, key=rank)
    if best in SCAN_FORMS:
        shared[:] = False
        equal = [form for form in SCAN_FORMS if fitting.get(form) == fitting[best]]
        if len(equal) > 1 and fitting[best]:
            raise two_levels(equal, options)
    if slices and not (found[best] != NO_LABEL).any():
        first = np.arange(len(files)) == are_slices.argmax()
        ((_, table),) = inventory.read(first, ["source"])
        raise no_match(labels.ids, options, table["source"][0].as_py())
    return best, found[best], shared


def _find_by_uid(inventory: Inventory, labels: Labels, options: Options) -> NDArray[np.int32]:
    """Return the label index per file by SOP Instance UID, hashed as in the inventory."""
    uids = inventory.files["sop_instance_uid"].to_numpy()
    if not uids.any():
        return np.full(len(uids), NO_LABEL, np.int32)
    key = find_key(options)
    keys: list[NDArray[np.uint64]] = []
    for first in range(0, len(labels.ids), _IDS_AT_A_TIME):
        texts = labels.ids[first : first + _IDS_AT_A_TIME].to_pylist()
        hashed = [replace_uid(key, text, options.labels.image_id) for text in texts]
        keys.append(image_keys(pa.array(hashed, pa.string())))
    return look_up(pd.Index(np.concatenate(keys)), uids)
