import pytest

from rbee.core.errors import RequestNotFound
from rbee.core.usage import RequestState, Underway, Usage
from rbee.gateway.request_log import LIMIT, RequestLog


class FakeRequest:
    """Ends when it is cancelled, as a real one does; *fails* is what it raises instead."""

    def __init__(self, log, request_id, fails=None):
        self.log = log
        self.request_id = request_id
        self.fails = fails
        self.is_broken = False
        log.begin(self)

    def look(self, now):
        state = RequestState.RUNNING
        return Underway(self.request_id, "m", "w1", "/v1/completions", False, None, 0.0, state, now, 0.0, None)

    def cancel(self):
        if self.fails:
            raise self.fails
        self.log.end(self)

    def broken(self):
        self.is_broken = True
        self.log.end(self)


def usage(request_id):
    return Usage(request_id, "m", "w1", "/v1/completions", 200, False, 0.0, 1.0, 2.0, 0.0)


def ids(requests):
    return [request.request_id for request in requests]


@pytest.fixture
def log():
    return RequestLog()


def test_requests_under_way_are_listed_in_order_of_arrival(log):
    first, _, third = (FakeRequest(log, name) for name in ("a", "b", "c"))
    assert ids(log.underway()) == ["a", "b", "c"]
    log.end(first)
    log.end(third)
    assert ids(log.underway()) == ["b"]


def test_the_last_ones_are_kept_newest_first(log):
    for number in range(LIMIT + 5):
        log.keep(usage(str(number)))
    assert len(log.ended()) == LIMIT == 1000
    assert ids(log.ended())[0] == str(LIMIT + 4)
    assert ids(log.ended())[-1] == "5"


def test_two_requests_with_one_id_are_both_listed_and_both_cancelled(log):
    for name in ("a", "b", "a"):
        FakeRequest(log, name)
    assert ids(log.underway()) == ["a", "b", "a"]
    assert ids(log.cancel("a")) == ["a", "a"]
    assert ids(log.underway()) == ["b"]


def test_who_ends_while_others_are_cancelled_is_not_cancelled_again(log):
    first, second = FakeRequest(log, "a"), FakeRequest(log, "a", fails=AssertionError("it has ended"))
    # As if it had got what the first gave back, and could not use it.
    first.cancel = lambda: (log.end(first), log.end(second))
    log.cancel("a")
    assert not second.is_broken


def test_who_breaks_when_it_is_cancelled_does_not_keep_the_others(log):
    broken, _ = FakeRequest(log, "a", fails=ValueError("?")), FakeRequest(log, "a")
    log.cancel("a")
    assert broken.is_broken
    assert len(log) == 0


def test_request_that_has_ended_cannot_be_cancelled_and_is_told_apart_from_one_that_never_was(log):
    log.keep(usage("a"))
    with pytest.raises(RequestNotFound, match="has ended already") as ended:
        log.cancel("a")
    with pytest.raises(RequestNotFound, match="There is no request 'b'") as unknown:
        log.cancel("b")
    assert (ended.value.details, unknown.value.details) == ({"ended": True}, {"ended": False})


def test_request_that_never_began_may_end(log):
    request = FakeRequest(log, "a")
    log.end(request)
    log.end(request)
    assert log.underway() == []
