"""What a worker does when its hive refuses it, forgets it, replaces it, or is gone."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.worker.real import StartWorker, alive, free_port, wait_until
from tests.integration.worker.stub_hive import Call, Hives, StubHive, refusal


def test_a_hive_that_forgot_the_worker_hears_its_present_state_again(hive: StubHive, start_worker: StartWorker) -> None:
    start_worker(hive.url, "--heartbeat-interval", "0.1")
    hive.wait_state("ready")
    before = len(hive.calls)
    hive.answers["/v1/heartbeat"] = refusal(404, "worker_not_found")
    again = hive.wait_state("ready", after=before)
    assert alive(again["engine_pid"])
    del hive.answers["/v1/heartbeat"]
    hive.wait_beat(after=len(hive.calls))


def test_every_announcement_says_what_the_worker_is(hive: StubHive, start_worker: StartWorker) -> None:
    spec = {"worker_id": "w0", "engine_args": ["--tokens-per-second", "20"], "idle_timeout": None}
    start_worker(hive.url, "--", "--crash-after", "0.1", RBEE_WORKER_SPEC=json.dumps(spec))
    hive.wait_state("failed")
    announced = [call.body for call in hive.calls if "state" in call.body]
    assert {"loading", "ready", "failed"} == {body["state"] for body in announced}
    assert all(body["spec"] == spec for body in announced)
    assert not any("spec" in call.body for call in hive.calls if call.path == "/v1/heartbeat")


def test_without_a_description_none_is_sent_and_the_engine_never_sees_one(
    hive: StubHive, start_worker: StartWorker
) -> None:
    start_worker(hive.url)
    assert "spec" not in hive.wait_state("ready")
    start_worker(hive.url, RBEE_WORKER_SPEC='{"a": 1}')
    described = hive.wait_for(lambda call: call.body.get("state") == "ready" and "spec" in call.body).body
    assert b"RBEE_WORKER_SPEC" not in Path(f"/proc/{described['engine_pid']}/environ").read_bytes()


@pytest.mark.parametrize(("state", "engine"), [("loading", ("--", "--load-seconds", "3600")), ("ready", ())])
def test_one_that_is_forgotten_announces_itself_and_beats_at_once(
    hive: StubHive, start_worker: StartWorker, state: str, engine: tuple[str, ...]
) -> None:
    """The first beat of this state is answered 404, and the next of its own would come in half an hour."""
    forgotten: list[int] = []

    def forget_once(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        known = [call.body for call in hive.calls if call.body.get("state") == state and "engine_pid" in call.body]
        if forgotten or not known:
            return hive.welcome(body)
        forgotten.append(len(hive.calls))
        return refusal(404, "worker_not_found")(body)

    hive.answers["/v1/heartbeat"] = forget_once
    # A load has but one beat of its own, and that may come before the engine is announced: so a short interval there.
    interval = "1800" if state == "ready" else "2"
    start_worker(hive.url, "--heartbeat-interval", interval, *engine)
    first = hive.wait_for(lambda call: call.body.get("state") == state and "engine_pid" in call.body).body
    wait_until(lambda: forgotten, "a beat that is answered 404")
    again = hive.wait_for(lambda call: "state" in call.body, after=forgotten[0])
    assert (again.body["state"], again.body["engine_pid"]) == (state, first["engine_pid"])
    beat = hive.wait_for(lambda call: call.path == "/v1/heartbeat", after=hive.calls.index(again))
    assert beat is hive.calls[hive.calls.index(again) + 1]


def test_a_worker_beats_as_soon_as_it_is_ready(hive: StubHive, start_worker: StartWorker) -> None:
    start_worker(hive.url, "--heartbeat-interval", "1800")
    hive.wait_state("ready")
    loaded = wait_until(
        lambda: [
            call for call in hive.calls if call.path == "/v1/heartbeat" and "slots_busy" in call.body["telemetry"]
        ],
        "a beat with what a loaded engine tells",
    )
    assert loaded[0].body["telemetry"]["rss_bytes"] > 0


def test_a_hive_that_never_knows_the_worker_is_not_asked_in_a_tight_loop(
    hive: StubHive, start_worker: StartWorker
) -> None:
    hive.answers["/v1/heartbeat"] = refusal(404, "worker_not_found")
    worker = start_worker(hive.url, "--heartbeat-interval", "1800")

    hive.wait_state("ready")
    ready_at = next(call.at for call in hive.calls if call.body.get("state") == "ready")

    def beats() -> list[Call]:
        """Those of a worker that has nothing new to tell any more."""
        return [call for call in hive.calls if call.path == "/v1/heartbeat" and call.at > ready_at]

    wait_until(lambda: len(beats()) >= 2, "two beats")
    at_once, paced = beats()[:2]
    assert paced.at - at_once.at > 1.5  # 2 s; a slow machine can only make it more
    assert worker.process.poll() is None


@pytest.mark.parametrize("path", ["/v1/heartbeat", "/v1/workers/ready"])
def test_a_newer_incarnation_ends_it_and_its_engine_quietly(
    hive: StubHive, start_worker: StartWorker, path: str
) -> None:
    worker = start_worker(hive.url, "--heartbeat-interval", "0.1", "--incarnation", "1")
    engine = hive.wait_state("ready")["engine_pid"]
    if path == "/v1/workers/ready":
        hive.answers["/v1/heartbeat"] = refusal(404, "worker_not_found")
    hive.answers[path] = refusal(409, "older_incarnation")
    assert worker.wait_end() == 0
    assert not alive(engine)
    assert worker.ended()["reason"] == "superseded"
    assert "failed" not in hive.states()


def test_an_older_incarnation_starts_no_engine(hive: StubHive, start_worker: StartWorker) -> None:
    hive.answers["/v1/workers/ready"] = refusal(409, "older_incarnation")
    worker = start_worker(hive.url, "--incarnation", "1")
    assert worker.wait_end() == 0
    assert "Engine started" not in worker.log


def test_another_conflict_is_logged_and_survived(hive: StubHive, start_worker: StartWorker) -> None:
    worker = start_worker(hive.url, "--heartbeat-interval", "0.1")
    hive.wait_state("ready")
    hive.answers["/v1/heartbeat"] = refusal(409, "illegal_transition", "not now")
    wait_until(lambda: "not now" in worker.log, "the message in the log")
    del hive.answers["/v1/heartbeat"]
    hive.wait_beat(after=len(hive.calls))
    assert worker.process.poll() is None


@pytest.mark.parametrize(
    ("status", "code"), [(401, "unauthorized"), (403, "forbidden"), (409, "worker_id_in_use"), (422, "invalid_field")]
)
def test_a_refused_worker_says_why_and_ends(hive: StubHive, start_worker: StartWorker, status: int, code: str) -> None:
    hive.answers["/v1/workers/ready"] = refusal(status, code, "the reason of the hive")
    worker = start_worker(hive.url)
    assert worker.wait_end() == 1
    assert "the reason of the hive" in worker.log
    assert worker.ended()["message"] == "the hive refused this worker: the reason of the hive"


def test_a_hive_that_is_not_up_yet_is_tried_again(hives: Hives, start_worker: StartWorker) -> None:
    port = free_port()
    worker = start_worker(f"http://127.0.0.1:{port}")
    wait_until(lambda: "Failed to announce the worker (will retry)" in worker.log, "the first failure in the log")
    assert "Connection refused" in worker.log
    hives.start(port=port).wait_state("ready")


def test_a_hive_that_still_starts_is_tried_again(hive: StubHive, start_worker: StartWorker) -> None:
    hive.answers["/v1/workers/ready"] = refusal(503, "control_unavailable", "not up yet")
    worker = start_worker(hive.url)
    wait_until(lambda: "not up yet" in worker.log, "the message in the log")
    del hive.answers["/v1/workers/ready"]
    hive.wait_state("ready")


def test_a_hive_that_never_comes_makes_no_orphan_that_waits_for_ever(start_worker: StartWorker) -> None:
    worker = start_worker(f"http://127.0.0.1:{free_port()}", "--orphan-timeout", "0.5")
    assert worker.wait_end() == 1
    assert worker.ended()["reason"] == "orphaned"


def test_an_orphan_ends_itself_and_its_engine(hives: Hives, start_worker: StartWorker) -> None:
    hive = hives.start()
    worker = start_worker(hive.url, "--heartbeat-interval", "0.1", "--orphan-timeout", "0.5")
    engine = hive.wait_state("ready")["engine_pid"]
    hives.stop()
    assert worker.wait_end() == 1
    assert not alive(engine)
    assert "Failed to send heartbeat (will retry)" in worker.log
    assert worker.ended()["reason"] == "orphaned"


def test_the_hive_may_change_how_long_an_orphan_waits(hives: Hives, start_worker: StartWorker) -> None:
    hive = hives.start()
    hive.answers["/v1/heartbeat"] = lambda _: (200, {"message": "Heartbeat received", "orphan_timeout": 0.5})
    worker = start_worker(hive.url, "--heartbeat-interval", "0.1")
    hive.wait_state("ready")
    hives.stop()
    assert worker.wait_end() == 1
    assert worker.ended()["message"] == "no hive answered a heartbeat for 0.5 s"


@pytest.mark.parametrize("path", ["/v1/heartbeat", "/v1/workers/ready"])
def test_a_long_time_that_the_hive_allows_holds_when_it_is_gone_and_when_it_is_back(
    hives: Hives, start_worker: StartWorker, path: str
) -> None:
    """What ``leave`` needs: the next hive may come a day later."""
    hive = hives.start()
    port = int(hive.url.rpartition(":")[2])
    hive.answers[path] = lambda body: (200, {**hive.welcome(body)[1], "orphan_timeout": 86_400})
    worker = start_worker(hive.url, "--heartbeat-interval", "0.2", "--orphan-timeout", "1")
    engine = hive.wait_state("ready")["engine_pid"]
    hive.wait_beat(after=len(hive.calls))
    hives.stop()
    failed = "Failed to send heartbeat (will retry)"
    # One a fifth of a second at the most: so many are far more than the second that the command line allows.
    wait_until(lambda: worker.log.count(failed) >= 15, "beats that failed for longer than the command line allows")
    assert worker.process.poll() is None
    hives.start(port=port).wait_beat(health_status="healthy")
    assert alive(engine)


def test_the_hive_may_say_it_in_its_answer_to_the_announcement_too(hives: Hives, start_worker: StartWorker) -> None:
    hive = hives.start()
    hive.answers["/v1/workers/ready"] = lambda body: (200, {**hive.welcome(body)[1], "orphan_timeout": 0.5})
    worker = start_worker(hive.url, "--heartbeat-interval", "0.1")
    engine = hive.wait_state("ready")["engine_pid"]
    hives.stop()
    assert worker.wait_end() == 1
    assert not alive(engine)
    assert (worker.ended()["reason"], worker.ended()["message"]) == (
        "orphaned",
        "no hive answered a heartbeat for 0.5 s",
    )


@pytest.mark.parametrize("status", [404, 500, 503])
def test_a_hive_that_answers_but_never_with_a_success_makes_an_orphan(
    hive: StubHive, start_worker: StartWorker, status: int
) -> None:
    worker = start_worker(hive.url, "--heartbeat-interval", "0.1", "--orphan-timeout", "0.6")
    hive.wait_state("ready")
    hive.answers["/v1/heartbeat"] = refusal(status, "worker_not_found" if status == 404 else "internal_error")
    assert worker.wait_end() == 1
    assert worker.ended()["reason"] == "orphaned"


def test_a_hive_that_lost_everything_is_back_and_hears_what_its_workers_are(
    hives: Hives, start_worker: StartWorker
) -> None:
    hive = hives.start()
    port = int(hive.url.rpartition(":")[2])
    worker = start_worker(hive.url, "--heartbeat-interval", "0.2", RBEE_WORKER_SPEC='{"worker_id": "w0"}')
    engine = hive.wait_state("ready")["engine_pid"]
    hives.stop()
    wait_until(lambda: "Connection refused" in worker.log, "a beat that nobody took")
    back = hives.start(port=port)

    def only_whom_it_knows(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return back.welcome(body) if "ready" in back.states() else refusal(404, "worker_not_found")(body)

    back.answers["/v1/heartbeat"] = only_whom_it_knows
    announced = back.wait_state("ready")
    assert (announced["engine_pid"], announced["spec"]) == (engine, {"worker_id": "w0"})
    back.wait_beat(after=len(back.calls))
    assert worker.process.poll() is None


def is_stopped(pid: int) -> bool:
    return all(
        path.read_text().rpartition(")")[2].split()[0] == "T" for path in Path(f"/proc/{pid}/task").glob("*/stat")
    )


def test_a_keeper_that_was_frozen_asks_once_more_before_it_gives_up(
    hive: StubHive, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker(hive.url, "--heartbeat-interval", "0.2", "--orphan-timeout", "0.4")
    hive.wait_state("ready")
    beats: list[Any] = []

    def note(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        beats.append(body)
        return hive.welcome(body)

    worker.process.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: is_stopped(worker.process.pid), "the stop")
        stopped_at = time.monotonic()
        wait_until(lambda: time.monotonic() > stopped_at + 1.0, "more than the orphan time")
        hive.answers["/v1/heartbeat"] = note
    finally:
        worker.process.send_signal(signal.SIGCONT)
    wait_until(lambda: len(beats) >= 3 or worker.process.poll() is not None, "beats after the freeze")
    assert worker.process.poll() is None


def test_the_interval_comes_from_the_hive_unless_it_was_given(hive: StubHive, start_worker: StartWorker) -> None:
    hive.answers["/v1/workers/ready"] = lambda _: (200, {"message": "x", "engine_key": "k", "heartbeat_interval": 0.1})
    start_worker(hive.url)
    for _ in range(3):
        hive.wait_beat(after=len(hive.calls))
