"""A folded answer against the one that the real engine gives in one piece, and what it does for clients that leave."""

import contextlib
import http.client
import json
import socket

import pytest

from tests.e2e.conftest import CLIENT_KEY
from tests.e2e.test_clients import CITY, TOOLS, WEATHER
from tests.hives import wait_for

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ASKED = {"messages": QUESTION, "temperature": 0, "seed": 1, "max_tokens": 5}
ITSELF = {"id", "created", "created_at", "completed_at", "timings", "cached_tokens", "cache_read_input_tokens"}
"""What is of one request, and differs between two that ask the same."""

LONG = {"messages": [{"role": "user", "content": "Tell a long story."}], "max_tokens": 3000, "ignore_eos": True}


def answer_of(port, key, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps({"model": "smol", **body}), headers)
        answer = connection.getresponse()
        return answer.status, answer.getheader("content-type"), json.loads(answer.read())


def without_itself(value):
    """All but what is of this one request; its keys stay, so that none may be missing."""
    if isinstance(value, dict):
        return {key: None if key in ITSELF else without_itself(inner) for key, inner in value.items()}
    if isinstance(value, float):
        # Probabilities depend a little on what else is in the same batch.
        return pytest.approx(value, abs=0.2)
    return [without_itself(inner) for inner in value] if isinstance(value, list) else value


def port_of(worker):
    return int(worker["url"].rpartition(":")[2])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(CHAT, ASKED, id="chat"),
        pytest.param(CHAT, {**ASKED, "n": 2}, id="chat, two choices"),
        pytest.param(CHAT, {**ASKED, "logprobs": True, "top_logprobs": 2}, id="chat, logprobs"),
        pytest.param(CHAT, {**ASKED, "stop": ["France", "toile"]}, id="chat, stopped"),
        pytest.param(CHAT, {**ASKED, "timings_per_token": True, "return_progress": True}, id="chat, progress"),
        pytest.param(CHAT, {**ASKED, "stream_options": {"include_usage": False}}, id="chat, odd stream options"),
        pytest.param(CHAT, {**ASKED, "grammar": 'root ::= ""'}, id="chat, nothing said"),
        pytest.param(CHAT, {**TOOLS, "max_tokens": 60}, id="tools"),
        pytest.param(CHAT, {**TOOLS, "max_tokens": 60, "logprobs": True}, id="tools, logprobs"),
        pytest.param(CHAT, {**TOOLS, "max_tokens": 15}, id="tools, cut off"),
        pytest.param(
            CHAT, {**ASKED, "response_format": {"type": "json_object", "schema": CITY}, "max_tokens": 30}, id="schema"
        ),
        pytest.param(CHAT, {"messages": [*WEATHER[:2]], "max_tokens": 2, "temperature": 0}, id="an answer begun"),
        pytest.param(
            CHAT,
            {**ASKED, "messages": [*QUESTION, {"role": "assistant", "content": "The", "x": {"role": "y"}}]},
            id="an answer begun, a key deeper",
        ),
        pytest.param(CHAT, {**ASKED, "verbose": True}, id="verbose"),
        pytest.param(CHAT, {"messages": "x"}, id="refused"),
        pytest.param(CHAT, {**ASKED, "messages": [{"role": "user", "content": "bee " * 6000}]}, id="too long"),
        pytest.param(TEXT, {**ASKED, "prompt": "One, two,"}, id="text"),
        pytest.param(TEXT, {**ASKED, "prompt": ["One, two,", "A, B,"], "logprobs": 2}, id="two texts, logprobs"),
        pytest.param(RESPONSES, {"input": "Name a colour.", "max_output_tokens": 5, "temperature": 0}, id="responses"),
        pytest.param(MESSAGES, ASKED, id="messages"),
        pytest.param(MESSAGES, {**ASKED, "stop_sequences": ["toile", "France"]}, id="messages, stopped"),
    ],
)
def test_the_answer_is_the_one_that_the_engine_gives_in_one_piece(served, smol, path, body):
    own_port, own_key = port_of(smol), served.key_of_engine(smol)
    answer_of(own_port, own_key, path, body)  # from now on both find the prompt in the engine's cache
    status, kind, own = answer_of(own_port, own_key, path, body)
    folded_status, folded_kind, folded = answer_of(served.hive.port, CLIENT_KEY, path, body)
    assert (folded_status, folded_kind) == (status, kind)
    assert without_itself(folded) == without_itself(own)


# Clients that leave


def sent(served, **body):
    """A connection on which this was asked."""
    data = json.dumps({"model": "smol", **body})
    connection = socket.create_connection(("127.0.0.1", served.hive.port))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {CLIENT_KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall((head + data).encode())
    return connection


@pytest.fixture
def at_work(served, smol):
    """Which of the engine's slots are at work, as it says itself."""

    def ask():
        connection = http.client.HTTPConnection("127.0.0.1", port_of(smol), timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", "/slots", headers={"authorization": f"Bearer {served.key_of_engine(smol)}"})
            return {slot["id"] for slot in json.loads(connection.getresponse().read()) if slot["is_processing"]}

    wait_for(lambda: not ask(), "the engine is idle")
    return ask


@pytest.mark.parametrize(
    "body",
    [
        # Run to its end it would end after the other one.
        pytest.param({**LONG, "max_tokens": 3900, "stream": True}, id="stream"),
        pytest.param({**LONG, "max_tokens": 3900}, id="one piece"),
        pytest.param({"messages": [{"role": "user", "content": "bee " * 1100}], "max_tokens": 2900}, id="long prompt"),
    ],
)
def test_a_client_that_leaves_frees_its_slot_while_another_stream_runs(served, at_work, body):
    with sent(served, **LONG, stream=True):
        others = wait_for(at_work, "the other one runs")
        with sent(served, **body):
            wait_for(lambda: len(at_work()) == 2, "both run")
        wait_for(lambda: at_work() == others, "its slot alone is free")
    wait_for(lambda: not at_work(), "both are free")
