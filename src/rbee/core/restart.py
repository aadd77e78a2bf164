"""When a worker that ended is started again: backoff with jitter, and a circuit breaker per model and engine settings.

Pure: times are seconds on the hive's monotonic clock and come in as arguments, chance comes in as a number.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from rbee.core.events import GiveUp, OpenCircuit, RestartAfter, RestartDecision
from rbee.core.exits import Exit, ExitReason
from rbee.core.worker import Restart, WorkerSpec


class CircuitState(StrEnum):
    CLOSED = "closed"
    """Failures are followed by restarts."""
    OPEN = "open"
    """It failed too often: nothing of the kind is started."""
    HALF_OPEN = "half_open"
    """One try is due or under way; what becomes of it decides."""


@dataclass(frozen=True, slots=True)
class RestartRules:
    """``[restart]`` of the settings, in seconds; ``jitter`` is a fraction of the delay."""

    base_delay: float = 1.0
    max_delay: float = 60.0
    jitter: float = 0.2
    max_failures: int = 5
    period: float = 300.0
    open_for: float = 60.0
    stable_after: float = 300.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A worker's end that nobody asked for. ``ready_since`` is None for one that was never ready."""

    worker_id: str
    exit: Exit
    ready_since: float | None = None


@dataclass(frozen=True, slots=True)
class Circuit:
    """What is known of the failures of one kind of worker.

    ``failures``: when and whose, those of the last period. ``in_a_row``: by worker, those without a stable time
    between, however slow. ``probe_at``: None while it is closed, else when the one try is due. ``trying``: the worker
    that makes it.
    """

    model_ref: str
    failures: tuple[tuple[float, str], ...] = ()
    in_a_row: Mapping[str, int] = field(default_factory=dict)
    probe_at: float | None = None
    trying: str | None = None
    ready_since: float | None = None
    last: Failure | None = None

    @property
    def count(self) -> int:
        """The failures that speak against it: of all in the period, or of one worker in a row, whichever are more."""
        return max(len(self.failures), max(self.in_a_row.values(), default=0))

    def count_of(self, worker_id: str) -> int:
        """The failures of one worker, in the period or in a row, whichever are more."""
        own = sum(whose == worker_id for _, whose in self.failures)
        return max(own, self.in_a_row.get(worker_id, 0))


_EXPONENT_LIMIT: Final = 62
"""2**62 s is beyond any max_delay; a larger exponent would only overflow a float."""


def key_of(spec: WorkerSpec) -> str:
    """Names the circuit that a worker belongs to: 12 hexadecimal digits, the same for the same model and settings."""
    kind = [spec.model_ref, spec.backend, spec.device, spec.engine, spec.engine_args, spec.ctx_size, spec.slots]
    return hashlib.sha256(json.dumps(kind).encode()).hexdigest()[:12]


def delay_after(rules: RestartRules, count: int, spread: float) -> float:
    """Seconds before the restart after the *count*-th failure (from 1); *spread* in [-1, 1] places it in the jitter.

    Exponential backoff, capped, then jittered, so that the workers of one cause do not come back as one.
    """
    doubled = rules.base_delay * 2.0 ** min(count - 1, _EXPONENT_LIMIT)
    return min(rules.max_delay, doubled) * (1.0 + rules.jitter * spread)


def state_of(circuit: Circuit, now: float) -> CircuitState:
    if circuit.probe_at is None:
        return CircuitState.CLOSED
    if circuit.trying is not None or now >= circuit.probe_at:
        return CircuitState.HALF_OPEN
    return CircuitState.OPEN


def settled(circuit: Circuit, rules: RestartRules, now: float) -> Circuit:
    """The circuit as *now* shows it: closed again where its try has run stably, old failures forgotten."""
    since = circuit.ready_since
    if circuit.trying is not None and since is not None and now - since >= rules.stable_after:
        return Circuit(circuit.model_ref, last=circuit.last)
    if circuit.probe_at is not None and now >= circuit.probe_at and circuit.trying is None and not circuit.in_a_row:
        # Nobody is there any more to whom it means something.
        circuit = replace(circuit, probe_at=None)
    recent = tuple((at, whose) for at, whose in circuit.failures if now - at < rules.period)
    return circuit if recent == circuit.failures else replace(circuit, failures=recent)


def failed(circuit: Circuit, rules: RestartRules, failure: Failure, now: float) -> Circuit:
    """The circuit after one more *failure*. A stable time before it means that it is the first of a new row."""
    circuit, worker_id = settled(circuit, rules, now), failure.worker_id
    was_stable = failure.ready_since is not None and now - failure.ready_since >= rules.stable_after
    recent, row = circuit.failures, circuit.in_a_row.get(worker_id, 0) + 1
    if was_stable:
        recent, row = tuple((at, whose) for at, whose in recent if whose != worker_id), 1
    counted = replace(
        circuit,
        failures=(*recent, (now, worker_id))[-rules.max_failures :],
        in_a_row={**circuit.in_a_row, worker_id: row},
        last=failure,
    )
    if circuit.probe_at is None:
        return _open(counted, rules, now) if counted.count >= rules.max_failures else counted
    if circuit.trying in (None, worker_id):
        return _open(counted, rules, now)
    return counted


