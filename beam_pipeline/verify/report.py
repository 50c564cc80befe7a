"""What a user sees of a verification."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Column, Table

from beam_pipeline.split_tables import print_by_split
from beam_pipeline.verify.findings import Check, Finding, Findings
from beam_pipeline.verify.splits import IdenticalImages, SplitSummary


def show_checks(console: Console, findings: Findings) -> None:
    """Print a table with a row a check."""
    table = Table("check", Column("checked", justify="right"), Column("wrong", justify="right"), "")
    for check in Check:
        checked, failed = findings.checked[check], findings.failed[check]
        result = "[red]FAILED[/]" if failed else "[green]ok[/]" if checked else "not checked"
        table.add_row(check.value, f"{checked:,}", f"{failed:,}" if failed else "", result)
    console.print(table)


def show_splits(
    console: Console, splits: Sequence[SplitSummary], identical: IdenticalImages
) -> None:
    """Print a table with a column a split; each label's count, and its share against all's."""
    labels = splits[0].label_counts if splits else ()
    rows = [
        ("patients", [f"{split.patients:,}" for split in splits]),
        ("shards", [f"{split.shards:,}" for split in splits]),
        ("slices", [f"{split.slices:,}" for split in splits]),
        ("MB", [f"{split.bytes / 1e6:,.1f}" for split in splits]),
        *((label, [_share(label, split, splits) for split in splits]) for label in labels),
        ("shards differ by", [str(split.spread) for split in splits]),
    ]
    print_by_split(console, [split.name for split in splits], rows)
    if identical.slices:
        console.print(
            f"{identical.slices} slices have the image of another one;"
            f" {identical.across_splits} images are in more than one split",
            highlight=False,
        )


def _share(label: str, split: SplitSummary, splits: Sequence[SplitSummary]) -> str:
    """A count, and by how much its share of the split is off the share of all splits."""
    total = sum(other.label_counts[label] for other in splits)
    labeled = sum(other.labeled for other in splits)
    count = split.label_counts[label]
    if not split.labeled or not total:
        return f"{count:,}"
    deviation = count / split.labeled / (total / labeled) - 1
    return f"{count:,} {deviation:+.0%}" if abs(deviation) >= 0.1 else f"{count:,} {deviation:+.1%}"


def show_findings(console: Console, findings: Findings, limit: int) -> None:
    """Print the first problems of each check, up to a limit, and how many more there are."""
    for check in (check for check in Check if findings.failed[check]):
        console.print(f"\n{check.value}:", highlight=False, markup=False)
        found = [finding for finding in findings.kept if finding.check is check]
        for finding in sorted(found, key=_place)[:limit]:
            console.print(f"  {finding}", highlight=False, markup=False, soft_wrap=True)
        hidden = findings.failed[check] - min(limit, len(found))
        if hidden:
            console.print(f"  ... and {hidden:,} more", highlight=False)


def _place(finding: Finding) -> tuple[str, int, str]:
    return finding.file, -1 if finding.record is None else finding.record, finding.message
