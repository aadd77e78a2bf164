"""What must hold after every fault, read from outside: the public API, the event stream, and /proc.

STANDING are states: each must come to hold once a fault is over, and stay. ``judge_requests`` and ``judge_story`` are
about what has happened and can never be mended.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.clients import Outcome
from tests.chaos.machine import Mark, described
from tests.chaos.story import Story
from tests.hives import is_alive

MORE_DESCRIPTORS = 40
"""A hive that has settled may hold so many more than at its start: kept connections of clients and workers."""
MORE_THREADS = 48
"""anyio's pool of threads, which are kept, has 40 at most."""

WITH_PROCESS = frozenset({"starting", "loading", "idle", "busy", "draining", "stopping"})
_SERVING = frozenset({"idle", "busy"})
_SETTLED = _SERVING | {"failed"}
_CAUSE_WINDOW = 5.0
"""Seconds round a lost request in which its worker's end must stand in the event stream."""


@dataclass(frozen=True)
class View:
    """One look at everything, while no request is under way.

    ``claims``: bytes of host memory by worker id; ``reserved``: what of all of them is not taken yet.
    """

    hive_pid: int
    runner_pid: int
    workers: dict[str, dict[str, Any]]
    residents: tuple[str, ...]
    processes: dict[int, Mark]
    listeners: dict[int, list[int]]
    folders: set[str]
    rows: dict[str, int]
    in_flight: float
    queued: float
    illegal_events: float
    descriptors: int
    threads: int
    first_descriptors: int
    first_threads: int
    told_states: dict[str, str] = field(default_factory=dict)
    claims: dict[str, int] = field(default_factory=dict)
    reserved: int = 0


def every_process_belongs_to_a_listed_worker(view: View) -> Iterator[str]:
    for pid, (worker_id, incarnation) in view.processes.items():
        worker = view.workers.get(worker_id)
        if worker is None:
            yield f"{described(pid)} belongs to {worker_id or 'nobody'}, which is not listed"
        elif incarnation not in (None, worker["incarnation"]):
            yield f"{described(pid)} is incarnation {incarnation} of {worker_id}, now {worker['incarnation']}"
        elif worker["state"] not in WITH_PROCESS:
            yield f"{described(pid)} lives although {worker_id} is {worker['state']}"


def every_listed_worker_lives(view: View) -> Iterator[str]:
    for worker_id, worker in view.workers.items():
        if worker["state"] not in WITH_PROCESS:
            continue
        if worker["pid"] is None or not is_alive(worker["pid"]):
            yield f"{worker_id} is {worker['state']}, but its keeper (pid {worker['pid']}) does not live"
        elif worker["state"] in _SERVING and not (worker["engine_pid"] and is_alive(worker["engine_pid"])):
            yield f"{worker_id} is {worker['state']}, but its engine (pid {worker['engine_pid']}) does not live"


def every_port_has_an_owner(view: View) -> Iterator[str]:
    for port, holders in view.listeners.items():
        for pid in holders or [0]:
            if pid not in view.processes and pid != view.runner_pid:
                yield f"port {port} is held by {described(pid) if pid else 'a process that cannot be seen'}"


def every_folder_has_an_owner(view: View) -> Iterator[str]:
    for name in view.folders - set(view.workers):
        yield f"workers/{name} belongs to no listed worker"


def every_row_has_a_worker_and_every_worker_a_row(view: View) -> Iterator[str]:
    listed = {worker_id: worker["incarnation"] for worker_id, worker in view.workers.items() if not worker["external"]}
    if listed != view.rows:
        yield f"the database holds {view.rows}, listed are {listed}"


def nothing_is_in_flight(view: View) -> Iterator[str]:
    if view.in_flight or view.queued:
        yield f"{view.in_flight:g} requests in flight and {view.queued:g} queued, but no client waits"
    for worker_id, worker in view.workers.items():
        if worker["in_flight"]:
            yield f"{worker_id} counts {worker['in_flight']} requests in flight, but no client waits"


def no_event_was_illegal(view: View) -> Iterator[str]:
    if view.illegal_events:
        yield f"rbee_hive_illegal_events_total is {view.illegal_events:g}"


def the_hive_does_not_grow(view: View) -> Iterator[str]:
    if view.descriptors > view.first_descriptors + MORE_DESCRIPTORS:
        yield f"the hive holds {view.descriptors} descriptors, at first {view.first_descriptors}"
    if view.threads > view.first_threads + MORE_THREADS:
        yield f"the hive has {view.threads} threads, at first {view.first_threads}"


