"""Which worker has the beginning of this request in its prompt cache, since it served the same conversation before.

A request's beginning is a chain of links, one a message or a block of its text, each standing for all up to it: two
requests with the same link begin with the same bytes. Mutable, but pure.
"""

from collections import OrderedDict
from collections.abc import Container, Sequence
from itertools import islice
from typing import Final, Protocol

from rbee.core.routing import Route

MAX_ENTRIES: Final = 16_384
"""Links that are remembered, some 3 MiB."""

MAX_LINKS: Final = 512
"""Of one request: what comes after tells no conversation from another."""

MAX_LEAD: Final = 0.5
"""How much more of its slots a worker may have in use than the least loaded one, and still be preferred."""

FIRST_BYTES: Final = 1024
LAST_BYTES: Final = 256
"""Of a long message these count, and its length: an image of 20 MB costs no more than half a page of text."""

BLOCK: Final = 256
"""Bytes of a text's first links; later ones are as long as an eighth of what is before them."""

_WHOLE: Final = FIRST_BYTES + LAST_BYTES


class Piece(Protocol):
    """Bytes, or a view of some."""

    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...


def chain(seed: int, pieces: Sequence[Piece], after: int = 0) -> list[int]:
    """The links of a conversation that starts with *pieces*, one a message, the first *after* of them left out."""
    links = []
    link = seed
    for piece in pieces[:MAX_LINKS]:
        # A call of digest for each would double the time that this takes.
        link = hash((link, bytes(piece) if len(piece) <= _WHOLE else digest(piece)))
        links.append(link)
    return links[after:]


def text_chain(seed: int, text: memoryview) -> list[int]:
    """The links of a text, whole blocks only, and none that stands for less than half of it.

    Many prompts begin with the same instructions: what is the same in less than half says little of a conversation.
    """
    links: list[int] = []
    link, start = seed, 0
    for _ in range(MAX_LINKS):
        end = start + max(BLOCK, start // 8)
        if end > len(text):
            break
        link, start = hash((link, digest(text[start:end]))), end
        if 2 * end >= len(text):
            links.append(link)
    return links


def digest(piece: Piece) -> int:
    """Python's own hash of bytes, keyed anew in each process: nobody outside can make two pieces equal."""
    view = memoryview(piece)
    if len(view) <= _WHOLE:
        return hash(bytes(view))
    return hash((len(view), bytes(view[:FIRST_BYTES]), bytes(view[-LAST_BYTES:])))


class PrefixBook:
    """Who served a link last; the links that nobody asked about for longest are forgotten."""

    def __init__(self, limit: int = MAX_ENTRIES) -> None:
        self._limit = limit
        self._workers: OrderedDict[int, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._workers)

    def find(self, links: Sequence[int], workers: Container[str]) -> tuple[str | None, int]:
        """The one of *workers* that served the longest known beginning, and the place of that link."""
        known = self._workers.get
        for place in range(len(links) - 1, -1, -1):
            worker_id = known(links[place])
            if worker_id in workers:
                return worker_id, place
        return None, 0

    def remember(self, links: Sequence[int], worker_id: str) -> None:
        for link in links:
            self._workers[link] = worker_id
            self._workers.move_to_end(link)
        excess = len(self._workers) - self._limit
        if excess > 0:
            for link in list(islice(self._workers, excess)):
                del self._workers[link]


def choose(book: PrefixBook, links: Sequence[int], free: list[Route], excluding: str | None = None) -> Route:
    """The worker of *free* (one at least) for a request with these *links*, and *book* knows of it.

    The one that served its longest known beginning, unless it is ``MAX_LEAD`` busier than the least loaded one; else
    that, of equal ones the least used: conversations spread over all caches. *excluding*: as for ``least_loaded``.
    """
    others = free if excluding is None else [route for route in free if route.worker_id != excluding] or free
    # Loops and no keys: this is done for each request of a model with several workers.
    route, lightest = others[0], _burden(others[0])
    for other in others[1:]:
        burden = _burden(other)
        if burden < lightest:
            route, lightest = other, burden
    most = lightest[0] + MAX_LEAD
    near = {other.worker_id: other for other in others if other.in_flight / other.slots <= most}
    known, place = book.find(links, near)
    if known is not None:
        route = near[known]
    # What is before the known link is never asked for again by who goes on from here.
    book.remember(links[place:], route.worker_id)
    return route


def _burden(route: Route) -> tuple[float, int, int]:
    return route.in_flight / route.slots, route.in_flight, route.activity.requests
