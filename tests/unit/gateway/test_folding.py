"""Streams as llama.cpp sends them, and the answers that it gives in one piece."""

import json

import pytest

from rbee.gateway.folding import fold_for

CHAT, TEXT, RESPONSES, MESSAGES = b"/v1/chat/completions", b"/v1/completions", b"/v1/responses", b"/v1/messages"
BODY = b'{"model":"m"}'
WHOLE = {"id": "x", "object": "chat.completion.chunk", "model": "m", "created": 5, "system_fingerprint": "b1"}


def event(value, name=""):
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(value).encode() + b"\n\n"


def chat(*choices, **more):
    return event({"choices": list(choices), **WHOLE, **more})


def delta(index=0, finish=None, logprobs=None, **fields):
    choice = {"finish_reason": finish, "index": index, "delta": fields}
    return choice if logprobs is None else {**choice, "logprobs": logprobs}


DONE = b"data: [DONE]\n\n"


def folded(path, *events, piece=None):
    folding = fold_for(path, BODY)
    stream = b"".join(events)
    for start in range(0, len(stream), piece or len(stream)):
        folding.feed(stream[start : start + (piece or len(stream))])
    return folding.result()


def answer(path, *events, **options):
    result = folded(path, *events, **options)
    assert result is not None
    assert result.status == 200
    return json.loads(result.body)


def choices(*events):
    return answer(CHAT, *events, DONE)["choices"]


@pytest.mark.parametrize("piece", [1, 7, 100_000])
def test_a_chat_is_put_together_however_its_stream_is_cut(piece):
    usage, timings = {"prompt_tokens": 3, "completion_tokens": 2}, {"prompt_n": 3}
    events = [
        chat(delta(role="assistant", content=None)),
        chat(delta(content="Caf")),
        chat(delta(content="é\n\n")),
        chat(delta(finish="stop")),
        event({"choices": [], **WHOLE, "usage": usage, "timings": timings}),
        DONE,
    ]
    assert answer(CHAT, *events, piece=piece) == {
        "choices": [{"finish_reason": "stop", "index": 0, "message": {"role": "assistant", "content": "Café\n\n"}}],
        **WHOLE,
        "object": "chat.completion",
        "usage": usage,
        "timings": timings,
    }


def test_reasoning_and_refusals_are_joined_like_the_text():
    (choice,) = choices(
        chat(delta(reasoning_content="a")), chat(delta(reasoning_content="b", refusal="n")), chat(delta(refusal="o"))
    )
    assert choice["message"] == {"role": "assistant", "content": "", "reasoning_content": "ab", "refusal": "no"}


