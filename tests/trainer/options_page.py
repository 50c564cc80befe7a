"""The page of all options of the trainer; `python -m tests.trainer.options_page` writes it."""

from collections.abc import Iterator
from pathlib import Path

from headct import commands
from headct.declarations import allowed_values, default_text, flags, meaning
from trainer.command_line import COMMANDS

PAGE = Path(__file__).parents[2] / "docs" / "trainer-options.md"


def options_page() -> str:
    """Every command and option, as declared."""
    return "\n".join(lines())


def lines() -> Iterator[str]:
    yield "# The trainer's options\n"
    yield "`python -m trainer COMMAND`: flags, and keys of the TOML file that `--config` names."
    yield "`tests/trainer/options_page.py` writes this page from `trainer/options.py`."
    for command, kind in COMMANDS.items():
        text = commands.COMMANDS[command].text
        yield f"\n## {command}\n\n{text[0].upper()}{text[1:]}.\n"
        yield "| option | allowed | default | |\n|---|---|---|---|"
        for name, field in flags(kind).items():
            default = "required" if field.is_required() else default_text(field)
            yield f"| `{name}` | {allowed_values(field)} | {default} | {meaning(field)} |"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(options_page(), encoding="utf-8")
