"""Numbers as a card writes them."""

from beam_pipeline.card.totals import Spread


def count(number: int) -> str:
    """A whole number with separators: 752,803."""
    return f"{number:,}"


def percent(share: float) -> str:
    """A share with two significant digits where it is small: 14 %, 0.42 %."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.2g} %"


def deviation(found: float, expected: float) -> str:
    """By how much a number is off another one, signed: +5.8 %; empty if that is 0."""
    if not expected:
        return ""
    off = 100 * (found / expected - 1)
    return with_minus(f"{off:+.0f} %" if abs(off) >= 10 else f"{off:+.1f} %")


def with_minus(text: str) -> str:
    """A text whose hyphens are signs of numbers, with the proper sign."""
    return text.replace("-", "\N{MINUS SIGN}")


def size(number: int) -> str:
    """Bytes: 26.3 MB."""
    value = float(number)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}" if unit != "bytes" else f"{number} bytes"
        value /= 1000
    return f"{value:.3g} TB"


def duration(seconds: float) -> str:
    """42 s, 7 min 30 s, 3 h 12 min."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 90:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def spread(found: Spread | None, unit: str = "") -> str:
    """Median, quartiles and range of numbers."""
    if found is None:
        return "unknown"
    unit = f" {unit}" if unit else ""
    if found.least == found.greatest:
        return f"{found.median:.4g}{unit}, all the same"
    half = f"half of them {found.lower:.4g} to {found.upper:.4g}, "
    half = "" if found.lower == found.upper else half
    return f"median {found.median:.4g}{unit} ({half}all {found.least:.4g} to {found.greatest:.4g})"
