"""Models of run.json and temperatures.json, for `headct.json_documents`."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from headct.json_documents import PRINTABLE, must
from headct.manifest import ImageSpec, Labels, Options, Windows


def _is_scalar(value: Any) -> Any:
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError("is a list or an object")
    return value


Scalar = Annotated[Any, AfterValidator(_is_scalar), must("text, a number, true, false or null")]
Text = Annotated[str, Field(strict=True, max_length=200), must("text")]
Line = Annotated[
    str,
    Field(strict=True, max_length=4096),
    PRINTABLE,
    must("text without control characters"),
]
Share = Annotated[float, Field(strict=True, ge=0, le=1), must("a number from 0 to 1")]


class RunOptions(BaseModel):
    """Options of a training."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Scalar] = Field(init=False)

    fold: Annotated[int, Field(strict=True, ge=0, le=1000000), must("a whole number, 0 or more")]
    label_weights: Annotated[str, Field(strict=True), PRINTABLE, must("text, name=weight,...")]


@dataclass
class TrainingShards:
    """The shards of a training."""

    path: Annotated[
        str,
        Field(strict=True, min_length=1, max_length=4096),
        PRINTABLE,
        must("the path or URL of a shard directory"),
    ]
    digest: Text
    labels: Annotated[Labels, Field(min_length=1), must("a list of 1 to 1000 different labels")]
    windows: Windows
    image: Annotated[ImageSpec, must("an object with height, width and channels")]
    prevalence: Annotated[list[Share], must("a list of numbers from 0 to 1")]
    preprocessing: Options = Field(default_factory=dict)
    patient_ids: Text = ""
    image_ids: Text = ""


class ContinuedFrom(BaseModel):
    """The run whose model a training started from."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    __pydantic_extra__: dict[str, Line] = Field(init=False)

    run: Line
    model_sha256: Line


@dataclass
class RunDescription:
    """run.json."""

    options: Annotated[RunOptions, must("an object with the options of the run")]
    shards: Annotated[
        TrainingShards,
        must("an object with path, digest, labels, windows, image and prevalence"),
    ]
    versions: Annotated[
        dict[str, Annotated[str, Field(strict=True), must("text")]],
        must("an object with a text per package"),
    ]
    continued_from: (
        Annotated[ContinuedFrom, must("an object with run and model_sha256, or null")] | None
    ) = None


def _with_bias(value: Any) -> Any:
    """Convert an entry of earlier versions, a temperature alone."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return value
    if not 0.001 <= value <= 1000:
        raise ValueError("out of range")
    return {"temperature": value, "bias": 0.0}


@dataclass
class Temperature:
    """The calibration of a label, and what it was fitted on."""

    temperature: Annotated[
        float, Field(strict=True, ge=0.001, le=1000), must("a number from 0.001 to 1000")
    ]
    bias: Annotated[
        float, Field(strict=True, ge=-1000, le=1000), must("a number from -1000 to 1000")
    ]
    split: Annotated[str, Field(strict=True, max_length=64), must("text")] = ""
    digest: Text = ""


# temperatures.json
Temperatures = Annotated[
    dict[
        str,
        Annotated[
            Temperature,
            BeforeValidator(_with_bias),
            must("a number from 0.001 to 1000, or an object with temperature and bias"),
        ],
    ],
    must("an object with a temperature per label"),
]
