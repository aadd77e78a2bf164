"""Stories of one request: however workers, routes, time and client behave, it ends once and holds nothing after."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbee.core.auth import AuthPolicy, Principal, Role
from rbee.core.errors import NoReadyWorker, WorkerLost
from rbee.core.queueing import RETRY_AFTER
from rbee.core.routing import Route, RouteTable, Standing
from rbee.gateway.door import FrontDoor
from rbee.gateway.exchange import now
from rbee.gateway.head import parse_head
from rbee.gateway.inference import Inference
from rbee.gateway.options import GatewayOptions
from rbee.gateway.upstream import AnswerHead

HEAD = parse_head(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\r\n")
SSE = [(b"Content-Type", b"text/event-stream")]
JSON = [(b"Content-Type", b"application/json")]
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


class FakeUpstream:
    """Somebody who was asked. It must not speak to who has left it."""

    paused = False
    heard = False

    def __init__(self, asker):
        self.asker = asker
        self.heard_at = now()
        self.open = True

    def abandon(self):
        assert self.open
        self.open = False

    def pause(self): ...
    def resume(self): ...


class FakePool:
    def __init__(self):
        self.asked: list[FakeUpstream] = []
        self.addresses = []

    def ask(self, address, request, asker, *, fresh=False):
        assert not any(upstream.open for upstream in self.asked), "two workers at once"
        self.asked.append(FakeUpstream(asker))
        self.addresses.append(address)
        return self.asked[-1]

    def retain(self, ready, known): ...


class FakeClient:
    """Checks the order of what it is told: a head, pieces, one end, and nothing after it."""

    origin = None

    def __init__(self):
        self.begun = self.gone = False
        self.ends = 0
        self.refused = None

    def begin(self, status, lines, length):
        assert not self.begun
        self.begun = True

    def send(self, data, *, done=False):
        assert self.begun
        assert not self.ends
        self.ends += done

    def send_chunk(self, framed, start):
        self.send(framed[start:-2])

    def refuse(self, error):
        assert not self.begun
        assert not self.ends
        self.refused = error
        self.ends += 1

    def close_after(self): ...

    def abort(self):
        assert self.begun
        self.ends += 1

    def drop_body(self): ...


class Story:
    def __init__(self, head, *, stream: bool, standing: Standing | None, folds: bool = False):
        """*standing* is that of the worker that is there; None: nobody is, since the hive still adopts."""
        self._usages = []
        self.folds = folds
        self.routes = RouteTable()
        options = GatewayOptions("", queue_timeout=60.0, keepalive_after=15.0, stall_timeout=40.0, queue_limit=1)
        self.principal = Principal(Role.CLIENT, "web", max_in_flight=1)
        self.door = FrontDoor(options, self.routes, AuthPolicy({}, b""), self._usages.append, "1")
        self.pool = self.door.pool = FakePool()
        self.client = FakeClient()
        self.door.adopting = standing is None
        if standing is not None:
            self.place("w1", standing)
        self.request = Inference(self.door, self.client, head, "id-1", self.principal)
        self.request.start(b'{"model":"m","stream":%b}' % (b"true" if stream else b"false"))
        self.waited = bool(self.door.room)
        self.passed = 0.0

    @property
    def usages(self):
        self.door.log.settle()
        return self._usages

    def place(self, name, standing):
        self.routes.publish(Route(name, "m", standing=standing, host="h", port=1, folds=self.folds))

    @property
    def over(self) -> bool:
        return bool(self.client.ends) or self.client.gone

    def take(self, step):
        name, argument = step
        getattr(self, f"step_{name}")(argument)

    def worker(self) -> FakeUpstream | None:
        return next((upstream for upstream in self.pool.asked if upstream.open), None)

    def step_route(self, argument):
        self.place(*argument)

    def step_withdraw(self, name):
        self.routes.withdraw(name)

    def step_head(self, argument):
        status, fields, length, done = argument
        upstream = self.worker()
        if upstream is not None and not upstream.heard:
            upstream.open = not done
            upstream.heard = True
            upstream.asker.answered(AnswerHead(status, fields, length), EVENT, done)

    def step_data(self, done):
        upstream = self.worker()
        if upstream is not None and upstream.heard:
            upstream.open = not done
            upstream.asker.answered(None, EVENT + DONE if done else EVENT, done)

    def step_lost(self, stale):
        upstream = self.worker()
        if upstream is not None:
            upstream.open = False
            upstream.asker.lost("gone", stale and not upstream.heard)

    def step_time(self, seconds):
        self.passed += seconds
        self.request.tick(now() + self.passed)

    def step_adopted(self, _):
        self.door.adopting = False

    def step_close(self, _):
        self.door.closing = True

    def step_cancel(self, _):
        assert len(self.door.log.cancel("id-1")) == 1

    def step_leave(self, _):
        self.client.gone = True
        self.request.drop(499)


_standings = st.sampled_from(Standing)
_workers = st.sampled_from(["w1", "w2"])
_heads = st.tuples(
    st.sampled_from([200, 200, 400, 401, 503]), st.sampled_from([SSE, JSON]), st.sampled_from([None, 9]), st.booleans()
)
_steps = st.one_of(
    st.tuples(st.just("route"), st.tuples(_workers, _standings)),
    st.tuples(st.just("withdraw"), _workers),
    st.tuples(st.just("head"), _heads),
    st.tuples(st.just("data"), st.booleans()),
    st.tuples(st.just("lost"), st.booleans()),
    st.tuples(st.just("time"), st.sampled_from([0.3, 6.0, 16.0, 41.0, 61.0])),
    st.tuples(st.sampled_from(["close", "leave", "adopted", "cancel"]), st.none()),
)


@settings(max_examples=400, deadline=None)
@given(st.booleans(), st.booleans(), st.none() | _standings, st.lists(_steps, max_size=10))
def test_every_story_ends_once_and_holds_nothing_after(stream, folds, standing, steps):
    story = Story(HEAD, stream=stream, standing=standing, folds=folds)
    for step in steps:
        if story.over:
            break
        story.take(step)
        held = sum(route.in_flight for route in story.routes) + sum(story.routes._left_in_flight.values())
        assert held == (story.worker() is not None)
        assert len(story.usages) == story.over
        assert len(story.door.log) == story.door.quotas.in_flight("web") == (not story.over)
    if not story.over:
        story.take(("leave", None))
    assert story.client.ends + story.client.gone == 1
    assert story.worker() is None
    assert not any(route.in_flight for route in story.routes)
    assert not story.routes._left_in_flight
    assert not story.door.room
    assert not story.door.buffer.used
    assert len(story.usages) == 1
    assert story.door.log.ended() == (story.usages if story.waited or story.pool.asked else [])
    # What comes late finds nobody: no second end, no second usage, no seat that is given back twice.
    story.request.drop(499)
    story.routes.changed()
    assert len(story.usages) == 1
    assert len(story.door.log) == story.door.quotas.in_flight("web") == 0


def told(standing=Standing.READY, *steps) -> Story:
    story = Story(HEAD, stream=False, standing=standing)
    for step in steps:
        story.take(step)
    return story


LOST = ("lost", False)


def test_worker_that_has_just_gone_away_is_not_asked_again_at_once():
    story = told(Standing.READY, LOST)
    assert story.worker() is None
    story.take(("time", 0.3))
    assert story.worker() is not None


def test_other_worker_is_asked_at_once():
    story = told(Standing.READY, ("route", ("w2", Standing.READY)), LOST)
    assert story.worker() is not None
    assert story.request._account.worker_id == "w2"


def test_other_worker_that_becomes_ready_meanwhile_is_asked_at_once():
    story = told(Standing.READY, LOST, ("route", ("w2", Standing.READY)))
    assert story.worker() is not None


def test_lost_worker_that_the_hive_starts_again_is_asked_as_soon_as_it_is_ready():
    story = told(Standing.READY, LOST, ("route", ("w1", Standing.COMING)), ("time", 16.0))
    assert story.worker() is None
    story.take(("route", ("w1", Standing.READY)))
    assert story.worker() is not None


def test_lost_worker_that_is_out_is_told_with_its_reason():
    story = told(Standing.READY, LOST)
    story.routes.publish(Route("w1", "m", standing=Standing.OUT, message="the engine crashed"))
    assert isinstance(story.client.refused, NoReadyWorker)
    assert "'w1' went away before it answered" in story.client.refused.message
    assert "the engine crashed" in story.client.refused.message


def test_what_is_told_of_two_losses_is_what_happened():
    twice = told(Standing.READY, LOST, ("time", 0.3), LOST)
    assert isinstance(twice.client.refused, WorkerLost)
    assert "'w1' went away twice" in twice.client.refused.message
    both = told(Standing.READY, ("route", ("w2", Standing.READY)), LOST, LOST)
    assert "'w1' and 'w2' went away" in both.client.refused.message


def test_time_at_a_worker_is_no_time_in_the_queue():
    story = told(Standing.READY)
    story.request._account.received_at -= 1000.0
    story.take(("route", ("w1", Standing.COMING)))
    story.take(LOST)
    story.take(("time", 16.0))
    assert story.client.refused is None
    story.take(("time", 61.0))
    assert story.client.refused is not None


def test_ended_connection_of_a_workers_last_life_is_not_tried_again_at_its_old_address():
    story = told(Standing.READY)
    story.routes.publish(Route("w1", "m", standing=Standing.READY, host="h", port=2))
    story.take(("lost", True))
    story.take(("time", 0.3))
    assert story.pool.addresses == [("h", 1), ("h", 2)]


def test_lost_request_that_waits_again_is_shown_with_no_worker():
    story = told(Standing.READY)
    assert story.request.look(now()).worker_id == "w1"
    story.take(LOST)
    assert (story.request.look(now()).state, story.request.look(now()).worker_id) == ("waiting", None)


def test_who_does_not_take_the_workers_key_is_not_the_worker_and_another_one_is_asked():
    story = told(Standing.READY, ("route", ("w2", Standing.READY)), ("head", (401, JSON, 9, True)))
    assert story.worker() is not None
    assert story.request._account.worker_id == "w2"
    assert story.routes.in_flight("w1") == 0


def test_what_is_relayed_is_activity_and_what_is_not_is_none():
    loading = told(Standing.READY, ("head", (503, JSON, 9, True)))
    assert loading.routes.routes["w1"].activity.relayed_bytes == 0
    story = told(Standing.READY, ("head", (200, SSE, None, False)))
    activity = story.routes.routes["w1"].activity
    assert activity.relayed_bytes == len(b"Content-Type: text/event-stream\r\n" + EVENT)
    story.place("w1", Standing.OUT)
    story.take(("data", False))
    assert story.routes.routes["w1"].activity is activity
    assert activity.relayed_bytes == len(b"Content-Type: text/event-stream\r\n" + EVENT * 2)


def test_hive_that_stops_lets_no_lost_request_wait_again():
    story = told(Standing.READY, ("close", None), LOST)
    assert story.client.refused is not None
    assert story.client.refused.code == "shutting_down"


def test_cancelled_request_tells_its_client_so_and_leaves_its_worker():
    story = told(Standing.READY, ("cancel", None))
    assert story.client.refused.code == "request_cancelled"
    assert story.worker() is None
    assert (story.usages[0].status, story.usages[0].cancelled) == (410, True)


def test_request_that_its_key_does_not_allow_is_counted_and_not_kept():
    story = told(Standing.READY)
    client = FakeClient()
    Inference(story.door, client, HEAD, "id-2", story.principal).start(b'{"model":"m"}')
    assert client.refused.code == "too_many_requests"
    assert [(usage.model, usage.status, usage.key) for usage in story.usages] == [("m", 429, "web")]
    assert (len(story.door.log), story.door.log.ended()) == (1, [])


@pytest.mark.parametrize(
    ("body", "standing", "code"),
    [
        (b'{"model":"nobody"}', Standing.READY, "model_not_found"),
        (b'{"model":"w1"}', Standing.READY, "queue_full"),
        (b'{"model":"w2"}', Standing.OUT, "no_ready_worker"),
    ],
)
def test_request_that_is_refused_at_once_pushes_nobody_out_of_the_record(body, standing, code):
    story = told(Standing.READY, ("route", ("w2", standing)))
    others = [Inference(story.door, FakeClient(), HEAD, "id") for _ in range(4)]
    for request in others:
        request.start(b'{"model":"w1"}')
    client = FakeClient()
    Inference(story.door, client, HEAD, "id-2").start(body)
    assert client.refused.code == code
    assert story.usages[-1].error == code
    assert story.door.log.ended() == []
    for request in [story.request, *others]:
        request.drop(499)
    assert len(story.door.log.ended()) == 2, "one that its worker had, and one that waited"


def test_time_of_who_gets_the_slot_is_not_counted_to_who_gave_it_back():
    story = told(Standing.READY)
    second = Inference(story.door, FakeClient(), HEAD, "id-2")
    second.start(b'{"model":"m"}')
    story.take(("head", (200, JSON, 9, True)))
    (usage,) = story.usages
    assert story.request._account.received_at + usage.duration_seconds <= second._asked_at
    second.drop(499)


def test_stream_that_failed_after_its_200_says_which_error_it_was():
    story = Story(HEAD, stream=True, standing=Standing.READY)
    story.take(("head", (200, SSE, None, False)))
    story.take(LOST)
    assert [(usage.status, usage.error) for usage in story.usages] == [(200, "worker_lost")]
    foreign = Story(HEAD, stream=True, standing=Standing.READY)
    foreign.take(("time", 16.0))
    foreign.worker().asker.answered(AnswerHead(400, JSON, None), b'{"error":{"message":"too long"}}', done=True)
    assert [(usage.status, usage.error) for usage in foreign.usages] == [(200, "engine_error")]
    whole = Story(HEAD, stream=True, standing=Standing.READY)
    whole.take(("head", (200, SSE, None, True)))
    assert [(usage.status, usage.error) for usage in whole.usages] == [(200, None)]


@pytest.mark.parametrize(
    ("standing", "lack"), [(Standing.COMING, "'m' became ready within 60 s"), (Standing.READY, "a free slot within")]
)
def test_wait_that_ran_out_says_what_was_waited_for(standing, lack):
    story = told(standing)
    request = story.request
    if standing is Standing.READY:
        request = Inference(story.door, FakeClient(), HEAD, "id-2")
        request.start(b'{"model":"m"}')
    request.tick(now() + 61.0)
    assert lack in request.client.refused.message


def test_answer_that_broke_off_is_not_complete():
    story = told(Standing.READY, ("head", (200, SSE, None, False)), LOST)
    assert not story.request._account.complete
    whole = told(Standing.READY, ("head", (200, JSON, 9, True)))
    assert whole.request._account.complete


LOADING = ("head", (503, JSON, 9, True))


def test_worker_that_says_it_loads_is_left_for_another_at_once():
    story = told(Standing.READY, ("route", ("w2", Standing.READY)), LOADING)
    assert story.worker() is not None
    assert story.request._account.worker_id == "w2"


def test_workers_that_all_say_they_load_are_asked_once_each_until_their_time_is_over():
    story = told(Standing.READY, ("route", ("w2", Standing.READY)), LOADING, LOADING)
    assert story.worker() is None
    assert len(story.pool.asked) == 2
    story.take(("time", 0.3))
    assert story.worker() is not None


def test_full_worker_gets_no_second_request_and_the_first_in_line_gets_the_slot():
    story = told(Standing.READY)
    second = Inference(story.door, FakeClient(), HEAD, "id-2")
    second.start(b'{"model":"m"}')
    assert story.door.waiting() == {"m": 1}
    assert len(story.pool.asked) == 1
    story.take(("head", (200, JSON, 9, True)))
    assert [upstream.asker for upstream in story.pool.asked] == [story.request, second]
    second.drop(499)


def test_only_answered_requests_tell_how_long_a_slot_is_held():
    story = told(Standing.READY, ("route", ("w2", Standing.READY)), LOST)
    assert story.door.room.expected_wait("m") == RETRY_AFTER
    story.take(("head", (200, JSON, 9, True)))
    assert story.door.room.expected_wait("m") == 1.0
