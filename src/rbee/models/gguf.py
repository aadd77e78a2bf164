"""Reads the header of one GGUF file: the keys that are wanted, and the table of tensors; arrays are passed over.

Bounded in time and memory, whatever the file says of itself. Layout: the specification of GGUF (versions 2 and 3).
"""

import os
import re
import stat
import struct
from dataclasses import dataclass, field
from operator import length_hint
from typing import BinaryIO, Final, NoReturn

from rbee.core.errors import ModelNotFound, NotAModelFile
from rbee.models.ggml_types import TYPES

MAX_KEYS: Final = 4096
MAX_TENSORS: Final = 8192
MAX_STEPS: Final = 1_100_000
"""For all parts together; a step is one string of an array, about 0.08 us. The largest that models have (Gemma 4: 262 k
tokens, 514 k merges) take some 950 k, reckoned from Gemma 3 (313 k)."""
_KEY_STEPS: Final = 25
_TENSOR_STEPS: Final = 60
_BYTES_A_STEP: Final = 128
"""Of what is read: a string may be as long as a file that has holes, and each then takes a read of its own."""
MAX_KEPT: Final = 4096
"""Elements of an array that is kept: one a layer, and llama.cpp takes 512 layers."""
_MAX_KEPT_TOGETHER: Final = 16 * MAX_KEPT
_MAX_KEY_BYTES: Final = 1024
_MAX_NAME_BYTES: Final = 63
"""GGML_MAX_NAME of ggml.h, less its closing zero."""
_MAX_TEXT_BYTES: Final = 1024
_MAX_DIMENSIONS: Final = 4
_MAX_ELEMENTS: Final = 2**63 - 1
_WINDOW_BYTES: Final = 2**16

_STRING: Final = 8
_ARRAY: Final = 9
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SIZES: Final = {code: struct.calcsize("<" + letter) for code, letter in _SCALARS.items()}
_LENGTH: Final = struct.Struct("<Q")
_NUMBER: Final = struct.Struct("<I")
_LAYER: Final = re.compile(r"(?:enc\.|dec\.)?blk\.(\d{1,4})\.(.+)")

Value = int | float | bool | str | tuple[int | float | bool, ...]


