"""Pages from templates."""

import sys
from importlib.util import cache_from_source
from pathlib import Path

import pytest
from jinja2 import Environment

from headct import page


@pytest.mark.parametrize("written", [True, False])
def test_templates_are_compiled_once_where_python_keeps_what_it_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    (tmp_path / "a.html.jinja").write_text("{{ value }}")
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path / "compiled"))
    monkeypatch.setattr(sys, "dont_write_bytecode", not written)
    folder = Path(cache_from_source(page.__file__)).parent
    folder.mkdir(parents=True)
    compiled: list[str] = []
    compile_one = Environment._generate

    def compile_and_note(self: Environment, *args: object, **named: object) -> str:
        compiled.append(str(args[1]))
        return compile_one(self, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Environment, "_generate", compile_and_note)

    def fill(text: str) -> str:
        return page.page_templates(tmp_path).get_template("a.html.jinja").render(value=text)

    assert [fill("<1>"), fill("2")] == ["&lt;1&gt;", "2"]
    assert compiled == ["a.html.jinja"] * (1 if written else 2)
    (tmp_path / "a.html.jinja").write_text("{{ value }}!")
    folder.chmod(0o500)
    assert fill("3") == "3!"
