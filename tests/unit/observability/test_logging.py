import contextlib
import io
import json
import logging
import warnings

import pytest
import structlog

from rbee.observability.logging import configure


@pytest.fixture
def logs(request):
    """configure() with a stream to look at; what it changed for the whole process is put back."""
    root, uvicorn = logging.getLogger(), logging.getLogger("uvicorn.access")
    before = (root.handlers[:], root.level, uvicorn.level, warnings.showwarning)
    stream = io.StringIO()

    def start(**options):
        configure(stream=stream, **options)
        return stream

    yield start
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers[:], root.level, uvicorn.level, warnings.showwarning = before


def fail(reason):
    raise ValueError(reason)


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_event_is_one_line_of_json_with_the_known_fields_first(logs):
    stream = logs(format="json")
    structlog.get_logger("rbee.hive").info("worker_ready", worker_id="w1", slots=4)
    (line,) = lines(stream)
    assert list(line) == ["timestamp", "level", "event", "logger", "worker_id", "slots"]
    assert line["timestamp"].endswith("Z")
    assert (line["level"], line["event"], line["logger"], line["slots"]) == ("info", "worker_ready", "rbee.hive", 4)


def test_record_of_the_standard_library_comes_out_the_same_way(logs):
    stream = logs(format="json")
    logging.getLogger("uvicorn.error").warning("Started %s", "here")
    (line,) = lines(stream)
    assert (line["level"], line["event"], line["logger"]) == ("warning", "Started here", "uvicorn.error")


def test_event_below_the_level_is_not_written_and_the_level_can_change(logs):
    stream = logs(format="json", level="warning")
    log = structlog.get_logger("rbee")
    log.info("quiet")
    logging.getLogger("other").info("quiet")
    logs(format="json", level="debug")
    log.debug("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


def test_access_lines_of_uvicorn_stay_silent(logs):
    stream = logs(format="json", level="debug")
    logging.getLogger("uvicorn.access").info("GET /metrics")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("format", ["json", "console"])
def test_secret_is_never_written_whatever_way_it_takes(logs, format):
    secret = 'corr"ect-horse-battery'
    stream = logs(format=format, secrets=[secret])
    log = structlog.get_logger("rbee")
    log.info("a", token="tok-1-value", detail={"header": "Authorization: Bearer tok-2-value"})
    log.info("b", text=f"it was {secret}")
    logging.getLogger("uvicorn").warning("refused rbee-worker.3.abcdef0123.tok-3-value, and %s", secret)
    try:
        fail(secret)
    except ValueError:
        log.exception("c")
    text = stream.getvalue()
    assert text.count("********") >= 5
    for part in ("tok-1", "tok-2", "tok-3", "ect-horse"):
        assert part not in text


@pytest.mark.parametrize("format", ["json", "console"])
def test_exception_brings_its_traceback(logs, format):
    stream = logs(format=format)
    for log in (structlog.get_logger("rbee"), logging.getLogger("other")):
        try:
            fail("the reason")
        except ValueError:
            log.exception("it_failed")
    assert stream.getvalue().count("ValueError: the reason") == 2


def test_context_of_a_task_is_part_of_each_event(logs):
    stream = logs(format="json")
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger("rbee").info("x")
    assert lines(stream)[0]["request_id"] == "r1"


def test_console_line_cannot_be_forged_from_outside(logs):
    stream = logs(format="console")
    structlog.get_logger("rbee").info("spawn_refused", model="x\n12:00 error forged=1", alias="a b")
    assert len(stream.getvalue().splitlines()) == 1
    assert 'model="x\\n12:00 error forged=1" alias="a b"' in stream.getvalue()


def test_colours_are_for_terminals_only(logs):
    stream = logs(format="console")
    structlog.get_logger("rbee").info("plain")
    assert "\x1b" not in stream.getvalue()
    stream.isatty = lambda: True
    configure("console", stream=stream)
    structlog.get_logger("rbee").info("coloured")
    assert "\x1b[32m" in stream.getvalue()


def test_closed_stream_ends_nobody(logs):
    stream = logs(format="json")
    stream.close()
    structlog.get_logger("rbee").info("to_nobody")


def test_warning_of_python_is_a_log_line(logs):
    stream = logs(format="json")
    with warnings.catch_warnings(), contextlib.suppress(AttributeError):
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old call", stacklevel=1)
    assert "old call" in stream.getvalue()
