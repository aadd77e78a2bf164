import json

import pytest

from rbee.core import errors
from rbee.gateway import faults
from rbee.gateway.endpoints import Shape

ANTHROPIC_TYPES = {
    "invalid_request_error", "authentication_error", "permission_error", "not_found_error", "request_too_large",
    "rate_limit_error", "api_error", "overloaded_error",
}  # fmt: skip


def test_plain_shape_is_the_errors_own_body():
    error = errors.RouteNotFound("No such path.")
    assert json.loads(faults.body(error, Shape.PLAIN, "id-1")) == error.body("id-1")


def test_openai_shape_adds_what_its_clients_read():
    error = errors.InvalidField("The field 'model' must be there.", field="model")
    assert json.loads(faults.body(error, Shape.OPENAI, "id-1")) == {
        "error": {
            "code": "invalid_field",
            "message": "The field 'model' must be there.",
            "details": {"field": "model"},
            "type": "invalid_request_error",
            "param": "model",
        },
        "request_id": "id-1",
    }


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.MalformedRequest, "invalid_request_error"),
        (errors.Unauthorized, "authentication_error"),
        (errors.Forbidden, "permission_error"),
        (errors.ModelNotFound, "not_found_error"),
        (errors.BodyTooLarge, "request_too_large"),
        (errors.QueueFull, "rate_limit_error"),
        (errors.WorkerLost, "api_error"),
        (errors.QueueTimeout, "overloaded_error"),
    ],
)
def test_anthropic_shape_has_the_types_of_its_documentation(error, kind):
    assert json.loads(faults.body(error("No."), Shape.ANTHROPIC, "id-1")) == {
        "type": "error",
        "error": {"type": kind, "message": "No."},
        "request_id": "id-1",
    }


@pytest.mark.parametrize("error", errors.STATUS)
def test_every_error_has_a_type_that_anthropics_clients_know(error):
    assert json.loads(faults.body(error("No."), Shape.ANTHROPIC, "x"))["error"]["type"] in ANTHROPIC_TYPES


def test_event_ends_what_the_stream_had_begun():
    event = faults.event(errors.WorkerLost("Gone."), Shape.OPENAI, "id-1")
    assert event.startswith(b"\n\ndata: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 4
    assert json.loads(event.strip()[6:])["error"]["code"] == "worker_lost"


def test_anthropic_event_is_named():
    event = faults.event(errors.WorkerLost("Gone."), Shape.ANTHROPIC, "id-1")
    assert event.startswith(b"\n\nevent: error\ndata: {")


def test_error_of_an_engine_is_passed_on_in_one_line():
    event = faults.foreign_event(400, b'{\n"error": {"message": "too long"}\n}', Shape.OPENAI)
    assert event == b'\n\ndata: {"error": {"message": "too long"}}\n\n'


@pytest.mark.parametrize(
    ("status", "body"), [(200, b'{"error": 1}'), (500, b"oops"), (500, b"[]"), (500, b"{}"), (500, b"\xff")]
)
def test_what_holds_no_error_is_not_passed_on(status, body):
    assert faults.foreign_event(status, body, Shape.OPENAI) is None


def test_headers_say_when_to_come_back_and_how():
    error = errors.QueueFull("Full.", retry_after=1.2)
    assert (b"retry-after", b"2") in faults.fields(error)
    assert (b"www-authenticate", b"Bearer") in faults.fields(errors.Unauthorized("No."))
    assert (b"allow", b"POST") in faults.fields(errors.MethodNotAllowed("No.", allow="POST"))
