"""The command line and the environment of a worker, read once."""

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, NoReturn

from rbee.core import engine_args
from rbee.core.errors import InvalidField
from rbee.core.limits import MAX_CTX_SIZE, MAX_DEVICES, MAX_NAME, MAX_SLOTS, MAX_SPEC_BYTES
from rbee.worker.wire import Address, parse_address

_WORKER_ID: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}")
_SLOTS: Final = {"command": 256}
_DEFAULT_SLOTS: Final = 4
_PORTS: Final = range(1, 65536)
_LONGEST: Final = 1e8
"""Seconds, three years: timers overflow far above it."""

_LAST_DEVICE: Final = 1023

_SPAN: Final = 919
"""Ports after --port that may be used instead; 8081 gives DESIGN's 8081-9000."""


class Options(NamedTuple):
    """Seconds are floats, None where the hive decides; *token* is '' where there is none.

    *spec* is the hive's own description of this worker, which means nothing here; None where no hive started it.
    """

    worker_id: str
    model: str
    model_ref: str
    backend: str
    device: int
    devices: tuple[int, ...]
    tensor_split: tuple[float, ...]
    host: str
    port: int
    port_last: int
    callback: Address
    engine: str
    engine_args: dict[str, engine_args.Value]
    engine_python: str
    ctx_size: int
    slots: int
    prompt_cache: int
    heartbeat_interval: float | None
    orphan_timeout: float
    drain_timeout: float
    end_timeout: float | None
    alias: str | None
    incarnation: int | None
    exit_file: str | None
    token: str
    template: tuple[str, ...]
    health_path: str
    spec: dict[str, Any] | None


class BadOptions(SystemExit):
    """Exit status 2. *message* is one line and has been printed."""

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # One line: it ends up in a log or in the hive's answer.
        self._print_message(f"{self.prog}: error: {message}\n", sys.stderr)
        raise BadOptions(message)


def read(argv: Sequence[str], environ: Mapping[str, str]) -> Options:
    """The options in *argv* (all after ``--`` is the engine's). Raises BadOptions for a bad value."""
    parser = _parser()
    own, args = _split(argv)
    found = vars(parser.parse_args(own))
    try:
        found["engine_args"] = engine_args.parse(found["engine"], args)
        return Options(**found, **_from_environment(found["engine"], environ))._replace(**_derived(found))
    except InvalidField as error:
        parser.error(error.message)
    except ValueError as error:
        parser.error(str(error))


def where_to_leave_word(argv: Sequence[str]) -> tuple[str | None, int | None]:
    """--exit-file and --incarnation of a command line that is bad elsewhere; None for what is not there."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--exit-file")
    parser.add_argument("--incarnation", type=_whole(0, 1 << 62))
    try:
        found, _ = parser.parse_known_args(_split(argv)[0])
    except (argparse.ArgumentError, SystemExit):
        return None, None
    return found.exit_file, found.incarnation


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    if "--" not in argv:
        return list(argv), []
    at = list(argv).index("--")
    return list(argv[:at]), list(argv[at + 1 :])


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="llm-worker-rbee", description="One model on one device, supervised by a hive.")
    add = parser.add_argument
    add(
        "--worker-id",
        required=True,
        type=_matching(_WORKER_ID, f"letters, digits, '.', '_' and '-', at most {MAX_NAME}"),
    )
    add("--model", default="", help="path of the model file; not for the synthetic engine")
    add("--model-ref", required=True, type=_printable, help="what clients call the model, such as hf:org/repo")
    add("--backend", default="cpu", choices=("cpu", "cuda", "rocm", "vulkan", "metal"))
    add("--device", default=0, type=_whole(0, _LAST_DEVICE), help="number of the GPU")
    add("--devices", default=(), type=_devices, help="numbers of the GPUs that share the model, such as 0,2")
    add("--tensor-split", default=(), type=_shares, help="what each of them gets of it, such as 0.5,0.5")
    add("--host", default="127.0.0.1", type=_printable)
    add("--port", default=8081, type=_whole(_PORTS[0], _PORTS[-1]), help="the next free one is used if it is taken")
    add("--port-last", type=_whole(_PORTS[0], _PORTS[-1]))
    add("--callback-url", default="http://localhost:9200", type=_address, dest="callback", help="the hive's base URL")
    add("--engine", default="llama-cpp", choices=tuple(engine_args.ALLOWED))
    add("--engine-python", default=sys.executable, type=_executable, help="Python with another build of xllamacpp")
    add("--ctx-size", default=4096, type=_whole(1, MAX_CTX_SIZE), help="tokens that one request may use")
    add("--slots", type=_whole(1, MAX_SLOTS), help="requests at once (4; 256 for command)")
    add("--prompt-cache", default=512 << 20, type=_whole(0, 1 << 50), help="bytes of RAM")
    add("--heartbeat-interval", type=_seconds(above=0.0), help="seconds (30)")
    add("--orphan-timeout", default=300.0, type=_seconds(above=0.0), help="seconds without a hive until it ends")
    add("--drain-timeout", default=30.0, type=_seconds(above=-1.0), help="seconds for requests in flight at the end")
    add("--end-timeout", type=_seconds(above=0.0), help="seconds from the first signal until this process is killed")
    add("--alias", type=_printable)
    add("--incarnation", type=_whole(0, 1 << 62))
    add("--exit-file", help="where to leave word of how it ended")
    return parser


def _derived(found: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from other options. Raises ValueError for what does not go together."""
    engine, port, last = found["engine"], found["port"], found["port_last"]
    if not found["model"] and engine != "synthetic":
        raise ValueError(f"--model is required for the engine {engine}")
    port_last = min(max(port + _SPAN, 9000), _PORTS[-1]) if last is None else last
    if port_last < port:
        raise ValueError(f"--port-last {port_last} is below --port {port}")
    devices, shares = found["devices"] or (found["device"],), found["tensor_split"]
    if shares and len(shares) != len(devices):
        raise ValueError(f"--tensor-split has {len(shares)} shares for {len(devices)} devices")
    slots = found["slots"] or _SLOTS.get(engine, _DEFAULT_SLOTS)
    return {"port_last": port_last, "slots": slots, "device": devices[0], "devices": devices}


