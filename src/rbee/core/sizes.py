"""Sizes as sentences tell them: near enough to read, small ones exact."""

from typing import Final

_UNITS: Final = (("TiB", 2**40, 2), ("GiB", 2**30, 2), ("MiB", 2**20, 0), ("KiB", 2**10, 0))


def size_text(size_bytes: int) -> str:
    """*size_bytes*, not negative, in the largest unit of which there is one."""
    for unit, factor, digits in _UNITS:
        if size_bytes >= factor:
            return f"{size_bytes / factor:.{digits}f} {unit}"
    return "1 byte" if size_bytes == 1 else f"{size_bytes} bytes"


def setting_text(size_bytes: int) -> str:
    """A whole number of MiB in the spelling that a setting takes."""
    return f"{size_bytes // 2**30}GiB" if size_bytes % 2**30 == 0 else f"{size_bytes // 2**20}MiB"