def every_resident_serves(view: View) -> Iterator[str]:
    for worker_id in view.residents:
        worker = view.workers.get(worker_id)
        if worker is None:
            yield f"{worker_id} is not listed any more"
        elif worker["state"] not in _SERVING:
            yield f"{worker_id} is {worker['state']}: {worker['message']}"


def nobody_is_on_the_way(view: View) -> Iterator[str]:
    for worker_id, worker in view.workers.items():
        if worker["state"] not in _SETTLED:
            yield f"{worker_id} is {worker['state']}: {worker['message']}"


def the_event_stream_tells_the_listed_states(view: View) -> Iterator[str]:
    for worker_id, worker in view.workers.items():
        state = "ready" if worker["state"] in _SERVING else worker["state"]
        told = view.told_states.get(worker_id) or state
        if told != state:
            yield f"{worker_id} is listed as {state}, the event stream says {told}"
    for worker_id, told in view.told_states.items():
        if worker_id not in view.workers and told != "gone":
            yield f"{worker_id} is not listed, the event stream says {told}"


def every_worker_of_the_hive_has_a_claim_and_nobody_else(view: View) -> Iterator[str]:
    for worker_id, worker in view.workers.items():
        if worker["state"] in WITH_PROCESS | {"backoff"} and not worker["external"] and not view.claims.get(worker_id):
            yield f"{worker_id} is {worker['state']}, but has no claim"
    for worker_id, claimed in view.claims.items():
        if worker_id not in view.workers:
            yield f"{worker_id} is not listed, but has a claim to {claimed} bytes"
    if view.reserved and not view.workers:
        yield f"{view.reserved} bytes are reserved, but no worker is listed"


Standing = Callable[[View], Iterator[str]]
STANDING: tuple[Standing, ...] = (
    every_resident_serves,
    nobody_is_on_the_way,
    every_process_belongs_to_a_listed_worker,
    every_listed_worker_lives,
    every_port_has_an_owner,
    every_folder_has_an_owner,
    every_row_has_a_worker_and_every_worker_a_row,
    nothing_is_in_flight,
    no_event_was_illegal,
    the_hive_does_not_grow,
    the_event_stream_tells_the_listed_states,
    every_worker_of_the_hive_has_a_claim_and_nobody_else,
)


def broken(view: View) -> list[str]:
    """What does not hold now, each with the invariant's name."""
    return [f"{invariant.__name__}: {what}" for invariant in STANDING for what in invariant(view)]


@dataclass(frozen=True)
class Judgement:
    """``lost`` ended with a clear error that has a cause; ``failed`` must be empty."""

    answered: int
    lost: list[Outcome]
    failed: list[str]


def judge_requests(outcomes: Iterable[Outcome], story: Story, gaps: list[tuple[float, float]]) -> Judgement:
    """*gaps*: the times in which no hive ran, or one was ending; requests may be refused or cut in them."""
    answered, lost, failed = 0, [], []
    for outcome in outcomes:
        if outcome.kind in ("answered", "left"):
            model = story.models.get(outcome.worker_id)
            if model not in (None, outcome.wish.model):
                failed.append(f"answered by {outcome.worker_id}, which runs {model}: {outcome}")
            answered += 1
        elif _has_a_cause(outcome, story, gaps):
            lost.append(outcome)
        else:
            failed.append(str(outcome))
    return Judgement(answered, lost, failed)


def _has_a_cause(outcome: Outcome, story: Story, gaps: list[tuple[float, float]]) -> bool:
    """Whether the hive's own end, or that of the worker, explains how a request failed."""
    if any(outcome.started <= end and begin <= outcome.ended for begin, end in gaps):
        return outcome.kind in ("refused", "broken_off", "cut")
    since, until = outcome.started - _CAUSE_WINDOW, outcome.ended + _CAUSE_WINDOW
    if not story.is_upset(outcome.wish.model, since, until):
        return False
    # Of an answer that is no stream, a part may have been sent: nothing but the end of the connection can say so then.
    return outcome.kind in ("refused", "broken_off") or (outcome.kind == "cut" and not outcome.wish.stream)


def judge_story(story: Story) -> list[str]:
    told, story.complaints = story.complaints, []
    return told
