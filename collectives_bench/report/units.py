"""Numbers as people read them."""

_LARGE = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_SMALL = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))

ROUNDED = 0.9995
"""From here on three digits show a unit's 1.00."""


def rate(per_s: float, unit: str = "B/s") -> str:
    """A rate with three digits and a decimal prefix: `12.3 GB/s`."""
    for scale, prefix in _LARGE:
        if per_s >= ROUNDED * scale:
            return f"{_three(per_s / scale)} {prefix}{unit}"
    return f"{_three(per_s)} {unit}"


def seconds(s: float) -> str:
    """A time with three digits: `12.3 us`."""
    scale, unit = next((pair for pair in _SMALL if s >= ROUNDED * pair[0]), _SMALL[-1])
    return f"{_three(s / scale)} {unit}"


def count(number: int, noun: str) -> str:
    """`1 rank`, `2 ranks`."""
    return f"{number} {noun}" + "s" * (number != 1)


def _three(value: float) -> str:
    """Three digits, never in powers of ten: 1.23, 12.3, 123, 1234."""
    digits = len(str(int(value / ROUNDED)))
    return f"{value:.{max(0, 3 - digits)}f}"
