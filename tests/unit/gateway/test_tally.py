import json

import pytest

from rbee.gateway.tally import FIRST_BYTES, LAST_BYTES, Sample, Told, read

FILLER = "Say \"so\" and {'so': [1]} on. " * 1000
"""More than is kept of an answer, with what could confuse who counts brackets and quotes."""


def sample_of(*pieces: bytes) -> Sample:
    sample = Sample()
    for piece in pieces:
        sample.add(piece)
    return sample


def told_by(value: object) -> Told:
    return read(sample_of(json.dumps(value).encode()), complete=True)


def told_by_stream(*pieces: bytes) -> Told:
    return read(sample_of(*pieces), complete=True)


def event(value: object, name: str = "") -> bytes:
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(value).encode() + b"\n\n"


def choice(finish: str | None = None, **fields: object) -> dict:
    return {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": finish}], **fields}


# OpenAI


def test_openai_answer_tells_its_usage_and_why_it_ended():
    usage = {
        "prompt_tokens": 12,
        "completion_tokens": 3,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 8},
    }
    choices = [{"message": {"content": "hi"}, "finish_reason": "length"}]
    assert told_by({"choices": choices, "usage": usage}) == Told(12, 3, 8, None, "length")


def test_openai_answer_without_details_tells_the_rest():
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": None}
    assert told_by({"choices": [], "usage": usage}) == Told(12, 3)


def test_text_completion_tells_its_usage():
    choices = [{"text": "hi", "index": 0, "finish_reason": "stop"}]
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    assert told_by({"object": "text_completion", "choices": choices, "usage": usage}) == Told(1, 2, None, None, "stop")


def test_last_usage_of_an_openai_stream_counts():
    nothing = event(choice(usage=None))
    usage = event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})
    told = told_by_stream(*[nothing] * 1000, event(choice("stop")), usage, b"data: [DONE]\n\n")
    assert told == Told(5, 2, None, None, "stop")


def test_usage_that_is_told_with_every_chunk_is_that_of_the_last_one():
    chunks = [event(choice(usage={"prompt_tokens": 5, "completion_tokens": n})) for n in range(1, 500)]
    assert told_by_stream(*chunks, b"data: [DONE]\n\n")[:2] == (5, 499)


def test_stream_whose_client_did_not_ask_for_usage_tells_only_why_it_ended():
    told = told_by_stream(*[event(choice())] * 1000, event(choice("stop")), b"data: [DONE]\n\n")
    assert told == Told(finish="stop")


def test_llama_cpp_timings_serve_where_there_is_no_usage():
    timings = {"cache_n": 10, "prompt_n": 2, "prompt_ms": 1.5, "predicted_n": 7, "predicted_ms": 70.0}
    told = told_by_stream(b"data: {}\n\n" * 2000, event(choice("stop", timings=timings)), b"data: [DONE]\n\n")
    assert told == Told(12, 7, 10, 0.07, "stop")


def test_events_without_a_blank_after_the_colon_are_read():
    assert told_by_stream(b'data:{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n') == Told(5, 2)


def test_events_may_end_their_lines_as_http_does():
    text = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\r\n\r\ndata: [DONE]\r\n\r\n'
    assert told_by_stream(text) == Told(5, 2)


# OpenAI's Responses


def test_responses_answer_tells_its_usage():
    usage = {"input_tokens": 12, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 8}}
    assert told_by({"status": "completed", "usage": usage}) == Told(12, 3, 8, None, "completed")


def test_responses_answer_that_is_incomplete_tells_why():
    value = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    assert told_by(value) == Told(finish="max_output_tokens")


@pytest.mark.parametrize("text", ["short", FILLER], ids=["short", "long"])
def test_responses_stream_tells_its_usage_in_its_last_event(text):
    usage = {"input_tokens": 12, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 8}}
    created = event({"type": "response.created", "response": {"status": "in_progress", "usage": None}})
    delta = event({"type": "response.output_text.delta", "delta": "x"})
    response = {"status": "completed", "output": [{"content": [{"text": text}]}], "usage": usage}
    told = told_by_stream(created, *[delta] * 2000, event({"type": "response.completed", "response": response}))
    assert told[:3] == (12, 3, 8)
    assert told.finish in (None, "completed")


def test_response_that_was_only_begun_has_no_reason_why_it_ended():
    assert told_by_stream(event({"response": {"status": "in_progress"}})) == Told()


# Anthropic


def test_anthropic_counts_cached_tokens_beside_the_others():
    usage = {"input_tokens": 4, "output_tokens": 3, "cache_read_input_tokens": 8, "cache_creation_input_tokens": 1}
    assert told_by({"stop_reason": "end_turn", "usage": usage}) == Told(13, 3, 8, None, "end_turn")


