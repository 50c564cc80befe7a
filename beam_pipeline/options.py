"""Options of a run, grouped by the functions that use them."""

import csv
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Self, cast

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic.fields import FieldInfo

from beam_pipeline.dicom.hounsfield import RepairPolicy
from beam_pipeline.keys import KEY_VARIABLE
from headct.declarations import (
    Declared,
    DefaultText,
    Location,
    Mark,
    OptionalLocation,
    OptionalText,
    did_you_mean,
    toml_text,
)
from headct.errors import UsageError
from headct.layout import check_label_names
from headct.printable import hide_secrets
from headct.stores import DEFAULT_PATIENCE, Folder
from headct.windows import FROM_FILE, PRESETS, VoiFunction, Window, parse_window

_MAX_CHANNELS = 4  # of a PNG


# Recorded values of versions that did not know an option, where the default is another now.
_EARLIER = {"image_id": "file_name", "leak_check": "off", "orientation": "any"}


class LeakCheck(StrEnum):
    """What to do about patients who share identical pixels."""

    JOIN = "join"
    REPORT = "report"
    OFF = "off"


class ImageId(StrEnum):
    """What identifies a slice."""

    AUTO = "auto"
    FILE_NAME = "file_name"
    SOP_INSTANCE_UID = "sop_instance_uid"
    ORDINAL = "ordinal"


class Identifiers(StrEnum):
    """What is written for patient, study and series ids."""

    ORDINAL = "ordinal"
    HASH = "hash"
    KEEP = "keep"


class Unlabeled(StrEnum):
    """What becomes of files that a label file does not name."""

    REJECT = "reject"
    SKIP = "skip"


class LabelLevel(StrEnum):
    """What a label file's ids name."""

    AUTO = "auto"
    IMAGE = "image"
    SERIES = "series"
    STUDY = "study"
    PATIENT = "patient"


class GroupBy(StrEnum):
    """What must not be in two folds."""

    PATIENT = "patient"
    STUDY = "study"


class Files(Declared, title="files"):
    """What is read and where it is written."""

    input: Location
    """folder, pattern, file or local ZIP archive of DICOM files; a path or a URL"""
    labels: Annotated[OptionalLocation, Mark.AFTER_HEADERS] = None
    """label file: CSV in any dialect, or Parquet; without one all slices are a `test` split"""
    output: Annotated[Location, Mark.UNRECORDED]
    """shard directory to make"""
    storage_patience: Annotated[float, Field(ge=1), Mark.UNRECORDED] = DEFAULT_PATIENCE
    """seconds after which a store that gives no answer ends the run"""

    @property
    def folder(self) -> Folder:
        """The output."""
        return Folder(self.output, self.storage_patience)


def _parse_windows(value: Any) -> Any:
    names = value.split(",") if isinstance(value, str) else value
    if isinstance(names, list | tuple):
        return tuple(parse_window(name) if isinstance(name, str) else name for name in names)
    return names


def _parse_conditions(value: Any) -> Any:
    # Imported late: most runs have no condition, and pydicom takes long to load.
    from beam_pipeline.dicom.selection import parse_condition

    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts):
        # A Makefile passes an unset variable as an empty string.
        return tuple(parse_condition(text).text for text in texts if text.strip())
    return texts


class Orientation(StrEnum):
    """Which slices are used by their orientation."""

    AXIAL = "axial"
    ANY = "any"


class SelectionOptions(Declared, title="selection"):
    """Which of the input's files are used."""

    orientation: Orientation = Orientation.AXIAL
    """axial excludes slices whose normal is more than 45 degrees off the scanner's axis"""
    where: Annotated[tuple[str, ...], BeforeValidator(_parse_conditions), Mark.REPEATED] = ()
    """condition on a DICOM attribute, like 'SliceThickness<=5' or 'BodyPartExamined=HEAD,BRAIN'; \
may be repeated, then all have to hold"""
    files: Annotated[OptionalLocation, Mark.AFTER_HEADERS] = None
    """list of the input's files to use: a path per line, or a table with a column source or path"""
    min_slices: Annotated[int, Field(ge=1), Mark.AFTER_HEADERS] = 1
    """exclude series with fewer usable slices"""
    one_series_per_study: Annotated[bool, Mark.AFTER_HEADERS] = False
    """exclude all series of a study but one: by kernel, then thickness, then number of slices"""
    slice_thickness: Annotated[float, Field(gt=0), Mark.AFTER_HEADERS] = 5.0
    """thickness that --one_series_per_study prefers, mm"""
    max_patients: Annotated[int, Field(ge=0), Mark.AFTER_HEADERS] = 0
    """write a sample of this many patients, with the label shares of all; 0: all patients"""


