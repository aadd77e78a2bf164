"""What a worker is sent instead of the client's own body: its own name for the model, and a stream where it is to be
folded. Pure."""

import json
from typing import NamedTuple

from rbee.core.routing import Route
from rbee.gateway.asked import Asked
from rbee.gateway.folding import Folding, fold_for, values_for
from rbee.gateway.respelling import respell


class Outgoing(NamedTuple):
    """``folding`` is what the answer goes through; None: it passes as it comes."""

    body: bytes
    folding: Folding | None = None


def for_worker(route: Route, path: bytes, wish: Asked, body: bytes) -> Outgoing:
    """*body* as that worker's engine is to get it. Raises MalformedRequest for one that cannot be changed."""
    if not route.folds and (not route.served or wish.model in route.served):
        return Outgoing(body)
    values: dict[str, bytes] = {}
    if route.served and wish.model not in route.served:
        values["model"] = json.dumps(route.served[0]).encode()
    folding = fold_for(path, body) if route.folds and not wish.stream else None
    if folding is not None:
        values |= values_for(path)
    return Outgoing(respell(body, values) if values else body, folding)
