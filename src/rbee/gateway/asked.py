"""Which model a request asks for, and whether as a stream, without building the whole body. Pure."""

import json
from typing import Any, Final, NamedTuple, NoReturn

import msgspec

from rbee.core.errors import InvalidField, MalformedRequest

SLOW_LIMIT: Final = 1024 * 1024
"""Bytes; the standard parser builds all of a body and holds the loop for up to 0.1 s a MiB."""


class Asked(NamedTuple):
    model: str
    stream: bool


class _Usual(msgspec.Struct, gc=False):
    model: str
    stream: bool = False


class _Body(msgspec.Struct):
    # Raw: of two equal keys the last wins, so the type of the first must not matter.
    model: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    stream: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode_usual = msgspec.json.Decoder(_Usual).decode
_decode = msgspec.json.Decoder(_Body).decode


def read(body: bytes) -> Asked:
    """What *body* asks for.

    Raises MalformedRequest for what is not JSON, and InvalidField for JSON that is no object, has no string
    as ``model`` or something else than a boolean (or null) as ``stream``.
    """
    try:
        usual = _decode_usual(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _read_any(body)
    return Asked(usual.model, usual.stream)


def _read_any(body: bytes) -> Asked:
    try:
        found = _decode(body)
        model = _value(found.model)
        stream = _value(found.stream)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # msgspec refuses some of what JSON allows (lone surrogates, very deep nesting).
        if len(body) > SLOW_LIMIT:
            raise MalformedRequest(
                f"The body is not JSON, or has lone surrogates or very deep nesting, which are read only in bodies "
                f"of at most {SLOW_LIMIT} bytes: {str(error)[:200]}."
            ) from None
        model, stream = _read_slowly(body)
    if not isinstance(model, str):
        raise InvalidField("The field 'model' must be there, and a string.", field="model")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidField("The field 'stream' must be true or false.", field="stream")
    return Asked(model, bool(stream))


def _value(raw: msgspec.Raw | msgspec.UnsetType) -> Any:
    return None if isinstance(raw, msgspec.UnsetType) else msgspec.json.decode(raw)


def _read_slowly(body: bytes) -> tuple[Any, Any]:
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise MalformedRequest("The body is nested too deeply.") from None
    except ValueError as error:
        raise MalformedRequest(f"The body is not JSON: {str(error)[:200]}.") from None
    if not isinstance(value, dict):
        raise InvalidField("The body must be a JSON object.", field="")
    return value.get("model"), value.get("stream")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")
