"""What a run keeps to calibrate its logits by: a temperature and a bias per label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headct.errors import UsageError
from headct.json_documents import key_path, read_document
from trainer.files import write_json
from trainer.runs.documents import Temperatures
from trainer.runs.run_directory import RunDirectory


@dataclass(frozen=True)
class Calibration:
    """Makes calibrated logits: each label's logit / temperature + bias.

    Attributes:
        temperatures: [L].
        biases: [L].
        split: that it was fitted on, and the digest of its shards; empty where that is not known.
        digest: see there.
    """

    temperatures: tuple[float, ...]
    biases: tuple[float, ...]
    split: str = ""
    digest: str = ""

    @classmethod
    def none(cls, labels: int) -> Calibration:
        """The one that changes nothing."""
        return cls((1.0,) * labels, (0.0,) * labels)

    @property
    def changes(self) -> bool:
        """Whether it changes any logit."""
        return any(each != 1 for each in self.temperatures) or any(self.biases)

    def apply(self, logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """Calibrates logits, [N, L]."""
        return np.asarray(logits / np.array(self.temperatures) + np.array(self.biases))

    def describe(self, labels: tuple[str, ...]) -> dict[str, Any]:
        """What files say of it."""
        return {
            "temperatures": dict(zip(labels, self.temperatures, strict=True)),
            "biases": dict(zip(labels, self.biases, strict=True)),
        }


def choose_calibration(run: RunDirectory, labels: tuple[str, ...], wanted: bool) -> Calibration:
    """The calibration that the run keeps; one that changes nothing unless it is wanted.

    Raises:
        UsageError: it is wanted and not there, or not usable.
    """
    if not wanted:
        return Calibration.none(len(labels))
    try:
        return read_calibration(run, labels)
    except FileNotFoundError:
        raise UsageError(
            f"--temperature: {run.path} has none; `evaluate --fit_temperature` finds them"
        ) from None


def read_calibration(run: RunDirectory, labels: tuple[str, ...]) -> Calibration:
    """What temperatures.json has for each label; earlier versions wrote a temperature alone.

    Raises:
        FileNotFoundError: there is none.
        UsageError: it is not whole, or has nothing for a label.
    """
    kept = read_document(run.temperatures, Temperatures)
    for label in labels:
        if label not in kept:
            raise UsageError(f"{run.temperatures}: {key_path([label])}: is missing")
    fitted = [kept[label] for label in labels]
    return Calibration(
        tuple(label.temperature for label in fitted),
        tuple(label.bias for label in fitted),
        fitted[0].split,
        fitted[0].digest,
    )


def write_calibration(run: RunDirectory, labels: tuple[str, ...], calibration: Calibration) -> None:
    """Writes temperatures.json."""
    fitted_on = {"split": calibration.split, "digest": calibration.digest}
    pairs = zip(calibration.temperatures, calibration.biases, strict=True)
    content = {
        label: {"temperature": temperature, "bias": bias} | fitted_on
        for label, (temperature, bias) in zip(labels, pairs, strict=True)
    }
    write_json(run.temperatures, content)
