import json

import pytest

from rbee.core.errors import MalformedRequest
from rbee.gateway.asked import SLOW_LIMIT
from rbee.gateway.respelling import respell

NEW = {"model": b'"new"'}


def test_the_value_is_replaced_where_it_stands():
    body = b'{ "messages" : [ 1.0e2 ],\n "model" :\t"old" , "x": 1 }'
    assert respell(body, NEW) == b'{ "messages" : [ 1.0e2 ],\n "model" :\t"new" , "x": 1 }'


def test_a_key_of_the_same_name_deeper_inside_stays():
    body = b'{"tools":[{"model":"old"}],"model":"old"}'
    assert respell(body, NEW) == b'{"tools":[{"model":"old"}],"model":"new"}'


def test_text_that_looks_like_the_key_stays():
    body = rb'{"text":"\"model\":\"old\"","a\"model":"old","model":"old"}'
    assert respell(body, NEW) == rb'{"text":"\"model\":\"old\"","a\"model":"old","model":"new"}'


def test_the_value_that_is_there_already_costs_no_copy():
    body = b'{"model":"new"}'
    assert respell(body, NEW) is body


def test_a_missing_key_is_put_at_the_start():
    assert respell(b' {"model":"m"}', {"stream": b"true"}) == b' {"stream":true,"model":"m"}'


def test_of_two_equal_keys_the_last_one_counts():
    assert json.loads(respell(b'{"model":"a","model":"b"}', NEW)) == {"model": "new"}


def test_a_key_with_escapes_is_found():
    assert json.loads(respell(rb'{"mod\u0065l":"a","x":{"model":"a"}}', NEW)) == {"model": "new", "x": {"model": "a"}}


def test_lone_surrogates_pass():
    assert respell(rb'{"model":"a","x":"\ud800"}', NEW) == rb'{"model": "new", "x": "\ud800"}'


def test_a_large_body_that_would_have_to_be_written_anew_is_refused():
    body = rb'{"mod\u0065l":"a","x":"%b"}' % (b"x" * SLOW_LIMIT)
    with pytest.raises(MalformedRequest, match="model"):
        respell(body, NEW)


def test_a_number_that_json_cannot_write_again_is_refused():
    with pytest.raises(MalformedRequest):
        respell(rb'{"mod\u0065l":"a","x":1e999}', NEW)


def test_a_body_full_of_places_that_look_like_the_key_is_given_up_soon():
    body = b'{"x":[%b],"model":"a"}' % b",".join([b'{"model":"a"}'] * (SLOW_LIMIT // 10))
    with pytest.raises(MalformedRequest):
        respell(body, NEW)
