"""The same conversation goes to the worker that knows it, while that one is not much busier than the others."""

import asyncio

import pytest

from tests.integration.gateway.stubs import answer_json, post, until

pytestmark = pytest.mark.anyio


def turn(conversation: int, number: int, **more):
    messages = [{"role": "system", "content": "Be helpful. " * 200}]
    for n in range(number):
        messages += [{"role": "user", "content": f"{conversation} {n}"}, {"role": "assistant", "content": f"{n}"}]
    messages.append({"role": "user", "content": f"{conversation} {number}"})
    return {"model": "synthetic:a", "messages": messages, **more}


async def talk(house, conversations=6, turns=4):
    """The worker of each turn, by conversation."""
    seen = [[] for _ in range(conversations)]
    for number in range(turns):
        for conversation in range(conversations):
            answer = await house.ask(post(turn(conversation, number)))
            seen[conversation].append(answer.headers["x-rbee-worker"])
    return seen


async def test_turns_of_a_conversation_go_to_one_worker_and_conversations_to_all(house):
    for name in ("w1", "w2", "w3"):
        await house.worker(name)
    seen = await talk(house)
    assert all(len(set(turns)) == 1 for turns in seen)
    assert sorted(turns[0] for turns in seen) == ["w1", "w1", "w2", "w2", "w3", "w3"]


async def test_setting_turns_it_off(make_house):
    house = await make_house(affinity=False)
    for name in ("w1", "w2"):
        await house.worker(name)
    await talk(house)
    assert house.gateway.prefixes is None


async def test_model_with_one_worker_needs_no_book(house):
    await house.worker()
    await talk(house, 2, 2)
    assert len(house.gateway.prefixes) == 0


async def test_embeddings_and_counts_leave_no_trace_in_the_book(house):
    await house.worker("w1")
    await house.worker("w2")
    for path in ("/v1/embeddings", "/v1/rerank", "/v1/messages/count_tokens"):
        assert (await house.ask(post(turn(1, 1), path))).status == 200
    assert len(house.gateway.prefixes) == 0


async def test_worker_that_knows_the_conversation_is_left_while_it_is_busy_and_when_it_is_gone(house):
    release = asyncio.Event()

    async def hold(call):
        if b"hold" in call.request.body:
            await release.wait()
        await answer_json(call)

    workers = {name: await house.worker(name, answer=hold, slots=2) for name in ("w1", "w2")}
    first = (await house.ask(post(turn(1, 0)))).headers["x-rbee-worker"]
    other = "w1" if first == "w2" else "w2"
    held = []
    for _ in range(2):
        held.append(await house.client())
        held[-1].post({"model": first, "messages": [], "user": "hold"})
    await until(lambda: house.routes.in_flight(first) == 2)
    assert (await house.ask(post(turn(1, 1)))).headers["x-rbee-worker"] == other
    release.set()
    for client in held:
        await client.answer()
    # It has the conversation now.
    assert (await house.ask(post(turn(1, 2)))).headers["x-rbee-worker"] == other
    house.routes.withdraw(other)
    await workers[other].stop()
    house.stubs.remove(workers[other])
    assert (await house.ask(post(turn(1, 3)))).headers["x-rbee-worker"] == first
