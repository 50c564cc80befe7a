"""docs/options.md, made of the declarations: `python -m tests.options_table` writes it."""

from pathlib import Path

from beam_pipeline.command_line import KINDS, RunnerOptions
from headct.declarations import Declared, Mark, allowed_values, default_text, flags, meaning

PAGE = Path(__file__).parents[1] / "docs" / "options.md"
_HEAD = """# Options

Made of the declarations in `beam_pipeline/options.py` by `python -m tests.options_table`.

## `python -m beam_pipeline`, `make preprocess`

With make, `ARGS="--name value"` passes an option on. `--config FILE.toml` reads options from a file
(`name = value`); flags override it. The manifest records the options that decide what is written:
the same input and the same options give the same bytes; `preprocess.toml` beside it has them for
`--config`. Those marked with \u00b7 are not recorded.
"""


def page() -> str:
    """The page, as Markdown."""
    return "\n".join([_HEAD, *map(_table, KINDS)])


def _table(kind: type[Declared]) -> str:
    rows = []
    for name, field in flags(kind).items():
        recorded = kind is not RunnerOptions and Mark.UNRECORDED not in field.metadata
        default = "required" if field.is_required() else default_text(field)
        cells = [f"`--{name}`{'' if recorded else ' ·'}", meaning(field)]
        rows.append(f"| {' | '.join([*cells, allowed_values(field), default])} |")
    title = str(kind.model_config.get("title")).capitalize()
    head = ["| option | what | values | default |", "|---|---|---|---|"]
    return "\n".join([f"### {title}", "", str(kind.__doc__), "", *head, *rows, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