class ImageOptions(Declared, title="images"):
    """What the stored images are to be."""

    windows: Annotated[
        tuple[Window, ...],
        BeforeValidator(_parse_windows),
        Field(
            description=f"1 to {_MAX_CHANNELS} channels: {', '.join(PRESETS)}, name:center:width in"
            f" HU, or {FROM_FILE} for each file's own"
        ),
        Mark.AFTER_HEADERS,
    ] = tuple(Window(name, *PRESETS[name]) for name in ("brain", "subdural", "bone"))
    hu: Annotated[bool, Mark.AFTER_HEADERS] = False
    """store Hounsfield units (16 bits) instead of windows"""
    voi: Annotated[VoiFunction, Mark.AFTER_HEADERS] = VoiFunction.LINEAR_EXACT
    """function of the windows, as DICOM defines them"""
    image_size: Annotated[int, Field(ge=16, le=4096), Mark.AFTER_HEADERS] = 512
    """height and width, pixels"""
    hu_repair: RepairPolicy = RepairPolicy.AUTO
    """repair of badly encoded files: decided for each file, none, or one of two for 12-bit ones"""

    @model_validator(mode="before")
    @classmethod
    def _store_windows_or_hounsfield(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("hu") or values.get("windows") == ():
            return values | {"hu": True, "windows": ()}
        return values

    @model_validator(mode="after")
    def _check_windows(self) -> Self:
        names = [window.name for window in self.windows]
        if len(names) > _MAX_CHANNELS:
            raise UsageError(f"--windows {','.join(names)}: want 1 to {_MAX_CHANNELS} windows")
        if len({*names}) < len(names):
            raise UsageError(f"--windows {','.join(names)}: want different names")
        return self

    @property
    def channels(self) -> int:
        """Of a stored image."""
        return len(self.windows) or 1

    @property
    def dtype(self) -> str:
        """Of a stored image's samples."""
        return "uint8" if self.windows else "uint16"


def _parse_names(value: Any) -> Any:
    if not isinstance(value, str):
        return tuple(value) if isinstance(value, list) else value
    try:
        names = [name.strip() for row in csv.reader([value], skipinitialspace=True) for name in row]
    except csv.Error:
        raise ValueError("want names in one line, separated by commas") from None
    return tuple(filter(None, names))


def _check_names(names: tuple[str, ...]) -> tuple[str, ...]:
    check_label_names(names)
    return names


class LabelOptions(Declared, title="labels"):
    """How labels find their slices."""

    image_id: Annotated[
        ImageId,
        Field(
            description="what identifies a slice; auto: the file name where no two slices share "
            "one, else the SOP Instance UID by the rule of --identifiers"
        ),
    ] = ImageId.AUTO
    id_column: Annotated[OptionalText, Mark.AFTER_HEADERS] = None
    """column of the ids in a wide label file; found by its name if not given"""
    label_level: Annotated[LabelLevel, Mark.AFTER_HEADERS] = LabelLevel.AUTO
    """what the label file's ids name; slices get the labels of their series, study or patient"""
    label_columns: Annotated[
        tuple[str, ...],
        BeforeValidator(_parse_names),
        AfterValidator(_check_names),
        DefaultText("the six of RSNA if they are there, else all but the ids"),
        Mark.AFTER_HEADERS,
    ] = ()
    """classes, as in a row of CSV: columns of a wide label file, or ends of IDs of a long one"""
    unlabeled: Annotated[Unlabeled, Mark.AFTER_HEADERS] = Unlabeled.REJECT
    """files that the label file does not name: rejected, or left out and only counted"""


class SplitOptions(Declared, title="splits"):
    """Which slices go to which split and shard."""

    folds: Annotated[int, Field(ge=2, le=100), Mark.AFTER_HEADERS] = 5
    """folds that patients are dealt to"""
    holdout: Annotated[float, Field(ge=0, le=0.9), Mark.AFTER_HEADERS] = 0.0
    """fraction of the slices, by patients, kept apart from the folds"""
    folds_from: Annotated[OptionalLocation, Mark.AFTER_HEADERS] = None
    """shard directory, or table of split and patient_id or image_id, whose assignment is kept"""
    group_by: GroupBy = GroupBy.PATIENT
    """what must not be in two folds"""
    leak_check: LeakCheck = LeakCheck.JOIN
    """patients who share identical pixels: one group, only counted, or not looked for"""
    examples_per_shard: Annotated[int, Field(ge=1), Mark.AFTER_HEADERS] = 256
    """the most examples in one shard file"""
    seed: Annotated[int, Field(ge=0, lt=1 << 32), Mark.AFTER_HEADERS] = 0
    """seed of every shuffle"""


class IdentifierOptions(Declared, title="identifiers"):
    """What is written of who is in the images."""

    identifiers: Identifiers = Identifiers.ORDINAL
    """what is written for patient, study and series ids"""
    identifier_key_file: Annotated[
        OptionalLocation,
        Mark.UNRECORDED,
        Field(description=f"secret of '--identifiers hash'; or set {KEY_VARIABLE}"),
    ] = None
    identifier_key_check: Annotated[OptionalText, Mark.DERIVED] = None
    """identifies the secret without revealing it"""


class RunOptions(Declared, title="run"):
    """How the work is done."""

    max_reject_fraction: Annotated[float, Field(ge=0, le=1), Mark.UNRECORDED] = 0.05
    """fail if more of the files are rejected; excluded files do not count"""
    decode_timeout: Annotated[float, Field(ge=1), Mark.UNRECORDED] = 120.0
    """seconds after which a slice's decoder counts as hung; it is tried twice"""
    workers: Annotated[
        int,
        Field(ge=1),
        Mark.UNRECORDED,
        DefaultText("one per core; with another runner than local one beside each of its workers"),
    ] = 1
    """processes that convert slices"""
    overwrite: Annotated[bool, Mark.UNRECORDED] = False
    """replace what an earlier run left in --output"""


class Options(Declared):
    """The options of a run."""

    files: Files
    selection: SelectionOptions = Field(default_factory=SelectionOptions)
    image: ImageOptions = Field(default_factory=ImageOptions)
    labels: LabelOptions = Field(default_factory=LabelOptions)
    splits: SplitOptions = Field(default_factory=SplitOptions)
    identifiers: IdentifierOptions = Field(default_factory=IdentifierOptions)
    run: RunOptions = Field(default_factory=RunOptions)

    @classmethod
    def groups(cls) -> dict[str, type[Declared]]:
        """Return the class of each group, by its name."""
        return {
            name: cast(type[Declared], field.annotation) for name, field in cls.model_fields.items()
        }

    @classmethod
    def fields(cls) -> dict[str, FieldInfo]:
        """Return the options of all groups."""
        return {k: v for kind in cls.groups().values() for k, v in kind.model_fields.items()}

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Return options by their own names, without those of their groups.

        Raises:
            UsageError: a value is not allowed, missing or unknown.
        """
        groups: dict[str, Any] = {
            name: kind(**{key: values.pop(key) for key in [*values] if key in kind.model_fields})
            for name, kind in cls.groups().items()
        }
        for name in values:
            raise UsageError(f"there is no option {name!r}{did_you_mean(name, cls.fields())}")
        return cls(**groups)

    def changed(self, **values: Any) -> Self:
        """These options with other values."""
        given = {name: value for group in self.groups() for name, value in getattr(self, group)}
        return self.of(**given | values)

    def recorded(self) -> dict[str, Any]:
        """The options that decide what is written, as JSON values: the same give the same bytes."""
        fields = self.fields()
        return {
            name: hide_secrets(value) if isinstance(value, str) else value
            for group in self.model_dump(mode="json").values()
            for name, value in group.items()
            if Mark.UNRECORDED not in fields[name].metadata
        }

    @classmethod
    def are_after_headers(cls, names: Iterable[str]) -> bool:
        """Whether options decide nothing of what is read of headers."""
        fields = cls.fields()
        return all(name in fields and Mark.AFTER_HEADERS in fields[name].metadata for name in names)

    def differing(self, earlier: Mapping[str, Any]) -> list[str]:
        """Return the options that an earlier run recorded with other values, by their names.

        Args:
            earlier: what `recorded` returned then, perhaps in an earlier version.
        """
        now, before = self.recorded(), fill_in(earlier)
        if (before["image_id"], now["image_id"]) == (ImageId.FILE_NAME, ImageId.AUTO):
            before["image_id"] = ImageId.AUTO  # the same bytes, since the earlier run succeeded
        if "orientation" not in earlier:  # all were used, and are axial in RSNA's data
            before["orientation"] = now["orientation"]
        names = before.keys() | now.keys()
        return sorted(name for name in names if before.get(name) != now.get(name))


_CONFIG_HEAD = """\
Options of these shards. They give the same bytes again, in another folder:
headct preprocess --config preprocess.toml --output FOLDER
Relative paths are relative to the folder in which the command runs."""
_KEY_NEEDED = f"\nThe hashes need the same key again: --identifier_key_file, or {KEY_VARIABLE}."


def config_text(options: Options) -> str:
    """Return the TOML file for `--config` that gives the same shards again."""
    given = options.recorded()
    # Otherwise the same rejects may be too many.
    given["max_reject_fraction"] = options.run.max_reject_fraction
    given["windows"] = [*map(str, options.image.windows)]
    if options.image.hu:  # has no windows
        del given["voi"]
    is_hashed = options.identifiers.identifiers is Identifiers.HASH
    head = _CONFIG_HEAD + _KEY_NEEDED * is_hashed
    return toml_text(head, Options.groups().values(), given)


def fill_in(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return options that an earlier version recorded, with those that it did not know."""
    return {**Options.of(input="", output="").recorded(), **_EARLIER, **recorded}
