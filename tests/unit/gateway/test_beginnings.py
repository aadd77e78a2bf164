import json

import pytest

from rbee.gateway.beginnings import links


def of(**body):
    return links("m", json.dumps({"model": "m", **body}).encode())


SYSTEM = {"role": "system", "content": "Be helpful. " * 100}
DEVELOPER = {"content": "Be brief. " * 100, "role": "developer"}


def said(*texts):
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def test_each_turn_of_a_conversation_continues_the_chain_of_the_one_before():
    one, two = of(messages=said("a", "b", "c")), of(messages=said("a", "b", "c", "d", "e"))
    assert len(one) == 3
    assert two[:3] == one
    assert len(two) == 5


@pytest.mark.parametrize("instructions", [[SYSTEM], [DEVELOPER], [SYSTEM, DEVELOPER]])
def test_instructions_are_no_link_and_make_another_chain(instructions):
    found = of(messages=[*instructions, *said("a")])
    assert len(found) == 1
    assert found != of(messages=said("a"))


def test_message_that_speaks_of_a_system_is_a_link():
    assert len(of(messages=said('the "system" is down', 'what "system"?'))) == 2


def test_anthropics_system_and_responses_instructions_seed_the_chain():
    plain = of(messages=said("a"))
    assert of(messages=said("a"), system="x") != plain
    assert of(messages=said("a"), system=[{"type": "text", "text": "x"}]) != of(messages=said("a"), system="x")
    assert of(input=said("a"), instructions="x") != of(input=said("a"))
    assert of(input=said("a")) == plain


def test_same_conversation_with_another_model_is_another_one():
    body = json.dumps({"messages": said("a")}).encode()
    assert links("m", body) != links("n", body)


def test_prompt_that_goes_on_continues_the_chain():
    prompt = "Once upon a time. " * 100
    assert set(of(prompt=prompt)) & set(of(prompt=prompt + "It ended. " * 50))
    assert set(of(input=prompt)) & set(of(input=prompt + "It ended. " * 50))
    tokens = [*range(500)]
    assert set(of(prompt=tokens)) & set(of(prompt=[*tokens, 1, 2, 3]))


@pytest.mark.parametrize(
    "body",
    [{}, {"messages": []}, {"messages": "a"}, {"messages": None}, {"prompt": "a"}, {"prompt": 3}, {"input": {}},
     {"input": []}, {"messages": {"a": 1}}],
)  # fmt: skip
def test_what_has_no_beginning_has_no_links(body):
    assert of(**body) == []


def test_what_only_the_standard_parser_reads_has_no_links():
    assert links("m", b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}'[:-1]) == []


def test_last_of_two_equal_keys_counts():
    assert links("m", b'{"messages":[1],"messages":[2,3]}') == links("m", b'{"messages":[2,3]}')