@dataclass(slots=True)
class Tensors:
    """What the tables of all parts of a model add up to. ``layers``: bytes by layer; ``marks``: the first words of
    the names in each, such as attn_k; ``by_type``: bytes by name of a type, ``beyond_input``: those without the token
    embeddings. ``unknown_type``: one without a size. ``steps``: what reading them took."""

    count: int = 0
    steps: int = 0
    input_bytes: int = 0
    embedding_bytes: int = 0
    embedding_type: str = ""
    output_bytes: int = 0
    has_output: bool = False
    vocabulary: int = 0
    layers: dict[int, int] = field(default_factory=dict)
    marks: dict[int, set[str]] = field(default_factory=dict)
    by_type: dict[str, int] = field(default_factory=dict)
    beyond_input: dict[str, int] = field(default_factory=dict)
    unknown_type: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One file: its size, the keys that were wanted, and how long each array of tokens is."""

    file_bytes: int
    keys: dict[str, Value]
    tokens: int


def read_part(path: str, tensors: Tensors) -> Part:
    """The header of the file at *path*, its table added to *tensors*. Raises ModelNotFound or NotAModelFile."""
    try:
        # Without waiting: a named pipe would block until somebody writes to it.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                refuse(path, "is a directory or a special file; name a GGUF file.")
            return _Reader(path, file, found.st_size, tensors).read()
    except IsADirectoryError:
        refuse(path, "is a directory or a special file; name a GGUF file.")
    except OSError as error:
        raise ModelNotFound(f"'{path}' cannot be read: {error.strerror}. Check the path and its permissions.") from None


def refuse(path: str, why: str) -> NoReturn:
    raise NotAModelFile(f"'{path}' {why}", field="model_ref")


class _Reader:
    """Walks a header front to back, with a window of the file in memory.

    Not mapped: a file that somebody cuts while it is mapped ends the whole hive with SIGBUS.
    """

    def __init__(self, path: str, file: BinaryIO, size: int, tensors: Tensors) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._tensors = tensors
        self._base = 0
        self._window = b""
        self._at = 0
        self._tokens = 0
        self._kept = 0
        self._alignment = 32

    def read(self) -> Part:
        self._check_start()
        tensor_count, key_count = self._length(), self._length()
        if key_count > MAX_KEYS:
            refuse(self._path, f"claims {key_count} keys of metadata; {MAX_KEYS} is the most that is read. {_DAMAGED}")
        if self._tensors.count + tensor_count > MAX_TENSORS:
            refuse(self._path, f"claims {tensor_count} tensors; {MAX_TENSORS} is the most that is read. {_DAMAGED}")
        self._spend(key_count * _KEY_STEPS + tensor_count * _TENSOR_STEPS)
        self._tensors.count += tensor_count
        keys = self._read_keys(key_count)
        self._read_tensors(tensor_count)
        return Part(self._size, keys, self._tokens)

    def _check_start(self) -> None:
        if self._size < 24:
            refuse(self._path, f"is cut off after {self._size} bytes. Download it again.")
        if self._take(4) != b"GGUF":
            refuse(self._path, "is not a GGUF file (it does not start with 'GGUF'). Convert the model to GGUF.")
        version = self._number()
        if version not in (2, 3):
            if version & 0xFFFF == 0:
                refuse(self._path, "is written for big-endian machines. Download or convert it for little-endian ones.")
            refuse(self._path, f"is of GGUF version {version}; 2 and 3 can be read. Convert the model again.")

    def _read_keys(self, count: int) -> dict[str, Value]:
        kept: dict[str, Value] = {}
        seen = set()
        for _ in range(count):
            key = self._text(_MAX_KEY_BYTES, "a key of its metadata")
            if key in seen:
                refuse(self._path, f"has the key {key!r} twice. {_DAMAGED}")
            seen.add(key)
            value = self._value(key, self._number())
            if value is not None:
                kept[key] = value
        alignment = kept.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            refuse(self._path, f"has an alignment of {alignment!r}, which is no power of two. {_DAMAGED}")
        self._alignment = alignment
        return kept

    def _value(self, key: str, code: int) -> Value | None:
        """The value of *key*, passed over where nobody wants it (None)."""
        if code == _ARRAY:
            return self._array(key)
        if code == _STRING:
            length = self._length()
            self._expect(length, key)
            if not _is_wanted(key) or length > _MAX_TEXT_BYTES:
                self._at += length
                return None
            return self._take(length).decode("utf-8", "replace")
        return self._scalars(key, code, 1)[0]

    def _array(self, key: str) -> Value | None:
        code, count = self._number(), self._length()
        if key == "tokenizer.ggml.tokens":
            self._tokens = count
        if code == _STRING:
            self._pass_strings(key, count)
            return None
        if code in _SIZES and (not _is_wanted(key) or count > min(MAX_KEPT, _MAX_KEPT_TOGETHER - self._kept)):
            self._expect(count * _SIZES[code], key)
            self._at += count * _SIZES[code]
            return None
        self._kept += count
        return self._scalars(key, code, count)

    def _scalars(self, key: str, code: int, count: int) -> tuple[int | float | bool, ...]:
        if code not in _SIZES:
            what = "arrays in an array" if code == _ARRAY else f"a value of the unknown type {code}"
            refuse(self._path, f"has {what} at the key {key!r}. {_DAMAGED}")
        size = count * _SIZES[code]
        self._expect(size, key)
        return struct.unpack(f"<{count}{_SCALARS[code]}", self._take(size))

    def _pass_strings(self, key: str, count: int) -> None:
        if count > MAX_STEPS:
            refuse(self._path, f"claims {count} strings at the key {key!r}, more than any model has. {_DAMAGED}")
        self._spend(count)
        self._expect(count * 8, key)
        left = count
        while left:
            self._fill(8, key)
            left, at = _hop(self._window, self._at - self._base, left)
            self._at = self._base + at
        self._expect(0, key)

    def _read_tensors(self, count: int) -> None:
        names = set()
        end = 0
        for _ in range(count):
            name = self._text(_MAX_NAME_BYTES, "the name of a tensor")
            if name in names:
                refuse(self._path, f"has the tensor {name!r} twice. {_DAMAGED}")
            names.add(name)
            end = max(end, self._read_tensor(name))
        start = -(-self._at // self._alignment) * self._alignment
        if count and start + end > self._size:
            refuse(
                self._path,
                f"is cut off: its tensors reach to byte {start + end}, and it has {self._size}. Download it again.",
            )

    def _read_tensor(self, name: str) -> int:
        """Count one tensor; returns the byte after it, from the start of all tensors."""
        rank = self._number()
        if rank > _MAX_DIMENSIONS:
            refuse(self._path, f"has a tensor {name!r} of {rank} dimensions. {_DAMAGED}")
        shape = struct.unpack(f"<{rank}Q", self._take(8 * rank))
        kind, offset = self._number(), self._length()
        elements = 1
        for dimension in shape:
            elements *= dimension
        if elements > _MAX_ELEMENTS or max(shape, default=0) > _MAX_ELEMENTS:
            refuse(self._path, f"has a tensor {name!r} with more elements than can be counted. {_DAMAGED}")
        if offset % self._alignment:
            refuse(self._path, f"has a tensor {name!r} that is not aligned to {self._alignment} bytes. {_DAMAGED}")
        if kind not in TYPES:
            self._tensors.unknown_type = kind
            return offset
        type_name, block, block_bytes = TYPES[kind]
        if (shape[0] if shape else 1) % block:
            refuse(self._path, f"has a tensor {name!r} whose rows are no whole blocks of {type_name}. {_DAMAGED}")
        size = elements // block * block_bytes
        _count(self._tensors, name, shape, type_name, size)
        return offset + size

    def _text(self, limit: int, what: str) -> str:
        length = self._length()
        if length > limit:
            refuse(self._path, f"has {what} of {length} bytes; {limit} is the most. {_DAMAGED}")
        return self._take(length).decode("utf-8", "backslashreplace")

    def _length(self) -> int:
        return int(_LENGTH.unpack(self._take(8))[0])

    def _number(self) -> int:
        return int(_NUMBER.unpack(self._take(4))[0])

    def _take(self, count: int) -> bytes:
        self._fill(count, "")
        start = self._at - self._base
        self._at += count
        return self._window[start : start + count]

    def _fill(self, count: int, key: str) -> None:
        """Have *count* bytes from here on in the window."""
        if self._at + count > self._base + len(self._window):
            self._expect(count, key)
            self._window = os.pread(self._file.fileno(), max(_WINDOW_BYTES, count), self._at)
            self._spend(len(self._window) // _BYTES_A_STEP)
            self._base = self._at
            if len(self._window) < count:
                refuse(self._path, "became shorter while it was read. Try again.")

    def _spend(self, steps: int) -> None:
        self._tensors.steps += steps
        if self._tensors.steps > MAX_STEPS:
            refuse(self._path, f"has a longer header than any model. {_DAMAGED}")

    def _expect(self, count: int, key: str) -> None:
        """Refuse what would end beyond the file."""
        if self._at + count > self._size:
            where = f" at the key {key!r}" if key else ""
            refuse(
                self._path,
                f"is cut off, or damaged{where}: its header reaches to byte {self._at + count}, and it has "
                f"{self._size}. Download it again.",
            )


_DAMAGED: Final = "It is damaged, or not a model: download it again."


def _is_wanted(key: str) -> bool:
    return not key.startswith("tokenizer.")


def _hop(window: bytes, at: int, count: int) -> tuple[int, int]:
    """From string to string while their lengths lie in *window*: how many are left then, and where the next begins."""
    unpack = _LENGTH.unpack_from
    strings = iter(range(count))
    try:
        for _ in strings:
            at += 8 + unpack(window, at)[0]
    except (struct.error, OverflowError):
        return length_hint(strings) + 1, at
    return 0, at


def _count(tensors: Tensors, name: str, shape: tuple[int, ...], type_name: str, size: int) -> None:
    tensors.by_type[type_name] = tensors.by_type.get(type_name, 0) + size
    is_input = name.startswith(("token_embd", "per_layer_token_embd", "position_embd", "token_types"))
    if not is_input:
        tensors.beyond_input[type_name] = tensors.beyond_input.get(type_name, 0) + size
    if of_layer := _LAYER.fullmatch(name):
        layer, rest = int(of_layer[1]), of_layer[2]
        tensors.layers[layer] = tensors.layers.get(layer, 0) + size
        tensors.marks.setdefault(layer, set()).add(rest.split(".", 1)[0])
    elif is_input:
        tensors.input_bytes += size
        if name == "token_embd.weight":
            tensors.embedding_bytes = size
            tensors.embedding_type = type_name
            tensors.vocabulary = shape[-1] if shape else 0
    else:
        tensors.output_bytes += size
        tensors.has_output = tensors.has_output or name == "output.weight"
