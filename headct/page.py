"""HTML pages made from templates that extend `page.html.jinja`, the layout all reports share."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

LAYOUT = Path(__file__).with_name("page.html.jinja")


def page_templates(folder: Path) -> Environment:
    """Return the page templates of a folder; they escape values and refuse unknown names."""
    return Environment(
        loader=FileSystemLoader([folder, LAYOUT.parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