def _from_environment(engine: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """Secrets and what only the hive may say. Raises ValueError that names the variable, never its content."""
    name = "RBEE_WORKER_TOKEN" if environ.get("RBEE_WORKER_TOKEN") else "RBEE_API_TOKEN"
    token = environ.get(name, "").strip()
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(f"{name} holds characters that cannot stand in a header")
    health_path = environ.get("RBEE_ENGINE_HEALTH_PATH", "") or "/health"
    if not (health_path.startswith("/") and health_path.isascii() and health_path.isprintable()) or " " in health_path:
        raise ValueError("RBEE_ENGINE_HEALTH_PATH must be a path such as /health")
    template = _template(environ.get("RBEE_ENGINE_COMMAND", "")) if engine == "command" else ()
    spec = _spec(environ.get("RBEE_WORKER_SPEC", ""))
    return {"token": token, "template": template, "health_path": health_path, "spec": spec}


def _spec(text: str) -> dict[str, Any] | None:
    if not text:
        return None
    try:
        found = json.loads(text, parse_constant=_no_number) if len(os.fsencode(text)) <= MAX_SPEC_BYTES else None
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    raise ValueError(f"RBEE_WORKER_SPEC must be a JSON object of at most {MAX_SPEC_BYTES} bytes")


def _no_number(word: str) -> NoReturn:
    """Python reads and writes NaN and Infinity, which JSON does not know and the hive would refuse."""
    raise ValueError(word)


def _template(text: str) -> tuple[str, ...]:
    try:
        words = json.loads(text) if text else []
    except ValueError:
        words = None
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise ValueError(
            'the engine command needs RBEE_ENGINE_COMMAND, a JSON list such as ["vllm", "serve", "{model}"]'
        )
    if not words[0] or any("\0" in word for word in words):
        raise ValueError("RBEE_ENGINE_COMMAND must start with a program, and hold no NUL")
    return tuple(words)


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read_whole(text: str) -> int:
        if not re.fullmatch(r"\d{1,19}", text, re.ASCII) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"'{text[:80]}' is not a whole number from {least} to {most}")
        return int(text)

    return read_whole


def _devices(text: str) -> tuple[int, ...]:
    read_device = _whole(0, _LAST_DEVICE)
    devices = tuple(read_device(part) for part in text.split(",", MAX_DEVICES))
    if len(devices) > MAX_DEVICES or len(set(devices)) < len(devices):
        raise argparse.ArgumentTypeError(f"must be at most {MAX_DEVICES} numbers, each once")
    return devices


def _shares(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(part) for part in text.split(",", MAX_DEVICES))
    except ValueError:
        shares = ()
    if not shares or not all(0 <= share <= 1 for share in shares) or sum(shares) == 0:
        raise argparse.ArgumentTypeError(f"'{text[:80]}' is not a list of shares from 0 to 1, such as 0.5,0.5")
    return shares


def _seconds(above: float) -> Callable[[str], float]:
    def read_seconds(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (value > above and 0 <= value <= _LONGEST):
            raise argparse.ArgumentTypeError(f"'{text[:80]}' is not a usable number of seconds")
        return value

    return read_seconds


def _matching(pattern: re.Pattern[str], wanted: str) -> Callable[[str], str]:
    def read_matching(text: str) -> str:
        if not pattern.fullmatch(text):
            raise argparse.ArgumentTypeError(f"must be {wanted} characters")
        return text

    return read_matching


def _printable(text: str) -> str:
    if not text or len(text) > 1024 or not text.isprintable():
        raise argparse.ArgumentTypeError("must be 1 to 1024 printable characters")
    return text


def _executable(text: str) -> str:
    if not (os.path.isfile(text) and os.access(text, os.X_OK)):
        raise argparse.ArgumentTypeError(f"'{text[:80]}' is not a program that can be run")
    return os.path.abspath(text)


def _address(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
