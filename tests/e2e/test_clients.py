"""The official clients against the real model. The table in docs/api.md names these tests."""

import contextlib
import json
import os
import signal
import socket

import anthropic
import openai
import pytest

from tests.e2e.conftest import ADMIN_KEY, CLIENT_KEY, METRICS_KEY, ONCE_A_MINUTE_KEY, ONE_AT_A_TIME_KEY
from tests.hives import wait_for

pytestmark = pytest.mark.usefixtures("smol")
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
# Cold: a warm answer may be over before its limit. In the body, since Anthropic's client does not name it any more.
SHORT = {"model": "smol", "messages": QUESTION, "max_tokens": 6, "extra_body": {"temperature": 0}}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "The weather", "parameters": CITY}}
ANTHROPIC_TOOL = {"name": "get_weather", "description": "The weather", "input_schema": CITY}


@pytest.fixture(scope="module")
def gpt(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=CLIENT_KEY, max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def claude(served):
    with anthropic.Anthropic(base_url=served.url, api_key=CLIENT_KEY, max_retries=0) as made:
        yield made


def called(city, number):
    """A question and the call that answers it, for the model to imitate."""
    function = {"name": "get_weather", "arguments": json.dumps({"city": city})}
    call = {"id": f"c{number}", "type": "function", "function": function}
    return [
        {"role": "user", "content": f"Weather in {city}?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]


WEATHER = [*called("Rome", 1), *called("Oslo", 2), {"role": "user", "content": "Weather in Paris?"}]
TOOLS = {"model": "smol", "messages": WEATHER, "tools": [TOOL], "tool_choice": "required", "temperature": 0}


def used(city, number):
    block = {"type": "tool_use", "id": f"c{number}", "name": "get_weather", "input": {"city": city}}
    return [{"role": "user", "content": f"Weather in {city}?"}, {"role": "assistant", "content": [block]}]


ANTHROPIC_WEATHER = [*used("Rome", 1), *used("Oslo", 2), {"role": "user", "content": "Weather in Paris?"}]
ANTHROPIC_TOOLS = {
    "model": "smol",
    "messages": ANTHROPIC_WEATHER,
    "tools": [ANTHROPIC_TOOL],
    "tool_choice": {"type": "any"},
    "max_tokens": 60,
    "extra_body": {"temperature": 0},
}


# OpenAI's client


def test_openai_chat(gpt):
    answer = gpt.chat.completions.create(**SHORT)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content.strip()
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.completion_tokens, answer.usage.prompt_tokens > 5) == (6, True)


def test_openai_chat_by_its_built_in_name(gpt):
    assert gpt.chat.completions.create(**{**SHORT, "model": "example"}).choices[0].message.content.strip()


def test_openai_chat_stream(gpt):
    chunks = list(gpt.chat.completions.create(**SHORT, stream=True))
    assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) > 2
    assert chunks[-1].choices[0].finish_reason == "length"


def test_openai_chat_stream_with_usage(gpt):
    *_, last = gpt.chat.completions.create(**SHORT, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage.completion_tokens == 6


def test_openai_tools(gpt):
    choice = gpt.chat.completions.create(**TOOLS, max_tokens=60).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls[0].function.name == "get_weather"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Paris"}


def test_openai_tools_stream(gpt):
    calls = [
        call
        for chunk in gpt.chat.completions.create(**TOOLS, max_tokens=60, stream=True)
        for call in chunk.choices[0].delta.tool_calls or ()
    ]
    assert calls[0].function.name == "get_weather"
    assert json.loads("".join(call.function.arguments or "" for call in calls)) == {"city": "Paris"}


def test_openai_json_schema(gpt):
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": CITY, "strict": True}}
    answer = gpt.chat.completions.create(
        model="smol", messages=QUESTION, response_format=form, max_tokens=60, temperature=0
    )
    assert json.loads(answer.choices[0].message.content).keys() == {"city"}


def test_openai_logprobs(gpt):
    answer = gpt.chat.completions.create(**SHORT, logprobs=True, top_logprobs=3)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == 6
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 3 for entry in entries)


def test_openai_tools_with_logprobs(gpt):
    choice = gpt.chat.completions.create(**TOOLS, max_tokens=60, logprobs=True).choices[0]
    assert choice.message.tool_calls[0].function.name == "get_weather"
    assert len(choice.logprobs.content) > 5


def test_openai_several_choices(gpt):
    answer = gpt.chat.completions.create(**SHORT, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1]


def test_openai_completions(gpt):
    answer = gpt.completions.create(model="smol", prompt="One, two, three,", max_tokens=4, temperature=0)
    assert answer.object == "text_completion"
    assert answer.choices[0].text.strip()
    chunks = gpt.completions.create(model="smol", prompt="One, two, three,", max_tokens=4, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def test_openai_embeddings(gpt, served):
    served.ready("example", alias="vectors", slots=1, ctx_size=512, engine_args=["--embedding", "--pooling", "mean"])
    answer = gpt.embeddings.create(model="vectors", input=["bees", "wax"])
    assert [entry.index for entry in answer.data] == [0, 1]
    assert len(answer.data[0].embedding) == 576
    assert sum(x * x for x in answer.data[0].embedding) == pytest.approx(1, abs=0.01)
    assert answer.usage.prompt_tokens > 1


def test_openai_responses(gpt):
    answer = gpt.responses.create(model="smol", input="Name a colour.", max_output_tokens=6)
    assert answer.status == "completed"
    assert answer.output_text.strip()
    assert 1 <= answer.usage.output_tokens <= 6


def test_openai_responses_stream(gpt):
    events = list(gpt.responses.create(model="smol", input="Name a colour.", max_output_tokens=6, stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-1].response.output_text


def test_openai_models(gpt):
    assert "smol" in {model.id for model in gpt.models.list()}


# Anthropic's client


def test_anthropic_messages(claude):
    answer = claude.messages.create(**SHORT)
    assert answer.content[0].type == "text"
    assert answer.content[0].text.strip()
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 6)


def test_anthropic_messages_stream(claude):
    with claude.messages.stream(**SHORT) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(texts) > 2
    assert final.content[0].text == "".join(texts)
    assert final.usage.output_tokens == 6


def test_anthropic_tools(claude):
    answer = claude.messages.create(**ANTHROPIC_TOOLS)
    assert answer.stop_reason == "tool_use"
    block = answer.content[-1]
    assert (block.type, block.name, block.input) == ("tool_use", "get_weather", {"city": "Paris"})


def test_anthropic_tools_stream(claude):
    with claude.messages.stream(**ANTHROPIC_TOOLS) as stream:
        block = stream.get_final_message().content[-1]
    assert (block.type, block.name, block.input) == ("tool_use", "get_weather", {"city": "Paris"})


def test_anthropic_count_tokens(claude):
    assert claude.messages.count_tokens(model="smol", messages=QUESTION).input_tokens > 5


def test_anthropic_models(claude):
    assert "smol" in {model.id for model in claude.models.list()}


# Errors


def asks_chat(client, **changes):
    return client.chat.completions.create(**{**SHORT, **changes})


def asks_messages(client, **changes):
    return client.messages.create(**{**SHORT, **changes})


@pytest.fixture(params=["openai", "anthropic"])
def either(request, gpt, claude):
    """A client's package, the client, and how it asks."""
    both = {"openai": (openai, gpt, asks_chat), "anthropic": (anthropic, claude, asks_messages)}
    return both[request.param]


def test_an_unknown_model_is_not_found(either):
    package, client, ask = either
    with pytest.raises(package.NotFoundError, match="smol"):
        ask(client, model="gpt-5")


@pytest.mark.parametrize(
    ("key", "error"), [("no-key-of-anybody", "AuthenticationError"), (METRICS_KEY, "PermissionDeniedError")]
)
def test_a_key_that_may_not_is_told_so(either, key, error):
    package, client, ask = either
    with pytest.raises(getattr(package, error)):
        ask(client.with_options(api_key=key))


def test_a_prompt_that_is_too_long_is_a_bad_request(either):
    package, client, ask = either
    with pytest.raises(package.BadRequestError, match="context"):
        ask(client, messages=[{"role": "user", "content": "bee " * 6000}])


def test_a_field_of_the_wrong_type_is_unprocessable(either):
    package, client, ask = either
    with pytest.raises(package.UnprocessableEntityError, match="model"):
        ask(client, model=7)


def test_a_body_that_is_too_large_is_told_by_its_status(either):
    package, client, ask = either
    with pytest.raises(package.APIStatusError) as raised:
        ask(client, messages=[{"role": "user", "content": "x" * 2**20}])
    assert raised.value.status_code == 413


def test_a_worker_that_failed_is_a_server_error(either, served):
    package, client, ask = either
    worker_id = served.spawn("synthetic:bad", restart="never", engine_args=["--fail-load", "no"])
    served.until(worker_id, "failed")
    with pytest.raises(package.InternalServerError):
        ask(client, model=worker_id)


@contextlib.contextmanager
def asked_by_another(served, worker_id):
    """Somebody else has asked this worker, and reads no answer."""
    body = json.dumps({"model": worker_id, "messages": []})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {CLIENT_KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.hive.port)) as waiting:
        waiting.sendall((head + body).encode())
        yield


@pytest.mark.parametrize("loads", [True, False], ids=["while it loads", "while its slots are full"])
def test_a_full_queue_is_a_rate_limit(either, served, loads):
    package, client, ask = either
    model = "synthetic:never" if loads else "synthetic:slow"
    worker_id = served.spawn(
        model, slots=1, engine_args=["--stall-load"] if loads else ["--first-token-seconds", "3600"]
    )
    with contextlib.ExitStack() as others:
        if not loads:
            served.until(worker_id, "idle")
            others.enter_context(asked_by_another(served, worker_id))
            served.until(worker_id, "busy")
        others.enter_context(asked_by_another(served, worker_id))
        wait_for(lambda: served.hive.metric("rbee_hive_queue_depth", model=model), "one waits")
        with pytest.raises(package.RateLimitError) as raised:
            ask(client, model=worker_id)
    assert int(raised.value.response.headers["retry-after"]) >= 1
    served.hive.call("DELETE", f"/v1/workers/{worker_id}?force=true", token=ADMIN_KEY)
    wait_for(lambda: not served.hive.metric("rbee_hive_queue_depth", model=model), "nobody waits")


def test_a_key_that_has_all_that_it_may_under_way_is_a_rate_limit(either):
    package, client, ask = either
    limited = client.with_options(api_key=ONE_AT_A_TIME_KEY)
    with ask(limited, max_tokens=2000, stream=True) as stream:
        next(iter(stream))
        with pytest.raises(package.RateLimitError) as raised:
            ask(limited)
    assert int(raised.value.response.headers["retry-after"]) >= 1


def test_a_key_that_asks_too_often_is_a_rate_limit(either):
    package, client, ask = either
    limited = client.with_options(api_key=ONCE_A_MINUTE_KEY)
    with contextlib.suppress(package.RateLimitError):  # the other client may have used up this minute's
        ask(limited, max_tokens=1)
    with pytest.raises(package.RateLimitError) as raised:
        ask(limited, max_tokens=1)
    assert 1 <= int(raised.value.response.headers["retry-after"]) <= 60


def test_a_worker_that_dies_in_its_answer_is_an_error_in_the_stream(either, served):
    package, client, ask = either
    worker = served.ready("example", restart="never")
    with ask(client, model=worker["worker_id"], max_tokens=3000, stream=True) as stream:
        next(iter(stream))
        os.kill(worker["engine_pid"], signal.SIGKILL)
        with pytest.raises(package.APIError):
            list(stream)
