"""Where a run comes from: its command, data, machine and versions."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from headct.declarations import flags
from headct.json_documents import read_json
from headct.layout import CARD
from trainer.networks.catalog import BACKBONES
from trainer.options import TrainOptions
from trainer.report.page import code
from trainer.runs.run_directory import RunDirectory

Pairs = list[tuple[str, Any]]
UNRECORDED = "not recorded"


def defaults() -> dict[str, Any]:
    """The defaults of training's options, of those that have one."""
    return {
        name: field.default
        for name, field in flags(TrainOptions).items()
        if not field.is_required()
    }


def training_command(run: Path, description: Mapping[str, Any]) -> str:
    """The command that makes this run again: what is at its default is left out."""
    usual = defaults()
    given = {"shards": description["shards"]["path"], "run": str(run)}
    origin = description.get("continued_from")
    given |= {"continue_from": origin["run"]} if origin else {}
    given |= {
        name: value
        for name, value in description["options"].items()
        if name not in usual or usual[name] != value
    }
    if given.get("model", "resnet50") not in BACKBONES:  # a function of Python's
        values = {name: repr(value) for name, value in given.items()}
        values["model"] = str(given["model"])
        return f"trainer.train_run({', '.join(f'{k}={v}' for k, v in values.items())})"
    words = ["python", "-m", "trainer", "train"]
    for name, value in given.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def describe_origin(
    run: RunDirectory, description: Mapping[str, Any], metrics: Mapping[str, Any], shards: Path
) -> Pairs:
    """What a page says of a run's origin; `shards` is the folder that they are read from."""
    machine = read_json(run.machine) if run.machine.is_file() else {}
    data = description["shards"]
    return [
        ("Run", run.path.name),
        ("Trained", readable_time(machine.get("finished"))),
        ("Report written", readable_time(datetime.now(UTC).isoformat())),
        ("Command", code(training_command(run.path, description))),
        ("Shards", code(data["path"])),
        ("Digest of the shards", code(data["digest"])),
        ("Data card", link_data_card(run.path, data["path"], shards)),
        (
            "Model",
            f"{description['options'].get('model', UNRECORDED)}, epoch"
            f" {metrics['best_epoch']} of {metrics['epochs']}",
        ),
        *_describe_start(description.get("continued_from")),
        ("Backend", machine.get("backend") or description["options"].get("backend", UNRECORDED)),
        ("Devices", ", ".join(machine.get("devices", [])) or UNRECORDED),
        ("Machine", describe_machine(machine)),
        ("Versions", ", ".join(f"{k} {v}" for k, v in description["versions"].items())),
    ]


def _describe_start(origin: Mapping[str, str] | None) -> Pairs:
    """Whose model a run started from, if it is another run's."""
    if not origin:
        return []
    digest = code(f"sha256 {origin['model_sha256'][:12]}")
    return [("Starts from the model of", Markup("{} ({})").format(code(origin["run"]), digest))]


def describe_machine(machine: Mapping[str, Any]) -> str:
    """Cores, memory and system in a line."""
    if not machine:
        return UNRECORDED
    return f"{machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}"


def readable_time(text: str | None) -> str:
    """An ISO time to the minute."""
    if text is None:
        return UNRECORDED
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def link_data_card(run: Path, location: str, shards: Path) -> Markup | str:
    """A relative link from the run to the shard directory's report.html, where there is one."""
    card = shards / CARD
    if "://" in location:
        return f"report.html in {location}"
    if not card.is_file():
        return "none in the shard directory"
    relative = os.path.relpath(card.resolve(), run.resolve())
    return Markup('<a href="{}">report.html of the shard directory</a>').format(
        quote(Path(relative).as_posix())
    )


def option_rows(options: Mapping[str, Any]) -> list[list[Any]]:
    """Name, value and default of each option; those that differ from the default come first."""
    usual = defaults()
    rows = [[name, str(value), str(usual.get(name, ""))] for name, value in options.items()]
    return sorted(rows, key=lambda row: row[1] == row[2])
