import pytest

from rbee.core.errors import RequestNotFound
from rbee.core.usage import RequestState, Underway
from rbee.gateway.account import Account
from rbee.gateway.request_log import BATCH, LIMIT, RequestLog


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


def account(request_id):
    return Account(request_id, "/v1/completions", "m")


def ids(requests):
    return [request.request_id for request in requests]


@pytest.fixture
def log():
    return RequestLog([].append)


def test_requests_under_way_are_listed_in_order_of_arrival(log):
    first, _, third = (FakeRequest(log, name) for name in ("a", "b", "c"))
    assert ids(log.underway()) == ["a", "b", "c"]
    log.end(first)
    log.end(third)
    assert ids(log.underway()) == ["b"]


def test_the_last_ones_are_kept_newest_first(log):
    for number in range(LIMIT + 5):
        log.close(account(str(number)), 200, 1.0, kept=True)
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
    log.close(account("a"), 200, 1.0, kept=True)
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


def test_sink_is_told_of_several_at_once_and_of_all_of_them():
    told = []
    log = RequestLog(told.append)
    for number in range(BATCH + 1):
        log.close(account(str(number)), 200, 1.0, kept=True)
    assert ids(told) == [str(number) for number in range(BATCH)]
    log.settle()
    assert ids(told)[-1] == str(BATCH)
    log.settle()
    assert len(told) == BATCH + 1


def test_who_was_never_let_in_is_told_but_not_listed():
    told = []
    log = RequestLog(told.append)
    log.close(account("a"), 429, 1.0, kept=False)
    assert log.ended() == []
    assert ids(told) == ["a"]


def test_account_that_cannot_be_told_does_not_cost_the_others_theirs():
    told = []

    def sink(usage):
        if usage.request_id == "bad":
            raise OverflowError
        told.append(usage)

    log = RequestLog(sink)
    for name in ("a", "bad", "b"):
        log.close(account(name), 200, 1.0, kept=True)
    assert ids(log.ended()) == ["b", "bad", "a"]
    assert ids(told) == ["a", "b"]
