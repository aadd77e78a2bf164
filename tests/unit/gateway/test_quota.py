import pytest

from rbee.core.auth import ANYBODY, Principal, Role
from rbee.core.errors import TooManyRequests
from rbee.gateway.quota import WINDOW, Quotas


def key(name="web", role=Role.CLIENT, **limits):
    return Principal(role, name, **limits)


def refusal(quotas, principal, now):
    with pytest.raises(TooManyRequests) as caught:
        quotas.take(principal, now)
    return caught.value


@pytest.fixture
def quotas():
    return Quotas()


def test_who_has_no_limits_is_not_counted(quotas):
    for principal in (ANYBODY, key(), Principal(Role.ADMIN, "api_token")):
        assert all(quotas.take(principal, 0.0) is None for _ in range(1000))
    assert quotas.in_flight("web") == 0


def test_key_gets_its_place_back_when_a_request_ends(quotas):
    web = key(max_in_flight=2)
    first, _ = quotas.take(web, 0.0), quotas.take(web, 0.0)
    error = refusal(quotas, web, 1.0)
    assert "keys.web.max_in_flight: 2" in error.message
    first.release(2.0)
    assert quotas.take(web, 2.0) is not None
    refusal(quotas, web, 3.0)


def test_place_is_given_back_once(quotas):
    web = key(max_in_flight=2)
    first, _ = quotas.take(web, 0.0), quotas.take(web, 0.0)
    first.release(1.0)
    first.release(1.0)
    assert quotas.in_flight("web") == 1


def test_who_must_wait_for_a_place_is_told_how_long_the_keys_requests_take(quotas):
    web = key(max_in_flight=2)
    assert quotas.take(web, 0.0).release(40.0) is None
    quotas.take(web, 100.0)
    quotas.take(web, 100.0)
    assert refusal(quotas, web, 100.0).retry_after == 20.0


def test_who_must_wait_for_a_place_of_quick_requests_waits_a_second(quotas):
    web = key(max_in_flight=1)
    quotas.take(web, 0.0)
    assert refusal(quotas, web, 0.0).retry_after == 1.0


def test_window_is_exact_to_the_request(quotas):
    web = key(requests_per_minute=3)
    for moment in (0.0, 10.0, 20.0):
        quotas.take(web, moment).release(moment)
    error = refusal(quotas, web, 59.0)
    assert "keys.web.requests_per_minute: 3" in error.message
    assert error.retry_after == 1.0
    assert refusal(quotas, web, 20.5).retry_after == 39.5
    quotas.take(web, 60.0)
    assert refusal(quotas, web, 69.0).retry_after == 1.0
    quotas.take(web, 70.0)


def test_refusals_do_not_count(quotas):
    web = key(max_in_flight=1, requests_per_minute=2)
    seat = quotas.take(web, 0.0)
    for _ in range(100):
        refusal(quotas, web, 1.0)
    seat.release(2.0)
    quotas.take(web, 3.0).release(4.0)
    assert "requests_per_minute" in refusal(quotas, web, 5.0).message


def test_each_key_has_limits_of_its_own(quotas):
    one, other = key("one", max_in_flight=1), key("other", max_in_flight=1)
    quotas.take(one, 0.0)
    quotas.take(other, 0.0)
    refusal(quotas, one, 0.0)


def test_admin_key_with_limits_has_them(quotas):
    admin = key("ops", Role.ADMIN, max_in_flight=1)
    quotas.take(admin, 0.0)
    refusal(quotas, admin, 0.0)


def test_window_remembers_no_more_than_a_minute(quotas):
    web = key(requests_per_minute=1000)
    for second in range(10_000):
        quotas.take(web, float(second)).release(float(second))
    assert len(quotas._usages["web"].starts) <= WINDOW
