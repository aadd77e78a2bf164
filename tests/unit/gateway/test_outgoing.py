from rbee.core.routing import Route
from rbee.gateway import asked, outgoing

BODY = b'{"messages": [], "model": "example"}'


def sent(route, body=BODY):
    return outgoing.for_worker(route, b"/v1/chat/completions", asked.read(body), body).body


def test_a_name_that_the_engine_does_not_know_becomes_its_own():
    assert sent(Route("w1", "pkg:m", served=("pkg:m", "w1"))) == b'{"messages": [], "model": "pkg:m"}'


def test_a_name_that_the_engine_knows_stays():
    assert sent(Route("w1", "pkg:m", served=("smol", "example"))) is BODY


def test_an_engine_of_which_no_name_is_known_gets_the_clients_own():
    assert sent(Route("w1", "pkg:m")) is BODY
