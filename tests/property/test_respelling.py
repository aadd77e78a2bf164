"""A respelled body says what it said before, but for the one value; its other bytes are the same."""

import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

from rbee.gateway.respelling import respell

_texts = st.text(max_size=6) | st.sampled_from(['"model":"m"', '\\"model":', "model", '{"model":"m"}', "\\"])
_keys = st.sampled_from(["model", "stream", "messages", "mode", 'x"model']) | _texts
_leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _texts
_values = st.recursive(
    _leaves | st.just("m"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=8,
)
_models = st.sampled_from(["m", "", 'a"b', "\u00e9", "x" * 40])
_pairs = st.lists(st.tuples(_keys, _values), max_size=5)
_spaces = st.sampled_from(["", " ", "\n\t", "\r\n"])


def body_of(pairs, space, *, ascii_only):
    """JSON of these pairs, equal keys included."""
    join = f"{space},{space}".join
    items = [
        f"{json.dumps(key, ensure_ascii=ascii_only)}{space}:{space}{json.dumps(value, ensure_ascii=ascii_only)}"
        for key, value in pairs
    ]
    return f"{space}{{{space}{join(items)}{space}}}{space}".encode()


@settings(max_examples=500, deadline=None)
@given(_pairs, _models, _pairs, _models, _spaces, st.booleans())
@example([], "m", [("x", {"model": "m"})], "n", "", True)
@example([("x", {"model": "m"})], "m", [], "n", "", True)
@example([('x\\"model', "m")], "m", [], "n", "", True)
def test_only_the_value_of_model_changes(before, model, after, new, space, ascii_only):
    pairs = [*before, ("model", model), *after]
    body = body_of(pairs, space, ascii_only=ascii_only)
    value = json.dumps(new).encode()
    changed = respell(body, {"model": value})
    assert json.loads(changed) == json.loads(body) | {"model": new}
    if [key for key, _ in pairs].count("model") == 1:
        spelled = body_of([*before, ("model", "\0"), *after], space, ascii_only=ascii_only)
        head, _, tail = spelled.partition(b'"\\u0000"')
        if tail.count(b'"\\u0000"') == 0:
            assert changed == head + value + tail


@settings(max_examples=200, deadline=None)
@given(_pairs, _spaces)
def test_a_key_that_is_missing_is_added(pairs, space):
    pairs = [("messages", []), *((key, value) for key, value in pairs if key != "stream")]
    body = body_of(pairs, space, ascii_only=True)
    changed = respell(body, {"stream": b"true"})
    assert json.loads(changed) == json.loads(body) | {"stream": True}


@settings(max_examples=200, deadline=None)
@given(_pairs, _models)
def test_several_values_change_at_once(pairs, model):
    body = body_of([*pairs, ("model", model), ("stream", False)], " ", ascii_only=False)
    options = {"include_usage": True}
    changed = respell(body, {"model": b'"n"', "stream": b"true", "stream_options": json.dumps(options).encode()})
    assert json.loads(changed) == json.loads(body) | {"model": "n", "stream": True, "stream_options": options}
