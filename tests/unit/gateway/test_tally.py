import json

import pytest

from rbee.gateway.tally import FIRST_BYTES, LAST_BYTES, Sample, Tokens, count


def sample_of(*pieces: bytes) -> Sample:
    sample = Sample()
    for piece in pieces:
        sample.add(piece)
    return sample


def tokens_in(value: object) -> Tokens:
    return count(sample_of(json.dumps(value).encode()))


def test_openai_answer_tells_its_usage():
    usage = {
        "prompt_tokens": 12,
        "completion_tokens": 3,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 8},
    }
    assert tokens_in({"choices": [], "usage": usage}) == Tokens(12, 3, 8)


def test_responses_answer_tells_its_usage():
    usage = {"input_tokens": 12, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 8}}
    assert tokens_in({"usage": usage}) == Tokens(12, 3, 8)


def test_anthropic_counts_cached_tokens_beside_the_others():
    usage = {"input_tokens": 4, "output_tokens": 3, "cache_read_input_tokens": 8, "cache_creation_input_tokens": 1}
    assert tokens_in({"usage": usage}) == Tokens(13, 3, 8)


def test_anthropic_stream_tells_the_prompt_at_its_start_and_the_rest_at_its_end():
    start = b'event: message_start\ndata: {"message":{"usage":{"input_tokens":7,"output_tokens":0}}}\n\n'
    middle = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"abc"}}\n\n'
    end = b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":900}}\n\n'
    assert count(sample_of(start, *[middle] * 900, end)) == Tokens(7, 900, None)


def test_last_usage_of_an_openai_stream_counts():
    nothing = b'data: {"choices":[{"delta":{"content":"x"}}],"usage":null}\n\n'
    last = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
    assert count(sample_of(*[nothing] * 1000, last)) == Tokens(5, 2, None)


def test_llama_cpp_timings_serve_where_there_is_no_usage():
    timings = {"cache_n": 10, "prompt_n": 2, "prompt_ms": 1.5, "predicted_n": 7}
    last = b"data: " + json.dumps({"choices": [{"finish_reason": "stop"}], "timings": timings}).encode() + b"\n\n"
    assert count(sample_of(b"data: {}\n\n" * 2000, last)) == Tokens(12, 7, 10)


def test_usage_inside_the_text_is_not_believed():
    text = 'the model says {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}'
    assert tokens_in({"choices": [{"message": {"content": text}}]}) == Tokens()
    assert tokens_in({'so called "usage': {"prompt_tokens": 1}}) == Tokens()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"usage":',
        b'{"usage":{"prompt_tokens":',
        b'{"usage":{"prompt_tokens":"x"}}',
        b"\xff\xfe",
        b'{"usage":{"prompt_tokens":true,"completion_tokens":-1}}',
        b'{"usage":' + b'{"a":' * 3000,
        b'{"usage":{"prompt_tokens":1' + b"0" * 400 + b',"completion_tokens":9007199254740992}}',
    ],
)
def test_unknown_is_not_guessed(body):
    assert count(sample_of(body)) == Tokens()


def test_sample_holds_the_first_and_last_bytes_and_no_more():
    data = bytes(range(256)) * 1000
    sample = Sample()
    for start in range(0, len(data), 100):
        sample.add(data[start : start + 100])
    assert sample.first == data[:FIRST_BYTES]
    assert sample.last == data[-LAST_BYTES:]
    assert sum(map(len, sample._last)) < 5 * LAST_BYTES
