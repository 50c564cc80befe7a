"""The command that makes a shard directory again, from its manifest's options."""

import csv
import io
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from beam_pipeline.images.windows import FROM_FILE, PRESETS
from beam_pipeline.options import Options, RunOptions

# Paths are left to whoever runs it: they may tell of people and machines.
_PLACES = {"input": "$INPUT", "labels": "$LABELS", "folds_from": "$FOLDS_FROM"}
_KEY_FILE, _OUTPUT = "$KEY_FILE", "$OUTPUT"


def command_of(options: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
    """The command, with variables of the shell for paths and without what is the default.

    Args:
        options: the manifest's, as JSON values.
        counts: the manifest's: as many rejects are to be allowed.
    """
    words = ["python", "-m", "beam_pipeline"]
    for name, value in _flags(options):
        words += [f"--{name}", *([] if value is True else [_quote(value)])]
    rejected = counts["rejected"] / counts["files_seen"]
    if rejected > RunOptions().max_reject_fraction:
        words += ["--max_reject_fraction", f"{math.ceil(rejected * 100) / 100:g}"]
    return " ".join(words)


def _quote(value: Any) -> str:
    text = str(value)
    is_place = text in (*_PLACES.values(), _KEY_FILE, _OUTPUT)
    return f'"{text}"' if is_place else shlex.quote(text)


def _flags(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "input", _PLACES["input"]
    if options["labels"] is not None:
        yield "labels", _PLACES["labels"]
    yield "output", _OUTPUT
    defaults = Options.of(input="", output="").recorded()
    for name, value in options.items():
        if name in ("input", "labels") or value == defaults.get(name):
            continue
        if name == "windows":
            if value:
                yield name, ",".join(map(_window, value))
        elif name == "identifier_key_check":
            yield "identifier_key_file", _KEY_FILE
        elif name in _PLACES:
            yield name, _PLACES[name]
        else:
            yield name, _listed(value) if isinstance(value, list) else value


def _listed(names: Sequence[str]) -> str:
    """Names separated by commas, in quotes where they have one, as `--label_columns` takes them."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(names)
    return text.getvalue()


def _window(window: Mapping[str, Any]) -> str:
    name, center, width = window["name"], window["center"], window["width"]
    if center is None:
        return FROM_FILE
    if PRESETS.get(name) == (center, width):
        return str(name)
    return f"{name}:{center!r}:{width!r}"
