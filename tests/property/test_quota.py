"""Whatever a key asks and whenever its requests end, it never has more than it may, and is let in as soon as it may."""

from hypothesis import given
from hypothesis import strategies as st

from rbee.core.auth import Principal, Role
from rbee.core.errors import TooManyRequests
from rbee.gateway.quota import WINDOW, Quotas

_steps = st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.integers(0, 5)), max_size=60)


@given(st.integers(0, 4), st.integers(0, 6), _steps)
def test_key_gets_what_it_may_and_no_more(max_in_flight, per_minute, steps):
    quotas = Quotas()
    web = Principal(Role.CLIENT, "web", max_in_flight=max_in_flight, requests_per_minute=per_minute)
    now, starts, seats = 0.0, [], []
    for passed, is_end, which in steps:
        now += passed
        if is_end:
            if seats:
                seats.pop(which % len(seats)).release(now)
            continue
        recent = sum(now - start < WINDOW for start in starts)
        has_room = (not max_in_flight or len(seats) < max_in_flight) and (not per_minute or recent < per_minute)
        refused = None
        try:
            seat = quotas.take(web, now)
        except TooManyRequests as error:
            refused = error
        if refused is not None:
            assert not has_room
            assert refused.retry_after >= 1.0
        else:
            assert has_room
            starts.append(now)
            if seat is not None:
                seats.append(seat)
    if max_in_flight or per_minute:
        assert quotas.in_flight("web") == len(seats)
