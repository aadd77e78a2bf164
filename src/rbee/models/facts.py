"""A model on disk, all its parts together: which files they are, and what their headers say."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rbee.core.errors import ModelNotFound
from rbee.core.model_header import ModelFacts
from rbee.models.gguf import Part, Tensors, read_part, refuse
from rbee.models.traits import header_of

MAX_PARTS: Final = 1000
_SPLIT: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
"""How gguf-split of llama.cpp names parts; counted from 1 there, from 0 in the key split.no."""
_KINDS: Final = {
    "adapter": "an adapter; name the model that it belongs to",
    "imatrix": "a table for quantising; name a model made with it",
    "mmproj": "a projector for images or sound; name the language model that it belongs to",
}
"""By general.type: what is no model."""


def part_paths(path: str) -> Sequence[str]:
    """The files of the model whose first part is at *path*, by name alone. Raises NotAModelFile for a later part."""
    name = Path(path).name
    named = _SPLIT.fullmatch(name)
    if named is None:
        return [path]
    stem, number, count = named["stem"], int(named["number"]), int(named["count"])
    folder = os.path.dirname(path)
    if number != 1:
        refuse(path, f"is part {number} of a model; name its first part, {stem}-00001-of-{count:05}.gguf.")
    if not 0 < count <= MAX_PARTS:
        refuse(path, f"is said to be one of {count} parts; {MAX_PARTS} is the most.")
    return [os.path.join(folder, f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]


def read_facts(path: str) -> ModelFacts:
    """What the headers of the model at *path* say. Raises NotAModelFile; ModelNotFound for a part that is missing."""
    paths = part_paths(path)
    tensors = Tensors()
    first = read_part(path, tensors)
    _check_kind(path, first)
    count = first.keys.get("split.count", 1)
    sizes = [first.file_bytes]
    if type(count) is int and count > 1:
        if len(paths) != count:
            refuse(
                path, f"is one of {count} parts, and not named so: the first is called NAME-00001-of-{count:05}.gguf."
            )
        if first.keys.get("split.no", 0) != 0:
            refuse(
                path, f"is part {_number(first)} of a model by its header, and named as the first. Rename the parts."
            )
        sizes += [_read_further(other, number, count, tensors) for number, other in enumerate(paths[1:], 2)]
    if not tensors.count:
        refuse(path, "holds no tensors: it is no model, but a vocabulary or the like. Name a model.")
    return ModelFacts(sum(sizes), header_of(first.keys, first.tokens, tensors))


def _check_kind(path: str, first: Part) -> None:
    kind = first.keys.get("general.type")
    if first.keys.get("general.architecture") == "clip":
        kind = "mmproj"
    if isinstance(kind, str) and kind in _KINDS:
        refuse(path, f"is {_KINDS[kind]}.")


def _read_further(path: str, number: int, count: int, tensors: Tensors) -> int:
    """The size of a part after the first."""
    if not os.path.exists(path):
        raise ModelNotFound(f"'{path}', part {number} of {count} of the model, is missing. Download it too.")
    part = read_part(path, tensors)
    if part.keys.get("split.count") != count or _number(part) != number:
        refuse(path, f"is named as part {number} of {count}, and its header says otherwise. Download it again.")
    return part.file_bytes


def _number(part: Part) -> int | None:
    """Counted from 1, as in the names."""
    number = part.keys.get("split.no")
    return number + 1 if type(number) is int else None
