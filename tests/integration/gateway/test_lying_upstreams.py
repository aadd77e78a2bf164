"""The corpus of answers: what is no answer becomes a 502 after one retry, and nothing that is cut looks whole."""

import asyncio

import pytest

from tests.corpus import read
from tests.corpus.read import Answer
from tests.integration.gateway.stubs import Client, House, Message, get, post

pytestmark = pytest.mark.anyio
ANSWERS = read.answers()
CHAT = {"model": "synthetic:a"}
WHOLE = [row for row in ANSWERS if row.becomes == "whole"]
BROKEN = [row for row in ANSWERS if row.becomes != "whole"]


def saying(row: Answer, *, stream: bool = False):
    """What a stub does that answers with *row*."""
    raw = row.raw.replace(b" OK\r\n", b" OK\r\nContent-Type: text/event-stream\r\n", 1) if stream else row.raw

    async def answer(call):
        call.send(raw)
        if row.ends == "reset":
            call.reset()
        elif row.ends == "close":
            call.close()

    return answer


async def ask(house: House, row: Answer) -> tuple[Client, Message | None]:
    """The client, and its answer; None where that is not whole."""
    client = await house.client()
    client.send(get("/v1/a", method="HEAD") if row.asked == "HEAD" else post(CHAT))
    try:
        return client, await client.answer(bodyless=row.asked == "HEAD")
    except (asyncio.IncompleteReadError, ConnectionError):
        return client, None


@pytest.mark.parametrize("row", BROKEN, ids=[row.name for row in BROKEN])
async def test_answer_that_lies_is_not_passed_on_as_whole(house, row):
    stubs = [await house.worker(name, answer=saying(row)) for name in ("w1", "w2")]
    _, answer = await ask(house, row)
    if answer is not None:
        assert answer.status == 502
        assert answer.json()["error"]["code"] == "worker_lost"
        assert [len(stub.calls) for stub in stubs] == [1, 1]
    else:
        assert row.becomes == "cut"
    assert [usage.status for usage in house.usages] == [200 if answer is None else 502]


CUT = [row for row in BROKEN if row.becomes == "cut" and b"chunked" in row.raw]


@pytest.mark.parametrize("row", CUT, ids=[row.name for row in CUT])
async def test_stream_that_lies_ends_with_an_error_event_or_before_it_begins(house, row):
    for name in ("w1", "w2"):
        await house.worker(name, answer=saying(row, stream=True))
    _, answer = await ask(house, row)
    assert answer is not None
    assert b"worker_lost" in answer.body
    assert (answer.status == 502) or answer.body.endswith(b"\n\n")


@pytest.mark.parametrize("row", WHOLE, ids=[row.name for row in WHOLE])
async def test_answer_that_is_whole_comes_whole(house, row):
    stub = house.control if row.asked == "HEAD" else await house.worker(answer=saying(row))
    stub.answer = saying(row)
    for _ in range(2):
        client, answer = await ask(house, row)
        assert answer is not None
        assert (answer.status, answer.body) == (row.status, row.body)
        assert len(answer.headers.get("x-request-id", "")) > 1
        assert answer.headers.get("x-rbee-worker") in ("w1", None)
        assert "access-control-allow-origin" not in answer.headers
        client.send(get("/livez"))
        assert (await client.answer()).json() == {"status": "alive"}
    assert stub.connections == (1 if row.kept else 2)
