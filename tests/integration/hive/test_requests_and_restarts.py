"""Requests that meet a worker between two of its lives."""

import threading

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def test_a_request_for_a_worker_that_is_being_restarted_is_answered_by_its_next_life(hive):
    worker_id = hive.ready(engine_args=["--tokens-per-second", "20"])["worker_id"]
    answers = {}

    def ask(name, tokens):
        body = {"model": worker_id, **CHAT, "max_tokens": tokens}
        answers[name] = hive.post("/v1/chat/completions", body)

    first, second = (threading.Thread(target=ask, args=args) for args in (("first", 30), ("second", 1)))
    first.start()
    hive.wait_state(worker_id, "busy")
    hive.post(f"/v1/workers/{worker_id}/restart", {})
    second.start()
    first.join()
    second.join()
    assert [answers[name].status for name in ("first", "second")] == [200, 200]
    assert answers["first"].json["usage"]["completion_tokens"] == 30
    assert hive.worker(worker_id)["restart_count"] == 1