def test_tool_calls_are_joined_by_their_index():
    first = {"index": 0, "id": "c0", "type": "function", "function": {"name": "f", "arguments": ""}}
    second = {"index": 1, "id": "c1", "type": "function", "function": {"name": "g", "arguments": "{"}}
    (choice,) = choices(
        chat(delta(role="assistant", content=None)),
        chat(delta(tool_calls=[first])),
        chat(delta(tool_calls=[{"index": 0, "function": {"arguments": '{"x":'}}])),
        chat(delta(tool_calls=[second])),
        chat(delta(tool_calls=[{"index": 1, "function": {"arguments": "}"}}])),
        chat(delta(tool_calls=[{"index": 0, "function": {"arguments": "1}"}}])),
        chat(delta(finish="tool_calls")),
    )
    assert choice["message"]["content"] == ""
    assert choice["message"]["tool_calls"] == [
        {"id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "c1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_logprobs_are_one_list():
    entry = {"id": 1, "token": "a", "logprob": -1.9929063320159912, "top_logprobs": []}
    (choice,) = choices(
        chat(delta(content="a", logprobs={"content": [entry]})),
        chat(delta(content="a", logprobs={"content": [entry, entry]})),
        chat(delta(finish="length")),
    )
    assert choice["logprobs"] == {"content": [entry] * 3}


def test_several_choices_keep_their_places_and_the_usage_is_the_first_ones():
    def told(count):
        return event({"choices": [], **WHOLE, "usage": {"completion_tokens": count}})

    events = [
        chat(delta(1, content="b")),
        chat(delta(0, content="a")),
        chat(delta(0, finish="stop")),
        told(1),
        chat(delta(1, finish="length")),
        told(2),
        DONE,
    ]
    found = answer(CHAT, *events)
    assert [(c["message"]["content"], c["finish_reason"]) for c in found["choices"]] == [("a", "stop"), ("b", "length")]
    assert found["usage"] == {"completion_tokens": 1}


def test_what_a_later_choice_tells_as_it_goes_does_not_replace_what_the_first_one_told():
    timings = {"predicted_n": 2}
    events = [
        chat(delta(0, finish="stop"), timings={"predicted_n": 1}),
        event({"choices": [], **WHOLE, "timings": timings}),
        chat(delta(1, content="b"), timings={"predicted_n": 7}),
        chat(delta(1, finish="stop"), timings={"predicted_n": 8}),
        event({"choices": [], **WHOLE, "timings": {"predicted_n": 9}}),
        DONE,
    ]
    assert answer(CHAT, *events)["timings"] == timings


def test_keys_that_nobody_knows_are_kept_and_progress_is_not():
    found = answer(CHAT, chat(delta(content="a"), prompt_progress={"total": 1}), chat(delta(finish="stop"), x=7), DONE)
    assert found["x"] == 7
    assert "prompt_progress" not in found


def test_a_text_completion_is_put_together():
    def choice(text, finish=None, logprobs=None):
        return event(
            {"choices": [{"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish}], "object": "t"}
        )

    assert answer(
        TEXT, b"data: null\n\n", choice("a", logprobs={"content": [1]}), choice("b"), choice("", "stop"), DONE
    ) == {
        "choices": [{"text": "ab", "index": 0, "logprobs": {"content": [1]}, "finish_reason": "stop"}],
        "object": "t",
    }


def test_of_responses_the_last_event_is_the_answer():
    response = {"id": "r", "created_at": 5, "output": [], "status": "completed"}
    events = [
        event({"type": "response.created", "response": {"id": "r"}}, "response.created"),
        event({"type": "response.output_text.delta", "delta": "a"}, "response.output_text.delta"),
        event({"type": "response.completed", "response": response}, "response.completed"),
    ]
    assert answer(RESPONSES, *events) == {**response, "completed_at": 5}


def message_events(*blocks):
    start = {"id": "m", "type": "message", "role": "assistant", "content": [], "stop_reason": None}
    usage = {"input_tokens": 3, "output_tokens": 0}
    yield event({"type": "message_start", "message": {**start, "usage": usage}}, "message_start")
    for index, (block, deltas) in enumerate(blocks):
        yield event({"type": "content_block_start", "index": index, "content_block": block}, "content_block_start")
        for change in deltas:
            yield event({"type": "content_block_delta", "index": index, "delta": change}, "content_block_delta")
        yield event({"type": "content_block_stop", "index": index}, "content_block_stop")
    ended = {"stop_reason": "end_turn", "stop_sequence": None}
    yield event({"type": "message_delta", "delta": ended, "usage": {"output_tokens": 9}}, "message_delta")
    yield event({"type": "message_stop"}, "message_stop")


def test_a_message_is_put_together_block_by_block():
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    blocks = [
        (
            {"type": "thinking", "thinking": ""},
            [{"type": "thinking_delta", "thinking": "hm"}, {"type": "signature_delta", "signature": "s"}],
        ),
        (
            {"type": "text", "text": ""},
            [{"type": "text_delta", "text": "Hel"}, {"type": "text_delta", "text": "lo"}],
        ),
        (
            call,
            [
                {"type": "input_json_delta", "partial_json": '{"x"'},
                {"type": "input_json_delta", "partial_json": ":1}"},
            ],
        ),
    ]
    assert answer(MESSAGES, *message_events(*blocks)) == {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "text", "text": "Hello"},
            {**call, "input": {"x": 1}},
        ],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 9},
    }


def test_the_arguments_of_a_call_that_was_cut_off_are_none():
    block = ({"type": "tool_use", "input": {}}, [{"type": "input_json_delta", "partial_json": '{"x'}])
    assert answer(MESSAGES, *message_events(block))["content"][0]["input"] == {}


@pytest.mark.parametrize(("code", "status"), [(503, 503), (400, 400), (7, 500), ("x", 500)])
def test_an_error_in_the_stream_is_the_engines_error(code, status):
    error = {"code": code, "message": "no", "type": "server_error"}
    result = folded(CHAT, chat(delta(content="a")), event({"error": error}))
    assert result.status == status
    assert json.loads(result.body) == {"error": error}


def test_an_error_event_without_an_error_key_is_one_too():
    result = folded(RESPONSES, event({"code": 500, "message": "no"}, "error"))
    assert (result.status, json.loads(result.body)) == (500, {"error": {"code": 500, "message": "no"}})


@pytest.mark.parametrize(
    "rest", [b"", b"data: [DONE]\n", b"data: {\n\n" + DONE, b'data: {"choices":[7]}\n\n' + DONE, b"\xff" + DONE[:5]]
)
def test_a_stream_that_ends_early_or_is_none_has_no_answer(rest):
    assert folded(CHAT, chat(delta(content="a")), rest) is None


def test_texts_are_held_and_what_surrounds_them_is_not():
    folding = fold_for(CHAT, BODY)
    folding.feed(b"".join(chat(delta(content="x" * 10)) for _ in range(1000)))
    assert 10_000 < folding.held < 100_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (b"/v1/embeddings", BODY),
        (b"/v1/messages/count_tokens", BODY),
        (CHAT, b'{"messages":[{"role":"user"},{ "role" : "assistant","content":"The"}]}'),
        (MESSAGES, b'{"messages":[{"content":"The","role":"assistant"}],"tools":[{"role":1}]}'),
        (RESPONSES, b'{"input":[{"role":"assistant","content":"The"}]}'),
        (CHAT, b'{"messages":[{"role":"assistant","content":"The","metadata":{"role":"user"}}]}'),
        (CHAT, rb'{"messages":[{"r\u006fle":"assist\u0061nt","content":"The"}]}'),
        (CHAT, b'{"verbose":true}'),
        (CHAT, b'{"tools":[{}],"logprobs":true}'),
        (CHAT, rb'{"x":"\ud800"'),
    ],
)
def test_what_would_be_answered_differently_is_not_folded(path, body):
    assert fold_for(path, body) is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[{"role":"assistant"},{"role":"user","content":"\\"role\\":\\"assistant\\""}]}',
        b'{"messages":[],"verbose":false}',
        b'{"messages":[],"tools":[{}],"logprobs":false}',
        b'{"messages":[],"tools":[],"logprobs":true}',
        b'{"messages":7}',
    ],
)
def test_everything_else_is_folded(body):
    assert fold_for(CHAT, body) is not None
