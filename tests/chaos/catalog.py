"""The list of all faults: each is a function that injects one and waits for what is promised of it alone."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.stage import Stage

Inject = Callable[[Stage], None]


@dataclass(frozen=True)
class Fault:
    """``weight``: how many of it are in one deck of faults; ``needs``: what the stage must have, see main.py."""

    name: str
    attacks: str
    inject: Inject
    weight: int
    needs: frozenset[str]


FAULTS: dict[str, Fault] = {}


def fault(name: str, weight: int = 2, needs: tuple[str, ...] = ()) -> Callable[[Inject], Inject]:
    """Put a function into the list; its docstring names the invariant that it attacks."""

    def enter(inject: Inject) -> Inject:
        assert inject.__doc__, "a fault names the invariant that it attacks"
        FAULTS[name] = Fault(name, inject.__doc__.split("\n")[0], inject, weight, frozenset(needs))
        return inject

    return enter
