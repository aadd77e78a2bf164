import pytest

from rbee.core.usage import RequestState
from rbee.gateway.account import Account
from rbee.gateway.inference import comment_due


def test_times_of_a_request_that_waited():
    account = Account("id-1", "/v1/completions", model="synthetic:a", stream=True)
    account.receives(100.0)
    account.waits(100.5)
    account.waits(101.0)
    assert account.queue_seconds(102.0) == 1.5
    account.asks("w1", 103.0)
    account.adds(b'{"usage":{"prompt_tokens":5,"completion_tokens":2}}', 104.0)
    account.adds(b"\n", 104.5)
    usage = account.usage(200, 105.0)
    assert (usage.queue_seconds, usage.first_byte_seconds, usage.duration_seconds) == (2.5, 4.0, 5.0)
    assert usage.overhead_seconds == 0.5
    assert (usage.worker_id, usage.prompt_tokens, usage.generated_tokens, usage.cached_tokens) == ("w1", 5, 2, None)


def test_time_that_a_lost_worker_took_is_nobodys_overhead():
    account = Account("id-1", "/v1/completions", model="synthetic:a")
    account.receives(10.0)
    account.asks("w1", 10.25)
    account.loses(20.0)
    account.asks("w2", 20.25)
    usage = account.usage(200, 30.0)
    assert usage.overhead_seconds == 0.5
    assert usage.queue_seconds == 0.0
    assert usage.worker_id == "w2"


def test_what_a_lost_worker_had_said_does_not_count():
    account = Account("id-1", "/v1/completions", model="synthetic:a")
    account.receives(10.0)
    account.adds(b'{"usage":{"prompt_tokens":5}}', 11.0)
    account.loses(12.0)
    account.adds(b"{}", 14.0)
    usage = account.usage(200, 15.0)
    assert (usage.first_byte_seconds, usage.prompt_tokens) == (4.0, None)


def test_refused_request_has_no_times_that_it_did_not_have():
    account = Account("id-1", "/v1/completions", model="other")
    account.receives(10.0)
    usage = account.usage(404, 10.0)
    assert (usage.first_byte_seconds, usage.overhead_seconds, usage.worker_id) == (None, None, None)


def test_waiting_stream_gets_a_sign_of_life_after_a_while_and_then_every_5_seconds():
    assert not comment_due(100.0, None, 15.0, 114.9)
    assert comment_due(100.0, None, 15.0, 115.0)
    assert not comment_due(100.0, 115.0, 15.0, 119.9)
    assert comment_due(100.0, 115.0, 15.0, 120.0)


def answered(body: bytes, *, stream: bool, began: float = 101.0, ended: float = 103.0):
    account = Account("id-1", "/v1/chat/completions", model="m", stream=stream)
    account.receives(100.0)
    account.asks("w1", 100.0)
    account.adds(body, began)
    account.complete = True
    return account.usage(200, ended)


STREAM = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":40}}\n\n'
WHOLE = b'{"usage":{"prompt_tokens":5,"completion_tokens":40}}'


def test_speed_of_a_stream_is_that_of_its_pieces():
    assert answered(STREAM, stream=True).tokens_per_second == 20.0


def test_speed_that_the_engine_tells_is_believed():
    timings = b'{"usage":{"prompt_tokens":5,"completion_tokens":40},"timings":{"predicted_ms":500}}'
    assert answered(timings, stream=False).tokens_per_second == 80.0


@pytest.mark.parametrize(
    "usage",
    [
        answered(WHOLE, stream=False),
        answered(STREAM, stream=True, ended=101.0),
        answered(STREAM.replace(b"40", b"1"), stream=True),
        answered(b"data: {}\n\n", stream=True),
    ],
    ids=["an answer in one piece", "a stream in one piece", "one token", "no count"],
)
def test_speed_that_nobody_can_know_is_not_told(usage):
    assert usage.tokens_per_second is None


def test_look_at_a_request_shows_its_times_so_far():
    account = Account("id-1", "/v1/completions", model="m", key="web")
    account.receives(100.0, 1.8e9)
    account.waits(100.5)
    waiting = account.underway(RequestState.WAITING, 103.0)
    assert (waiting.age_seconds, waiting.queue_seconds, waiting.worker_id) == (3.0, 2.5, None)
    account.asks("w1", 104.0)
    account.adds(b"x", 105.0)
    running = account.underway(RequestState.RUNNING, 110.0)
    assert (running.queue_seconds, running.first_byte_seconds, running.worker_id) == (3.5, 5.0, "w1")
    assert (running.key, running.started_at) == ("web", 1.8e9)
