"""The circuits of this hive: one a kind of worker, kept in memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import anyio
import structlog

from rbee.core import restart
from rbee.core.errors import CircuitNotFound, CircuitOpen
from rbee.core.events import CircuitOpened, GiveUp, OpenCircuit, RestartDecision
from rbee.core.exits import Exit, ExitReason
from rbee.core.restart import Circuit, CircuitState, Failure, RestartRules
from rbee.core.worker import Worker, WorkerSpec, final_exit

log = structlog.get_logger(__name__)

MIN_DELAY: Final = 0.1
"""Seconds; nobody asks again at once, should the clock stand exactly on the border."""

MAX_CIRCUITS: Final = 1000
"""Kinds of workers that are remembered; the oldest closed one is forgotten for a new one."""


@dataclass(frozen=True, slots=True)
class CircuitReport:
    """One circuit as people see it. ``probe_at``: when the next try is due, None where it is closed or under way."""

    key: str
    model_ref: str
    state: CircuitState
    failures: int
    last_worker_id: str | None
    last_exit: Exit | None
    last_log_lines: Sequence[str]
    trying: str | None
    probe_at: datetime | None


class Circuits:
    """*spread* gives a chance number in [-1, 1] for each delay."""

    def __init__(self, rules: RestartRules, wall_clock: Callable[[], datetime], spread: Callable[[], float]) -> None:
        self._rules = rules
        self._wall_clock = wall_clock
        self._spread = spread
        self._circuits: dict[str, Circuit] = {}
        self._log_lines: dict[str, Sequence[str]] = {}
        self.activations = 0
        self.on_change: Callable[[str], None] = lambda _key: None
        """Called with the key of a circuit that has opened, or whose one try is to be made by somebody else."""

    def check(self, spec: WorkerSpec) -> None:
        """Raise CircuitOpen where a worker like *spec* must not be started now."""
        key = restart.key_of(spec)
        circuit, now = self._settled(key, spec), anyio.current_time()
        delay = restart.wait_to_start(circuit, self._rules, spec.worker_id, now)
        if delay is None:
            return
        report = self._report(key, circuit, now)
        exit_ = report.last_exit or Exit(ExitReason.CRASHED)
        due = f"The next try is at {_clock(report.probe_at)}" if report.probe_at else f"{report.trying} tries it now"
        raise CircuitOpen(
            f"{spec.model_ref} with these settings is not started: {restart.why(circuit, self._rules)}. "
            f"At last: {exit_.sentence()} {due}; POST /v1/circuits/{key}/reset allows it at once.",
            retry_after=delay,
            key=key,
            state=str(report.state),
            reason=exit_.message or exit_.how(),
            exit_reason=str(exit_.reason),
            exit_code=exit_.code,
            signal=exit_.signal_number,
            last_log_lines=list(report.last_log_lines),
            probe_at=report.probe_at.isoformat() if report.probe_at else None,
        )

    def begin(self, spec: WorkerSpec) -> None:
        """A worker is started: where the circuit is not closed, this is the one try."""
        key = restart.key_of(spec)
        circuit = self._settled(key, spec)
        if circuit.probe_at is not None:
            log.info("circuit_half_open", circuit=key, model_ref=spec.model_ref, worker_id=spec.worker_id)
            self._circuits[key] = restart.tried_by(circuit, spec.worker_id)

    def blocked(self, spec: WorkerSpec) -> CircuitOpened | None:
        """Why a worker that waits for its restart has to wait on, and for how long; None: it may start."""
        circuit = self._settled(restart.key_of(spec), spec)
        delay = restart.wait_to_start(circuit, self._rules, spec.worker_id, anyio.current_time())
        if delay is None:
            return None
        state = f"Its circuit is open ({restart.why(circuit, self._rules)})"
        if circuit.trying is not None:
            return CircuitOpened(f"{state}; worker '{circuit.trying}' makes the one try.", max(delay, MIN_DELAY))
        at = _clock(self._wall_clock() + timedelta(seconds=delay))
        return CircuitOpened(f"{state}; the next try is at {at}.", max(delay, MIN_DELAY))

    def resume(self, spec: WorkerSpec) -> RestartDecision:
        return restart.resume(spec.restart, self._rules, self._spread())

    def postpone(self, spec: WorkerSpec, refusals: int) -> RestartDecision:
        decision = restart.postpone(spec.restart, self._rules, refusals, self._spread())
        if isinstance(decision, GiveUp):
            self.forget_worker(spec)
        return decision

    def decide(self, worker: Worker, exit_: Exit) -> RestartDecision:
        """Count the end of a worker that nobody asked for, and say what becomes of it."""
        spec, now = worker.spec, anyio.current_time()
        key, exit_ = restart.key_of(spec), final_exit(worker, exit_)
        before = circuit = self._settled(key, spec)
        failure = Failure(spec.worker_id, exit_, worker.ready_since)
        if restart.is_failure(spec.restart, exit_):
            circuit = restart.failed(before, self._rules, failure, now)
            self._keep(key, circuit)
        else:
            self.forget_worker(spec)
        if circuit.probe_at is not None and circuit.probe_at != before.probe_at:
            self.activations += 1
            log.warning("circuit_open", circuit=key, model_ref=spec.model_ref, why=restart.why(circuit, self._rules))
            self.on_change(key)
        decision = restart.decide(spec.restart, self._rules, circuit, failure, now, self._spread())
        if isinstance(decision, OpenCircuit):
            at = _clock(self._wall_clock() + timedelta(seconds=decision.delay))
            return replace(decision, reason=f"{decision.reason}; the next try is at {at}.")
        return decision

    def note_log(self, spec: WorkerSpec, lines: Sequence[str]) -> None:
        """Keep the last lines of the log of a worker that has failed."""
        key = restart.key_of(spec)
        if key in self._circuits:
            self._log_lines[key] = lines

    def became_ready(self, spec: WorkerSpec) -> None:
        self._change(spec, lambda circuit: restart.ready(circuit, spec.worker_id, anyio.current_time()))

    def forget_worker(self, spec: WorkerSpec) -> None:
        """It was ended by somebody, or is started no more: another one may make the try that it was to make."""
        key = restart.key_of(spec)
        was_trying = key in self._circuits and self._circuits[key].trying == spec.worker_id
        self._change(spec, lambda circuit: restart.gone(circuit, spec.worker_id))
        if was_trying:
            self.on_change(key)

    def reset(self, key: str) -> None:
        """Close a circuit and forget its failures. Raises CircuitNotFound."""
        self.report(key)
        log.info("circuit_reset", circuit=key)
        del self._circuits[key]
        self._log_lines.pop(key, None)

    def report(self, key: str) -> CircuitReport:
        """Raises CircuitNotFound."""
        circuit = self._circuits.get(key)
        if circuit is None:
            raise CircuitNotFound(
                f"There is no circuit '{key[:40]}': nothing of that kind has failed. See GET /v1/circuits."
            )
        now = anyio.current_time()
        return self._report(key, restart.settled(circuit, self._rules, now), now)

    def report_of(self, spec: WorkerSpec) -> CircuitReport:
        key, now = restart.key_of(spec), anyio.current_time()
        return self._report(key, self._settled(key, spec), now)

    def open_by_model(self) -> dict[str, int]:
        """By model reference, 1 where one of its circuits is not closed, else 0."""
        found: dict[str, int] = {}
        for report in self:
            is_open = int(report.state is not CircuitState.CLOSED)
            found[report.model_ref] = max(is_open, found.get(report.model_ref, 0))
        return found

    def __iter__(self) -> Iterator[CircuitReport]:
        return iter([self.report(key) for key in self._circuits])

    def _report(self, key: str, circuit: Circuit, now: float) -> CircuitReport:
        due = circuit.probe_at is not None and circuit.trying is None
        at = self._wall_clock() + timedelta(seconds=max(0.0, (circuit.probe_at or now) - now)) if due else None
        return CircuitReport(
            key=key,
            model_ref=circuit.model_ref,
            state=restart.state_of(circuit, now),
            failures=circuit.count,
            last_worker_id=circuit.last.worker_id if circuit.last else None,
            last_exit=circuit.last.exit if circuit.last else None,
            last_log_lines=self._log_lines.get(key, ()),
            trying=circuit.trying,
            probe_at=at,
        )

    def _settled(self, key: str, spec: WorkerSpec) -> Circuit:
        known = self._circuits.get(key, Circuit(spec.model_ref))
        return restart.settled(known, self._rules, anyio.current_time())

    def _change(self, spec: WorkerSpec, change: Callable[[Circuit], Circuit]) -> None:
        key = restart.key_of(spec)
        if key in self._circuits:
            self._circuits[key] = change(self._settled(key, spec))

    def _keep(self, key: str, circuit: Circuit) -> None:
        # To the end, so that the first closed one is the one that failed longest ago.
        self._circuits.pop(key, None)
        self._circuits[key] = circuit
        if len(self._circuits) > MAX_CIRCUITS:
            oldest = next((k for k, c in self._circuits.items() if c.probe_at is None), key)
            del self._circuits[oldest]
            self._log_lines.pop(oldest, None)


def _clock(at: datetime | None) -> str:
    return f"{at:%H:%M:%S} UTC" if at else "once it has been asked for"