def test_anthropic_stream_tells_the_prompt_at_its_start_and_the_rest_at_its_end():
    usage = {"input_tokens": 7, "cache_read_input_tokens": 5, "output_tokens": 0}
    start = event({"type": "message_start", "message": {"usage": usage, "stop_reason": None}}, "message_start")
    middle = event({"type": "content_block_delta", "delta": {"text": "abc"}}, "content_block_delta")
    end = event({"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 900}})
    stop = event({"type": "message_stop"}, "message_stop")
    assert told_by_stream(start, *[middle] * 900, end, stop) == Told(12, 900, 5, None, "max_tokens")


def test_anthropic_stream_that_broke_off_has_generated_nobody_knows_how_much():
    start = event({"type": "message_start", "message": {"usage": {"input_tokens": 7}}}, "message_start")
    middle = event({"type": "content_block_delta", "delta": {"text": "abc"}}, "content_block_delta")
    told = read(sample_of(start, *[middle] * 900), complete=False)
    assert told.generated is None


def test_counted_tokens_are_the_prompts():
    assert told_by({"input_tokens": 14}) == Told(14)


# others


def test_rerank_tells_its_prompt():
    assert told_by({"results": [{"index": 0}], "usage": {"prompt_tokens": 9, "total_tokens": 9}}) == Told(9)


@pytest.mark.parametrize("count", [3, 4000])
def test_embedding_tells_its_prompt_before_or_behind_its_numbers(count):
    usage = {"usage": {"prompt_tokens": 9, "total_tokens": 9}}
    data = {"data": [{"embedding": [0.123456] * count}]}
    assert told_by({**usage, **data}) == Told(9)
    assert told_by({**data, **usage}) == Told(9)


# long answers


def test_long_answer_tells_its_usage_behind_its_text():
    message = {"content": FILLER, "tool_calls": []}
    usage = {"completion_tokens": 2000, "prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1}}
    timings = {"predicted_ms": 10.0, "predicted_n": 2000}
    for choices in ([{"finish_reason": "stop", "message": message}], [{"message": message, "finish_reason": "stop"}]):
        value = {"choices": choices, "id": "x", "usage": usage, "timings": timings}
        assert told_by(value)[:3] == (5, 2000, 1)
        assert told_by(value)[3:] == (0.01, "stop")


def test_long_anthropic_answer_tells_its_usage_behind_its_text():
    usage = {"input_tokens": 4, "output_tokens": 3}
    value = {"content": [{"text": FILLER}], "stop_reason": "end_turn", "usage": usage}
    assert told_by(value) == Told(4, 3, None, None, "end_turn")


# what is not believed


LIES = {
    "text": {"content": 'it says {"usage": {"prompt_tokens": 1}, "finish_reason": "lie"}'},
    "object": {"input": {"usage": {"prompt_tokens": 1, "input_tokens": 1}, "stop_reason": "lie", "status": "lie"}},
    "key": {'so called "usage': {"prompt_tokens": 1}},
    "list": {"input": [{"usage": {"prompt_tokens": 1}}, {"finish_reason": "lie"}]},
}


@pytest.mark.parametrize("text", ["", FILLER], ids=["short", "long"])
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_usage_inside_of_what_the_model_says_is_not_believed(lie, text):
    assert told_by({"content": [{"filler": text}, lie]}) == Told()
    assert told_by({"content": [lie, {"filler": text}]}) == Told()
    assert told_by({"content": [lie, {"filler": text}, lie], "usage": {"input_tokens": 5}}) == Told(5)
    assert told_by({"usage": {"input_tokens": 5}, "content": [lie, {"filler": text}, lie]}) == Told(5)


@pytest.mark.parametrize("text", ["", FILLER], ids=["short", "long"])
def test_name_that_ends_like_a_key_is_not_one(text):
    assert told_by({"filler": text, 'so called "usage': {"prompt_tokens": 1}, 'a "status': "lie"}) == Told()


def test_long_answer_that_broke_off_at_a_lie_is_not_believed():
    value = json.dumps({"content": [{"text": FILLER}, {"input": {"usage": {"input_tokens": 5}}}]}).encode()
    for cut in range(len(value) - 8, len(value)):
        assert read(sample_of(value[:cut]), complete=False) == Told()


def test_event_inside_of_what_the_model_says_is_not_believed():
    lie = 'x\n\ndata: {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}\n\n'
    said = {"choices": [{"delta": {"content": lie}, "finish_reason": None}]}
    assert told_by_stream(*[event(said)] * 200, b"data: [DONE]\n\n") == Told()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'{"usage":',
        b'{"usage":{"prompt_tokens":',
        b'{"usage":{"prompt_tokens":"x"}}',
        b'{"usage":7,"choices":"x","timings":[]}',
        b"\xff\xfe",
        b'{"usage":{"prompt_tokens":true,"completion_tokens":-1}}',
        b'{"usage":' + b'{"a":' * 3000,
        b'{"usage":{"prompt_tokens":1' + b"0" * 400 + b',"completion_tokens":9007199254740992}}',
        b'{"a":"' + b'\\"usage\\":{' * 2000 + b'"}',
        b'"usage":{}' * 2000,
        b'{"usage":{' * 2000,
        b'data: {"usage":' * 2000,
        b"data: \n\n" * 2000,
        b'data: {"message":"overloaded","usage":7}\n\n',
    ],
)
@pytest.mark.parametrize("start", [b"", b'{"x":1,', b"data: "])
def test_unknown_is_not_guessed(body, start):
    assert told_by_stream(start + body) == Told()


def test_sample_holds_the_first_and_last_bytes_and_no_more():
    data = bytes(range(256)) * 1000
    sample = Sample()
    for start in range(0, len(data), 100):
        sample.add(data[start : start + 100])
    assert sample.first == data[:FIRST_BYTES]
    assert sample.last == data[-LAST_BYTES:]
    assert sum(map(len, sample._last)) < 5 * LAST_BYTES
