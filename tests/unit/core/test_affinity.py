from hypothesis import given
from hypothesis import strategies as st

from rbee.core.affinity import BLOCK, MAX_LINKS, PrefixBook, chain, choose, text_chain
from rbee.core.routing import Route, Standing


def workers(*loads, slots=4):
    made = [Route(f"w-{n}", "m", None, Standing.READY, slots=slots) for n in range(1, len(loads) + 1)]
    for route, load in zip(made, loads, strict=True):
        route.in_flight = load
    return made


def ask(book, links, routes, **more):
    return choose(book, links, routes, **more).worker_id


def test_conversation_goes_on_where_it_was():
    book = PrefixBook()
    one, other = workers(0, 0)
    assert ask(book, chain(0, [b"u1"]), [other]) == "w-2"
    one.in_flight = 0
    other.in_flight = 2
    assert ask(book, chain(0, [b"u1", b"a1", b"u2"]), [one, other]) == "w-2"


def test_longest_known_beginning_decides():
    book = PrefixBook()
    book.remember(chain(0, [b"u1"]), "w-1")
    book.remember(chain(0, [b"u1", b"a1", b"u2"])[1:], "w-2")
    assert ask(book, chain(0, [b"u1", b"a1", b"u2", b"a2", b"u3"]), workers(0, 0)) == "w-2"
    assert ask(book, chain(0, [b"u1", b"x", b"u2"]), workers(0, 0)) == "w-1"


def test_another_seed_or_another_order_is_another_conversation():
    assert not set(chain(0, [b"a", b"b"])) & set(chain(1, [b"a", b"b"]))
    assert not set(chain(0, [b"a", b"b"])) & set(chain(0, [b"b", b"a"]))
    assert not set(chain(0, [b"ab", b"c"])) & set(chain(0, [b"a", b"bc"]))


def test_worker_much_busier_than_the_least_loaded_one_is_not_waited_for():
    book = PrefixBook()
    links = chain(0, [b"u1"])
    book.remember(links, "w-1")
    assert ask(book, links, workers(2, 0)) == "w-1"
    book.remember(links, "w-1")
    assert ask(book, links, workers(3, 0)) == "w-2"
    assert ask(book, links, workers(0, 0)) == "w-2"


def test_worker_that_is_gone_or_full_is_passed_over_for_the_next_longest():
    book = PrefixBook()
    book.remember(chain(0, [b"u1", b"a1", b"u2"])[1:], "gone")
    book.remember(chain(0, [b"u1"]), "w-2")
    assert ask(book, chain(0, [b"u1", b"a1", b"u2"]), workers(0, 0)) == "w-2"


def test_worker_that_has_just_failed_it_is_taken_only_if_it_is_alone():
    book = PrefixBook()
    links = chain(0, [b"u1"])
    book.remember(links, "w-1")
    assert ask(book, links, workers(0, 0), excluding="w-1") == "w-2"
    book.remember(links, "w-1")
    assert ask(book, links, workers(0), excluding="w-1") == "w-1"


def test_new_conversations_go_to_the_least_loaded_and_then_to_the_least_used():
    book = PrefixBook()
    routes = workers(1, 0)
    assert ask(book, chain(0, [b"u1"]), routes) == "w-2"
    routes = workers(0, 0)
    routes[0].activity.requests = 5
    assert ask(book, chain(0, [b"u2"]), routes) == "w-2"


def test_what_only_the_left_out_messages_share_brings_nobody_together():
    one, other = chain(0, [b"system", b"u1"], after=1), chain(0, [b"system", b"u2"], after=1)
    assert len(one) == len(other) == 1
    assert not set(one) & set(other)


def test_long_message_counts_by_its_length_and_its_ends():
    begins, ends = b"a" * 5000, b"z" * 5000
    first = chain(0, [begins + b"1" + ends])
    assert first == chain(0, [begins + b"2" + ends])
    assert first != chain(0, [begins + b"22" + ends])
    assert first != chain(0, [b"b" + begins[1:] + b"1" + ends])
    assert first != chain(0, [begins + b"1" + ends[1:] + b"y"])


def test_text_that_goes_on_shares_its_links_and_one_of_the_same_instructions_does_not():
    instructions = memoryview(b"i" * 2000)
    turn = bytes(instructions) + b"question one " * 200
    later = turn + b"answer " * 200
    assert set(text_chain(0, memoryview(turn))) & set(text_chain(0, memoryview(later)))
    other = bytes(instructions) + b"question two " * 200
    assert not set(text_chain(0, memoryview(turn))) & set(text_chain(0, memoryview(other)))


def test_links_of_a_long_text_are_few_and_those_of_a_short_one_none():
    assert text_chain(0, memoryview(b"x" * (BLOCK - 1))) == []
    assert len(text_chain(0, memoryview(b"x" * 1_000_000))) < 10
    assert len(chain(0, [b"x"] * 2000)) == MAX_LINKS


@given(st.integers(1, 20), st.lists(st.integers(0, 30), max_size=60))
def test_book_keeps_its_limit_and_what_was_remembered_last(limit, links):
    book = PrefixBook(limit)
    for link in links:
        book.remember([link], f"w-{link}")
    assert len(book) == min(limit, len(set(links)))
    newest = list(dict.fromkeys(reversed(links)))[:limit]
    for link in newest:
        assert book.find([link], {f"w-{link}"}) == (f"w-{link}", 0)
