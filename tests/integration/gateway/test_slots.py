"""A ready worker has as many requests as it has slots; the others wait here, in order, until one is free."""

import asyncio
import json

import pytest

from rbee.core.routing import Standing
from tests.integration.gateway.stubs import DEADLINE, House, answer_json, post, until

pytestmark = pytest.mark.anyio
CHAT = {"model": "synthetic:a", "messages": []}


class Held:
    """Answers that wait for the test's word, one by one or all."""

    def __init__(self) -> None:
        self._permits = asyncio.Semaphore(0)

    async def __call__(self, call) -> None:
        await self._permits.acquire()
        await answer_json(call)

    def let_go(self, count: int = 1) -> None:
        for _ in range(count):
            self._permits.release()


async def asks(house: House, count: int, waiting: int, model: str = "synthetic:a", **more):
    """*count* clients, one after another, until *waiting* requests wait for the model."""
    before = house.gateway.waiting()["synthetic:a"] + house.slots_used()
    clients = []
    for number in range(count):
        clients.append(await house.client())
        clients[-1].post({**CHAT, "model": model, "n": number, **more})
        await until(lambda n=number: house.gateway.waiting()["synthetic:a"] + house.slots_used() == before + n + 1)
    assert house.gateway.waiting()["synthetic:a"] == waiting
    return clients


def numbers(stub):
    return [json.loads(body)["n"] for body in stub.bodies]


async def test_worker_gets_as_many_requests_as_it_has_slots_and_the_others_in_their_order(house):
    held = Held()
    worker = await house.worker(answer=held, slots=2)
    clients = await asks(house, 5, waiting=3)
    await until(lambda: len(worker.calls) == 2)
    assert house.gateway.in_flight() == {"synthetic:a": 2}
    for count in (3, 4, 5):
        held.let_go()
        await until(lambda n=count: len(worker.calls) == n)
        assert house.slots_used() == 2
    held.let_go(2)
    answers = [await client.answer() for client in clients]
    assert [answer.status for answer in answers] == [200] * 5
    assert sorted(numbers(worker)) == list(range(5))
    assert numbers(worker)[2:] == [2, 3, 4]
    assert [usage.queue_seconds > 0 for usage in sorted(house.usages, key=lambda u: u.queue_seconds)][2:] == [True] * 3


async def test_newcomer_does_not_overtake_who_waits(house):
    held = Held()
    worker = await house.worker(answer=held, slots=1)
    first, second = await asks(house, 2, waiting=1)
    held.let_go()
    await first.answer()
    # The slot has been handed on already: the same connection's next request stands behind.
    first.post({**CHAT, "n": "again"})
    await until(lambda: house.gateway.waiting()["synthetic:a"] == 1)
    held.let_go(2)
    await second.answer()
    await first.answer()
    assert numbers(worker) == [0, 1, "again"]


async def test_request_that_wants_a_busy_worker_does_not_hold_up_those_behind_it(house):
    held, other = Held(), Held()
    await house.worker("w1", answer=held, slots=1)
    free = await house.worker("w2", answer=other, slots=1)
    await asks(house, 1, waiting=0, model="w1")
    (picky,) = await asks(house, 1, waiting=1, model="w1")
    (anyone,) = await asks(house, 1, waiting=1)
    other.let_go()
    assert json.loads((await anyone.answer()).body)["by"] == "w2"
    held.let_go(2)
    assert json.loads((await picky.answer()).body)["by"] == "w1"
    assert len(free.calls) == 1


async def test_slot_of_a_client_that_leaves_goes_to_the_next_one(house):
    gone = asyncio.Event()

    async def hold_first(call):
        if len(call.stub.calls) == 1:
            await call.gone()
            gone.set()
        else:
            await answer_json(call)

    await house.worker(answer=hold_first, slots=1)
    first, second = await asks(house, 2, waiting=1)
    first.leave()
    assert (await second.answer()).status == 200
    async with asyncio.timeout(DEADLINE):
        await gone.wait()


async def test_second_worker_that_becomes_ready_takes_its_slots_full_from_the_line(house):
    held = Held()
    await house.worker("w1", answer=held, slots=1)
    clients = await asks(house, 5, waiting=4)
    second = await house.worker("w2", answer=held, slots=3)
    await until(lambda: len(second.calls) == 3)
    assert sorted(numbers(second)) == [1, 2, 3]
    assert house.gateway.waiting() == {"synthetic:a": 1}
    held.let_go(5)
    assert [(await client.answer()).status for client in clients] == [200] * 5


async def test_full_line_of_a_busy_worker_tells_when_to_come_back(make_house):
    house = await make_house(queue_limit=2)
    held = Held()
    await house.worker(answer=held, slots=1)
    await asks(house, 3, waiting=2)
    # As if each held its slot for 20 s, so far.
    house.gateway.room.served("synthetic:a", 20.0)
    answer = await house.ask(post(CHAT))
    assert (answer.status, answer.json()["error"]["code"]) == (429, "queue_full")
    assert answer.headers["retry-after"] == "40"
    held.let_go(3)
    await until(lambda: not house.slots_used())
    assert house.gateway.room.expected_wait("synthetic:a") == 1


async def test_wait_for_a_slot_has_a_limit_and_says_what_was_waited_for(make_house):
    house = await make_house(queue_timeout=0.3)
    held = Held()
    await house.worker(answer=held, slots=1)
    await asks(house, 1, waiting=0)
    answer = await house.ask(post(CHAT))
    assert (answer.status, answer.json()["error"]["code"]) == (503, "queue_timeout")
    assert "free slot" in answer.json()["error"]["message"]
    held.let_go()


async def test_counting_tokens_waits_for_no_slot_and_takes_none(house):
    held = Held()

    async def hold_chats(call):
        await (answer_json if call.request.path.endswith("count_tokens") else held)(call)

    await house.worker(answer=hold_chats, slots=1)
    await asks(house, 2, waiting=1)
    assert (await house.ask(post(CHAT, "/v1/messages/count_tokens"))).status == 200
    assert house.gateway.waiting() == {"synthetic:a": 1}
    held.let_go(2)


async def test_tokens_that_are_being_counted_leave_the_slot_to_others(house):
    held = Held()

    async def hold_counts(call):
        await (held if call.request.path.endswith("count_tokens") else answer_json)(call)

    await house.worker(answer=hold_counts, slots=1)
    counting = await house.client()
    counting.post(CHAT, "/v1/messages/count_tokens")
    await until(lambda: house.gateway.in_flight() == {"synthetic:a": 1})
    assert (await house.ask(post(CHAT))).status == 200
    held.let_go()
    assert (await counting.answer()).status == 200


async def test_lost_request_goes_before_those_that_came_later(house):
    """Its worker dies; the other one's next slot is for it."""
    dying, held = asyncio.Event(), Held()

    async def die(call):
        await dying.wait()
        house.announce("w1", Standing.OUT)
        call.close()

    # The first goes to w1, the second to w2, the third waits.
    await house.worker("w1", answer=die, slots=1)
    other = await house.worker("w2", answer=held, slots=1)
    clients = await asks(house, 3, waiting=1)
    dying.set()
    await until(lambda: house.gateway.waiting()["synthetic:a"] == 2)
    held.let_go(3)
    await asyncio.gather(*(client.answer() for client in clients))
    assert numbers(other) == [1, 0, 2]
