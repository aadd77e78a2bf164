"""Sizes and durations as people write them: `8GiB`, `512MiB`, `30s`, `250ms`; bare numbers are bytes and seconds.

Standard library only: the command line reads them too, and must start quickly.
"""

import re
from decimal import Decimal
from typing import Any, Final

SIZE_UNITS: Final = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
DURATION_UNITS: Final = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}
MAX_BYTES: Final = 2**63 - 1
"""What TOML and SQLite can hold."""
MAX_SECONDS: Final = 10 * 365 * 86400.0
"""Ten years: anything longer is a mistake, and event loops refuse infinite timers."""

_FOLDED_SIZES: Final = {unit.lower(): factor for unit, factor in SIZE_UNITS.items()}
_NUMBER_AND_UNIT: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")


def parse_size(value: Any) -> int:
    """Bytes. Takes a whole number, or text such as `8GiB` (binary) and `10MB` (decimal); raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        number, unit = _split(value, "a size", "8GiB, 512MiB, 10MB or a whole number of bytes")
        factor = _FOLDED_SIZES.get(unit.lower() or "b")
        if factor is None:
            raise ValueError(f"'{unit}' is not a unit of size; use one of {', '.join(SIZE_UNITS)}")
        size = int(number * factor)
    if not 0 <= size <= MAX_BYTES:
        raise ValueError(f"a size must lie between 0 and {MAX_BYTES} bytes")
    return size


def parse_duration(value: Any) -> float:
    """Seconds. Takes a number, or text such as `30s`, `2m`, `24h`, `250ms`; raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = value
    else:
        number, unit = _split(value, "a duration", "30s, 2m, 24h, 250ms or a number of seconds")
        factor = DURATION_UNITS.get(unit or "s")
        if factor is None:
            raise ValueError(f"'{unit}' is not a unit of time; use one of {', '.join(DURATION_UNITS)}")
        seconds = float(number * factor)
    # Written so that NaN, which compares false with everything, is refused too.
    if not 0 <= seconds <= MAX_SECONDS:
        raise ValueError("a duration must lie between 0 and 3650d")
    return float(seconds)


def format_size(size_bytes: int) -> str:
    """The shortest exact spelling; parse_size() gives the same number back."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % SIZE_UNITS[unit] == 0:
            return f"{size_bytes // SIZE_UNITS[unit]}{unit}"
    return str(size_bytes)


def format_duration(seconds: float) -> str:
    """The shortest exact spelling; parse_duration() gives the same number back."""
    for unit, factor in (("h", 3600), ("m", 60)):
        if seconds and seconds % factor == 0:
            return f"{int(seconds // factor)}{unit}"
    if seconds == int(seconds):
        return f"{int(seconds)}s"
    return f"{Decimal(repr(seconds)):f}s"


def _split(value: Any, what: str, examples: str) -> tuple[Decimal, str]:
    match = _NUMBER_AND_UNIT.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"this is not {what}; write {examples}")
    return Decimal(match[1]), match[2]
