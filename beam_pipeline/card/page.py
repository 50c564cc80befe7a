"""A card as one HTML page that needs no other file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beam_pipeline.card import facts, pictures, tables
from beam_pipeline.card.content import Content
from beam_pipeline.card.numbers import count
from beam_pipeline.directory.rejects import Reject, count_reasons
from headct.page import page_templates

_CARD = "card.html.jinja"
_REFUSED = "refused.html.jinja"


def render(content: Content) -> str:
    """The page, out of its template."""
    return _fill(_CARD, _sections(content))


def render_refused(files_seen: int, rejects: Sequence[Reject]) -> str:
    """Return the page of a run that ended because too many files were rejected."""
    by_reason = count_reasons(rejects)
    counts = {"files_seen": files_seen, "rejected_by_reason": by_reason}
    return _fill(
        _REFUSED,
        {
            "files_seen": files_seen,
            "rejected": len(rejects),
            "rejects": tables.reject_table(counts, rejects),
        },
    )


def _fill(template: str, values: dict[str, Any]) -> str:
    templates = page_templates(Path(__file__).parent)
    templates.filters["count"] = count
    return templates.get_template(template).render(values)


def _sections(content: Content) -> dict[str, Any]:
    manifest, totals = content.manifest, content.totals
    labeled = totals.labeled > 0
    return {
        "manifest": manifest,
        "labeled": labeled,
        "headline": facts.headline(content),
        "rejects": tables.reject_table(manifest["counts"], content.rejects)
        if content.rejects
        else None,
        "absent": _absent(content) if labeled else [],
        "examples": pictures.example_groups(content),
        "drawings": pictures.distributions(content),
        "labels": [tables.label_table(content), tables.co_occurrence_table(content)]
        if labeled
        else [],
        "splits": [
            tables.split_table(content),
            *([tables.fold_table(content), tables.shard_table(content)] if labeled else []),
        ],
        "missing": tables.missing_in_splits(content) if labeled else [],
        "geometry": facts.geometry(content),
        "kinds": facts.kind_tables(content),
        "identical": facts.identical_pixels(content),
        "throughput": facts.throughput(content),
        "origin": facts.origin(content),
        "options": facts.options(content),
        "command": facts.command(content),
    }


def _absent(content: Content) -> list[str]:
    """The labels that no slice has."""
    labels = zip(content.manifest["labels"], content.totals.positives, strict=True)
    return [label for label, rows in labels if not len(rows)]
