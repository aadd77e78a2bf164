import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbee.core.errors import InvalidField, MalformedRequest
from rbee.gateway.asked import SLOW_LIMIT, Asked, read
from tests.fuzz.bodies import expected, outcome


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        (b'{"model":"a"}', Asked("a", stream=False)),
        (b'{"model":"a","stream":true}', Asked("a", stream=True)),
        (b'{"model":"a","stream":null}', Asked("a", stream=False)),
        (b' {"messages":[{"model":"b","stream":true}], "model" : "a" } ', Asked("a", stream=False)),
        (b'{"model":"a","model":"b"}', Asked("b", stream=False)),
        (b'{"model":1,"model":"b"}', Asked("b", stream=False)),
        (b'{"stream":3,"model":"b","stream":true}', Asked("b", stream=True)),
        (b'{"mod\\u0065l":"\\u00e9"}', Asked("é", stream=False)),
        (b'{"model":"a","x":"\\ud800"}', Asked("a", stream=False)),
        (b'{"model":"a","x":1e999,"y":123456789012345678901234567890}', Asked("a", stream=False)),
    ],
)
def test_model_and_stream_are_read(body, asked):
    assert read(body) == asked


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"model",
     b'{"model":"a"', b'{"model":"a"}}', b'{"model":"a",}', b'{"model":"a","x":NaN}', b'{"model":1,',
     b'{"model":"\xff"}', b"[" * 10_000_000, b'{"a":' * 200_000 + b"1" + b"}" * 200_000, b'\xef\xbb\xbf{"model":"a"}'],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
def test_what_is_not_json_is_malformed(body):
    with pytest.raises(MalformedRequest):
        read(body)


def test_what_only_the_slow_parser_reads_has_a_limit():
    body = b'{"model":"a","x":"\\ud800"}'
    assert read(body.ljust(SLOW_LIMIT)) == Asked("a", stream=False)
    with pytest.raises(MalformedRequest, match="lone surrogates"):
        read(body.ljust(SLOW_LIMIT + 1))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"[]", ""),
        (b'"a"', ""),
        (b"null", ""),
        (b"{}", "model"),
        (b'{"model":null}', "model"),
        (b'{"model":1}', "model"),
        (b'{"model":["a"]}', "model"),
        (b'{"model":"a","model":2}', "model"),
        (b'{"model":"a","stream":"true"}', "stream"),
        (b'{"model":"a","stream":1}', "stream"),
    ],
)
def test_wrong_content_names_its_field(body, field):
    with pytest.raises(InvalidField) as caught:
        read(body)
    assert caught.value.details == {"field": field}


_scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8)
)
_values = st.recursive(
    _scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3)
)
_names = st.sampled_from(["model", "stream", "messages", "mode", "modell"]) | st.text(max_size=4)
_pairs = st.lists(st.tuples(_names, _values | st.sampled_from(["a", True, False])), max_size=6)


@settings(max_examples=1000)
@given(_pairs, st.booleans(), st.sampled_from(["", " ", "\n\t"]))
def test_reading_agrees_with_the_standard_parser(pairs, ascii_only, space):
    # Written by hand, since a dict cannot hold the same key twice.
    members = [
        json.dumps(k, ensure_ascii=ascii_only) + space + ":" + json.dumps(v, ensure_ascii=ascii_only) for k, v in pairs
    ]
    try:
        body = ("{" + (space + ",").join(members) + "}").encode()
    except UnicodeEncodeError:
        return
    assert outcome(body) == expected(body)


@settings(max_examples=1000)
@given(_pairs, st.integers(0, 60), st.binary(max_size=3), st.integers(0, 3))
def test_damaged_body_is_read_as_the_standard_parser_reads_it(pairs, at, bytes_in, cut):
    whole = json.dumps(dict(pairs)).encode()
    body = whole[:at] + bytes_in + whole[at + cut :]
    ours, theirs = outcome(body), expected(body)
    # msgspec does not look at the UTF-8 of strings that nobody asked for; the engine does.
    if theirs != "malformed_request" or _is_utf8(body):
        assert ours == theirs


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True
