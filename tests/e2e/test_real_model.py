"""The real model behind the real gateway, asked by the official client."""

import openai
import pytest

from tests.hives import Hive, example_model, is_alive, running_hive, wait_for


@pytest.fixture(scope="module")
def hive(tmp_path_factory):
    """Defaults throughout, but for heartbeats that a test can wait for."""
    quick = {"heartbeat.interval": "1s", "heartbeat.stale_after": "30s"}
    with running_hive(tmp_path_factory.mktemp("e2e") / "state", quick) as started:
        yield started


@pytest.fixture(scope="module")
def client(hive: Hive):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{hive.port}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def worker(hive: Hive):
    return hive.ready("example", alias="smol")


QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_a_chat_is_answered(client, worker):
    answer = client.chat.completions.create(model="example", messages=QUESTION, max_tokens=24, temperature=0)
    assert answer.choices[0].message.content.strip()
    assert answer.usage.prompt_tokens > 5
    assert 1 < answer.usage.completion_tokens <= 24


def test_a_chat_is_streamed_token_by_token(client, worker):
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(
            model="smol", messages=QUESTION, max_tokens=24, temperature=0, stream=True
        )
        if chunk.choices
    ]
    # A token a chunk: nothing between the engine and here puts them together.
    assert 3 < sum(bool(piece) for piece in pieces) <= 24


def test_each_slot_has_all_of_the_context(hive, client, worker):
    """The engine divides its own among its slots: of 4,096 tokens each of the four would have 1,024."""
    text = "bee " * 1100
    answer = client.chat.completions.create(
        model=worker["worker_id"], messages=[{"role": "user", "content": text}], max_tokens=4
    )
    assert answer.usage.prompt_tokens >= 1100
    assert answer.usage.completion_tokens >= 1
    seen = hive.metric("rbee_hive_inference_tokens_total", kind="prompt") + hive.metric(
        "rbee_hive_inference_tokens_total", kind="cached"
    )
    assert seen >= 1100


def test_the_models_are_listed(client, worker):
    assert {"smol", worker["model_ref"]} <= {model.id for model in client.models.list()}


def test_an_unknown_model_is_the_clients_own_error(client, worker):
    with pytest.raises(openai.NotFoundError, match="smol"):
        client.chat.completions.create(model="gpt-5", messages=QUESTION)


def test_a_text_completion_is_answered(client, worker):
    answer = client.completions.create(model="smol", prompt="One, two, three,", max_tokens=4, temperature=0)
    assert answer.choices[0].text


def test_it_beats_and_tells_what_it_takes(hive, worker):
    wait_for(lambda: hive.worker(worker["worker_id"])["memory"]["rss_bytes"], "its memory is known")
    assert hive.worker(worker["worker_id"])["memory"]["rss_bytes"] > 100 * 2**20
    wait_for(
        lambda: any(line["worker_id"] == worker["worker_id"] for line in hive.log("Received heartbeat")), "it beats"
    )


def test_a_request_may_come_before_the_model_is_loaded(hive, client):
    worker_id = hive.spawn("example")
    answer = client.chat.completions.with_raw_response.create(model=worker_id, messages=QUESTION, max_tokens=2)
    assert answer.headers["x-rbee-worker"] == worker_id
    assert int(answer.headers["x-rbee-queue-ms"]) > 0
    hive.call("DELETE", f"/v1/workers/{worker_id}")
    hive.wait_state(worker_id, "gone")


def test_a_model_file_that_is_cut_off_or_no_model_is_told(tmp_path, hive):
    with running_hive(tmp_path / "state", {"models.allowed_roots": str(tmp_path)}) as other:
        text, short, cut = (tmp_path / name for name in ("text.gguf", "short.gguf", "cut.gguf"))
        text.write_text("once upon a time " * 1000)
        short.write_bytes(b"GGUF\x03\0\0\0")
        whole = example_model().read_bytes()
        cut.write_bytes(whole[: len(whole) // 2])
        for path, says in (
            (text, "not a GGUF"),
            (short, "cut off"),
            (cut, "cut off"),
            (tmp_path / "none.gguf", "cannot be read"),
        ):
            answer = other.post("/v1/workers/spawn", {"model_ref": f"file:{path}"})
            assert answer.status == (404 if path.name == "none.gguf" else 400)
            assert says in answer.json["error"]["message"]
        assert other.processes() == []


def test_deleted_it_is_gone_with_all_its_processes(hive, worker):
    hive.call("DELETE", f"/v1/workers/{worker['worker_id']}")
    hive.wait_state(worker["worker_id"], "gone")
    wait_for(lambda: not (is_alive(worker["pid"]) or is_alive(worker["engine_pid"])), "both processes are gone")
