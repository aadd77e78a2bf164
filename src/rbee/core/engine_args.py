"""The arguments that a request may give an engine: one table an engine, and the one reader of such a list.

The hive asks ``check`` before it starts anything (422), the worker asks ``parse`` for the values.
``command`` has an empty table: what it runs comes from the settings file, never from a request.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from rbee.core.errors import InvalidField

MAX_TEXT: Final = 65_536
"""Characters of one value; the longest chat templates in use have about 20,000."""

LLAMA_CPP: Final = "llama-cpp"
COMMAND: Final = "command"
SYNTHETIC: Final = "synthetic"
"""The kinds of engine that there are."""

CACHE_TYPES: Final = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_PLAIN_CACHE_TYPES: Final = ("f32", "f16", "bf16")

Value = str | int | float | bool


class Choice(NamedTuple):
    options: tuple[str, ...]

    def read(self, text: str) -> str:
        if text not in self.options:
            raise ValueError(f"one of {', '.join(self.options)}")
        return text


class Whole(NamedTuple):
    least: int
    most: int

    def read(self, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 19 and self.least <= int(text) <= self.most):
            raise ValueError(f"a whole number from {self.least} to {self.most}")
        return int(text)


class Number(NamedTuple):
    """A finite number; *above* is exclusive, so that a rate of 0 can be refused."""

    least: float = 0.0
    above: float | None = None

    def read(self, text: str) -> float:
        wanted = f"a number of at least {self.least:g}" if self.above is None else f"a number above {self.above:g}"
        try:
            value = float(text)
        except ValueError:
            raise ValueError(wanted) from None
        if not math.isfinite(value) or value < self.least or (self.above is not None and value <= self.above):
            raise ValueError(wanted)
        return value


class Text(NamedTuple):
    """Free text; *one_of* are markers of which at least one must occur, *wanted* says so in words."""

    wanted: str
    one_of: tuple[str, ...] = ()

    def read(self, text: str) -> str:
        marked = not self.one_of or any(marker in text for marker in self.one_of)
        if not text or len(text) > MAX_TEXT or "\0" in text or not marked:
            raise ValueError(self.wanted)
        return text


class Flag(NamedTuple):
    """An argument without a value: there, or not."""


Kind = Choice | Whole | Number | Text | Flag

ALLOWED: Final[Mapping[str, Mapping[str, Kind]]] = {
    "llama-cpp": {
        "--cache-type-k": Choice(CACHE_TYPES),
        "--cache-type-v": Choice(CACHE_TYPES),
        "--chat-template": Text("a Jinja template (the names of llama.cpp's own templates do not work)", ("{{", "{%")),
        "--embedding": Flag(),
        "--flash-attn": Choice(("on", "off", "auto")),
        "--mlock": Flag(),
        "--mmap": Flag(),
        "--n-gpu-layers": Whole(0, 9999),
        "--no-mmap": Flag(),
        "--pooling": Choice(("none", "mean", "cls", "last", "rank")),
        "--reranking": Flag(),
        "--threads": Whole(1, 1024),
        "--threads-batch": Whole(1, 1024),
    },
    "command": {},
    "synthetic": {
        "--crash-after": Number(),
        "--fail-load": Text("a message"),
        "--first-token-seconds": Number(),
        "--fork-holder": Choice(("group", "session")),
        "--hang-after": Whole(0, 1 << 50),
        "--hold-bytes": Whole(0, 1 << 50),
        "--leak-bytes": Whole(0, 1 << 50),
        "--load-seconds": Number(),
        "--map-bytes": Whole(0, 1 << 50),
        "--stall-load": Flag(),
        "--tokens-per-second": Number(above=0.0),
        "--vram-bytes": Whole(0, 1 << 50),
    },
}


def check(engine: str, args: Sequence[str]) -> None:
    """Raise InvalidField, naming the argument, unless *engine* takes all of *args*."""
    parse(engine, args)


def parse(engine: str, args: Sequence[str]) -> dict[str, Value]:
    """The values in *args* (``--name value``, ``--name=value`` or, for a flag, ``--name``), keyed by name.

    Raises InvalidField for an unknown engine or argument, one given twice, and a bad or missing value.
    """
    if engine not in ALLOWED:
        raise InvalidField(f"There is no engine '{_shown(engine)}'; there are {', '.join(ALLOWED)}.", field="engine")
    values: dict[str, Value] = {}
    rest = iter(args)
    for item in rest:
        name, equals, attached = item.partition("=")
        kind = _kind(engine, name)
        if name in values:
            raise _invalid(name, f"The engine argument {name} is given twice.")
        if isinstance(kind, Flag):
            if equals:
                raise _invalid(name, f"The engine argument {name} takes no value.")
            values[name] = True
            continue
        text = attached if equals else next(rest, None)
        if text is None:
            raise _invalid(name, f"The engine argument {name} needs a value.")
        try:
            values[name] = kind.read(text)
        except ValueError as wanted:
            raise _invalid(name, f"The engine argument {name} must be {wanted}, not '{_shown(text)}'.") from None
    _check_together(values)
    return values


def _kind(engine: str, name: str) -> Kind:
    table = ALLOWED[engine]
    if name in table:
        return table[name]
    if not table:
        raise _invalid(name, f"The engine {engine} takes no arguments in a request; write them into its settings.")
    raise _invalid(name, f"The engine {engine} has no argument '{_shown(name)}'; it takes {', '.join(table)}.")


def _check_together(values: Mapping[str, Value]) -> None:
    if values.get("--flash-attn") == "off" and values.get("--cache-type-v", "f16") not in _PLAIN_CACHE_TYPES:
        raise _invalid("--cache-type-v", "A quantized --cache-type-v needs --flash-attn on or auto.")
    if "--mmap" in values and "--no-mmap" in values:
        raise _invalid("--no-mmap", "Only one of --mmap and --no-mmap can be given.")
    if "--reranking" in values and values.get("--pooling", "rank") != "rank":
        raise _invalid("--pooling", "--reranking works with --pooling rank alone.")


def _invalid(name: str, message: str) -> InvalidField:
    return InvalidField(message, field="engine_args", argument=_shown(name))


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:80])