def _open(circuit: Circuit, rules: RestartRules, now: float) -> Circuit:
    return replace(circuit, probe_at=now + rules.open_for, trying=None, ready_since=None)


def tried_by(circuit: Circuit, worker_id: str) -> Circuit:
    """The circuit while *worker_id* makes the one try."""
    return replace(circuit, trying=worker_id, ready_since=None)


def ready(circuit: Circuit, worker_id: str, now: float) -> Circuit:
    """*worker_id* is ready; it matters where that is the one that tries."""
    return replace(circuit, ready_since=now) if circuit.trying == worker_id else circuit


def gone(circuit: Circuit, worker_id: str) -> Circuit:
    """*worker_id* was ended by somebody: if it was the one that tried, the next one may. Its failures still count."""
    rows = {whose: count for whose, count in circuit.in_a_row.items() if whose != worker_id}
    if circuit.trying == worker_id:
        return replace(circuit, in_a_row=rows, trying=None, ready_since=None)
    return replace(circuit, in_a_row=rows)


def wait_to_start(circuit: Circuit, rules: RestartRules, worker_id: str, now: float) -> float | None:
    """Seconds until *worker_id* may ask again whether it may start; None: it may now."""
    match state_of(circuit, now):
        case CircuitState.CLOSED:
            return None
        case CircuitState.OPEN:
            assert circuit.probe_at is not None, "an open circuit has a time for its next try"
            return circuit.probe_at - now
        case CircuitState.HALF_OPEN:
            if circuit.trying in (None, worker_id):
                return None
            if circuit.ready_since is not None:
                return max(0.0, circuit.ready_since + rules.stable_after - now)
            return rules.open_for


def is_failure(policy: Restart, exit_: Exit) -> bool:
    """Whether an end that nobody asked for counts: a clean one does for a worker that shall always run."""
    return policy is Restart.ALWAYS or exit_.reason is not ExitReason.STOPPED


def why(circuit: Circuit, rules: RestartRules) -> str:
    """'3 failures in 300 s', or, for slow ones, '5 failures in a row without 300 s of stable running between'."""
    if len(circuit.failures) >= circuit.count:
        return f"{_failures(len(circuit.failures))} in {rules.period:g} s"
    return f"{_failures(circuit.count)} in a row without {rules.stable_after:g} s of stable running between"


def _failures(count: int) -> str:
    return f"{count} failure{'' if count == 1 else 's'}"


def decide(
    policy: Restart, rules: RestartRules, circuit: Circuit, failure: Failure, now: float, spread: float
) -> RestartDecision:
    """What becomes of a worker after *failure*, which *circuit* has counted already where it is one."""
    if policy is Restart.NEVER:
        return GiveUp("Its restart policy is never.")
    if not is_failure(policy, failure.exit):
        return GiveUp("Its restart policy is on_failure, and a clean end is none.")
    if circuit.probe_at is not None:
        delay = wait_to_start(circuit, rules, "", now)
        return OpenCircuit(rules.open_for if delay is None else delay, f"Its circuit is open ({why(circuit, rules)})")
    own = circuit.count_of(failure.worker_id)
    return RestartAfter(delay_after(rules, own, spread), _attempt(circuit, rules, failure.worker_id, own))


def _attempt(circuit: Circuit, rules: RestartRules, worker_id: str, own: int) -> str:
    if circuit.in_a_row.get(worker_id, 0) >= own > len(circuit.failures):
        return f"attempt {own} of {rules.max_failures} without {rules.stable_after:g} s of stable running between"
    if len(circuit.failures) == own:
        return f"attempt {own} of {rules.max_failures} in {rules.period:g} s"
    among = f"failure {len(circuit.failures)} of {rules.max_failures} in {rules.period:g} s among workers of its kind"
    return f"attempt {own}, {among}"


def resume(policy: Restart, rules: RestartRules, spread: float) -> RestartDecision:
    """What becomes of a worker that ended while no hive ran, for no fault that anybody knows of.

    Spread over the first delay, so that all the workers of a machine that was started anew do not load at once.
    """
    if policy is Restart.NEVER:
        return GiveUp("Its restart policy is never.")
    return RestartAfter(delay_after(rules, 1, spread), "not counted as a failure")


def postpone(policy: Restart, rules: RestartRules, refusals: int, spread: float) -> RestartDecision:
    """What becomes of a worker whose process could not be started, *refusals* times in a row: not its own fault."""
    if policy is Restart.NEVER:
        return GiveUp("Its restart policy is never.")
    return RestartAfter(delay_after(rules, refusals, spread), "not counted as a failure")
