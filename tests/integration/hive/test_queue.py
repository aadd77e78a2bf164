"""Requests beyond a worker's slots wait in the hive, are counted there, and go when a slot is free."""

from concurrent.futures import ThreadPoolExecutor

from tests.hives import wait_for

CHAT = {"messages": [{"role": "user", "content": "hello"}]}


def test_requests_beyond_the_slots_are_queued_and_all_answered(hive):
    worker_id = hive.ready(slots=1, engine_args=["--tokens-per-second", "10"])["worker_id"]

    def ask(tokens):
        return hive.post("/v1/chat/completions", {"model": "synthetic:x", "max_tokens": tokens, **CHAT})

    with ThreadPoolExecutor(3) as clients:
        asked = [clients.submit(ask, 30) for _ in range(3)]
        wait_for(lambda: hive.metric("rbee_hive_queue_depth", model="synthetic:x") == 2, "two wait")
        assert hive.worker(worker_id)["in_flight"] == 1
        answers = [future.result() for future in asked]
    assert [answer.status for answer in answers] == [200] * 3
    waited = sorted(int(answer.headers["x-rbee-queue-ms"]) for answer in answers)
    assert waited[0] < waited[1] < waited[2]
    assert hive.metric("rbee_hive_queue_depth", model="synthetic:x") == 0
