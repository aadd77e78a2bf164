"""What a worker is sent instead of the client's own body: its own name for the model. Pure."""

import json

from rbee.core.routing import Route
from rbee.gateway.asked import Asked
from rbee.gateway.respelling import respell


def body_for(route: Route, wish: Asked, body: bytes) -> bytes:
    """*body* as that worker's engine understands it. Raises MalformedRequest for one that cannot be changed."""
    if not route.served or wish.model in route.served:
        return body
    return respell(body, {"model": json.dumps(route.served[0]).encode()})
