"""Logs as events with fields on standard error: one line each, for people (console) or for machines (JSON).

structlog's loggers and the standard library's (uvicorn's among them) end in the same renderer.
"""

import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

import structlog

Format = Literal["console", "json"]
Event = MutableMapping[str, Any]
Render = Callable[[Event], str]

MASK: Final = "********"
SECRET_FIELDS: Final = frozenset(
    {"api_key", "api_token", "authorization", "cookie", "engine_key", "hf_token", "key", "password", "secret", "token"}
)
_HINTS: Final = ("earer ", "rbee-worker.")
_CREDENTIAL: Final = re.compile(r"([Bb]earer )[^\s\"',]+|rbee-worker\.\d+\.[0-9a-f]+\.[^\s\"',]+")
_COLOURS: Final = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}


def configure(
    format: Format = "console", level: str = "info", *, secrets: Iterable[str] = (), stream: TextIO | None = None
) -> None:
    """Send every log event of this process, from *level* up, to *stream* (standard error) in *format*.

    Each of *secrets* is replaced wherever it turns up, in a traceback too. May be called again, to change the level.
    """
    out = stream if stream is not None else sys.stderr
    threshold = logging.getLevelNamesMapping()[level.upper()]
    render = _masking(as_json if format == "json" else _console(colours=out.isatty()), secrets)
    write = _writer(out)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, _stamped, lambda _, __, event: render(event)],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *names: _Line(str(names[0]) if names else "rbee", write),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Bridge(render, write)]
    root.setLevel(threshold)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        # Uvicorn brings handlers of its own, which would write each line a second time.
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # That a server inside us has started is no news to anybody, and a line for every scrape and beat is noise.
    logging.getLogger("uvicorn.error").setLevel(max(threshold, logging.WARNING))
    logging.getLogger("uvicorn.access").setLevel(max(threshold, logging.WARNING))
    logging.captureWarnings(True)


def as_json(event: Event) -> str:
    """One JSON object on one line: timestamp, level, event, logger, then the fields."""
    return json.dumps(event, default=str)


class _Line:
    """What structlog writes to: all of its methods take the finished line."""

    def __init__(self, name: str, write: Callable[[str], None]) -> None:
        self.name = name
        self.debug = self.info = self.warning = self.error = self.critical = write


class _Bridge(logging.Handler):
    """Turns a record of the standard library into an event like ours."""

    def __init__(self, render: Render, write: Callable[[str], None]) -> None:
        super().__init__()
        self._render, self._write = render, write

    def emit(self, record: logging.LogRecord) -> None:
        event = _event(record.created, record.levelname.lower(), record.getMessage(), record.name)
        if record.exc_info:
            event["exception"] = _formatted(record.exc_info)
        self._write(self._render(event))


def _stamped(logger: _Line, method: str, fields: Event) -> Event:
    """structlog's event, in the order in which it is read."""
    event = _event(None, method, fields.pop("event", ""), logger.name)
    error = fields.pop("exc_info", None)
    event.update(fields)
    if error:
        event["exception"] = _formatted(error)
    return event


def _event(created: float | None, level: str, name: Any, logger: str) -> Event:
    moment = datetime.now(UTC) if created is None else datetime.fromtimestamp(created, UTC)
    timestamp = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"timestamp": timestamp, "level": level, "event": name, "logger": logger}


def _formatted(error: Any) -> str:
    """The traceback of an exception, an exc_info triple, or (True) of what is being handled."""
    if isinstance(error, BaseException):
        return "".join(traceback.format_exception(error)).rstrip()
    kind, value, trace = error if isinstance(error, tuple) else sys.exc_info()
    return "".join(traceback.format_exception(kind, value, trace)).rstrip()


def _masking(render: Render, secrets: Iterable[str]) -> Render:
    """*render* without any secret: fields that have a secret's name, credentials by their form, known ones by value."""
    # A secret with quotes or backslashes looks different inside JSON, so that spelling is looked for too.
    known = {spelling for secret in secrets if secret for spelling in (secret, json.dumps(secret)[1:-1])}

    def masked(event: Event) -> str:
        for field in SECRET_FIELDS.intersection(event):
            event[field] = MASK
        line = render(event)
        if any(hint in line for hint in _HINTS):
            line = _CREDENTIAL.sub(lambda match: (match[1] or "") + MASK, line)
        for secret in known:
            line = line.replace(secret, MASK)
        return line

    return masked


def _console(*, colours: bool) -> Render:
    def render(event: Event) -> str:
        level = str(event["level"])
        shown = f"\x1b[{_COLOURS.get(level, '0')}m{level:<8}\x1b[0m" if colours else f"{level:<8}"
        fields = " ".join(f"{key}={_plain(value)}" for key, value in list(event.items())[4:] if key != "exception")
        # Local time, for the person who sits in front of it.
        clock = datetime.fromisoformat(event["timestamp"]).astimezone().strftime("%H:%M:%S.%f")[:-3]
        line = f"{clock} {shown} {_plain(event['event'], quote_blanks=False)}  {fields}".rstrip()
        trace = event.get("exception")
        return f"{line}\n{trace}" if trace else line

    return render


def _plain(value: Any, *, quote_blanks: bool = True) -> str:
    """One line, and visibly one value: text from outside must not forge a line or a field."""
    text = value if isinstance(value, str) else str(value)
    if not text.isprintable() or (quote_blanks and (not text or " " in text or "=" in text)):
        return json.dumps(text, ensure_ascii=not text.isprintable())
    return text


def _writer(out: TextIO) -> Callable[[str], None]:
    lock = threading.Lock()

    def write(line: str) -> None:
        try:
            with lock:
                out.write(line + "\n")
                out.flush()
        except (OSError, ValueError):
            # Nobody reads the log any more (a closed terminal, `| head`): no reason to end the workers.
            return

    return write
