"""The thread that talks to the engine: it waits until it serves, samples it for each beat, and sees it drained."""

import threading
import time
from collections.abc import Callable
from typing import Final

from rbee.worker.engines.base import COUNTERS_TIMEOUT, HEALTH_TIMEOUT, Engine, Probe, Telemetry
from rbee.worker.events import Broken, EngineIdle, EngineReady, Event
from rbee.worker.processes import resident_bytes

_FASTEST_POLL: Final = 0.02
_SLOWEST_POLL: Final = 0.25
_POLLS_A_LOAD: Final = 40
"""A load is asked after at intervals of a fortieth of its length so far: it is seen to be over within 2.5 % of it."""

_DRAIN_POLL: Final = 0.05
_IDLE_SIGHTINGS: Final = 2
"""A slot is free when its last token is made, a moment before that token is sent."""

_SAMPLE_TIMEOUT: Final = HEALTH_TIMEOUT + 2 * COUNTERS_TIMEOUT + 0.5
"""The longest that a look at the slots and a sample can take; so much may a hung engine delay a beat."""


class Watcher:
    def __init__(self, engine: Engine, slots_total: int, post: Callable[[Event], None]) -> None:
        self._engine = engine
        self._slots_total = slots_total
        self._post = post
        self._changed = threading.Condition()
        self._probe: Probe | None = None
        self._pid = 0
        self._phase = "waiting"
        self._started = 0.0
        self._poll_at: float | None = None
        self._idle_sightings = 0
        self._asked = 0
        self._sampled = 0
        self._sample: tuple[str, Telemetry] = ("healthy", {"slots_total": slots_total})
        self._stopping = False
        self._broken = False

    def watch_load(self, pid: int, probe: Probe) -> None:
        """Post EngineReady as soon as the engine *pid* serves."""
        with self._changed:
            self._pid, self._probe, self._phase = pid, probe, "loading"
            self._started = self._poll_at = time.monotonic()
            self._changed.notify_all()

    def watch_drain(self) -> None:
        """Post EngineIdle as soon as the engine has no request left, or cannot tell."""
        with self._changed:
            self._phase, self._poll_at = "draining", time.monotonic()
            self._changed.notify_all()

    def sample(self) -> tuple[str, Telemetry]:
        """healthy or degraded, and what is known of the engine; for the reporter's thread, bounded in time.

        A serving engine that does not answer in time is degraded; before that nothing is expected of it. One that
        nobody watches any more is degraded too.
        """
        with self._changed:
            self._asked += 1
            mine = self._asked
            self._changed.notify_all()
            over = self._changed.wait_for(
                lambda: self._sampled >= mine or self._stopping or self._broken, _SAMPLE_TIMEOUT
            )
            if self._broken:
                return "degraded", {"slots_total": self._slots_total}
            if over:
                return self._sample
            return ("healthy" if self._phase == "loading" else "degraded"), {"slots_total": self._slots_total}

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def start(self) -> None:
        threading.Thread(target=self._guarded, name="watcher", daemon=True).start()

    def _guarded(self) -> None:
        """A worker without this thread would seem well for ever; it ends loudly instead."""
        try:
            self._run()
        except Exception as error:
            with self._changed:
                self._broken = True
                self._changed.notify_all()
            self._post(Broken(f"{type(error).__name__}: {error}"))
            raise

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopping and self._sampled == self._asked and not self._poll_is_due():
                    self._changed.wait(None if self._poll_at is None else self._poll_at - time.monotonic())
                if self._stopping:
                    return
                asked, due = self._asked, self._poll_is_due()
                phase, probe, pid = self._phase, self._probe, self._pid
            if due and probe is not None:
                self._poll(phase, probe, pid)
            if asked != self._sampled:
                self._take_sample(asked, phase, probe, pid)

    def _poll_is_due(self) -> bool:
        return self._poll_at is not None and time.monotonic() >= self._poll_at

    def _poll(self, phase: str, probe: Probe, pid: int) -> None:
        loading = phase == "loading"
        over = self._engine.ready(probe) if loading else self._is_idle(probe)
        with self._changed:
            if (phase, pid) != (self._phase, self._pid):
                return  # something else is to be watched by now
            self._poll_at = None if over else time.monotonic() + self._poll_delay()
            if over and loading:
                self._phase = "serving"
        if over:
            self._post(EngineReady(pid) if loading else EngineIdle())

    def _poll_delay(self) -> float:
        if self._phase == "draining":
            return _DRAIN_POLL
        elapsed = time.monotonic() - self._started
        return min(_SLOWEST_POLL, max(_FASTEST_POLL, elapsed / _POLLS_A_LOAD))

    def _is_idle(self, probe: Probe) -> bool:
        idle = self._engine.idle(probe)
        if idle is None:
            return True
        self._idle_sightings = self._idle_sightings + 1 if idle else 0
        return self._idle_sightings >= _IDLE_SIGHTINGS

    def _take_sample(self, asked: int, phase: str, probe: Probe | None, pid: int) -> None:
        telemetry: Telemetry = {"slots_total": self._slots_total}
        resident = resident_bytes(pid) if pid else None
        if resident is not None:
            telemetry["rss_bytes"] = resident
        healthy = True
        if probe is not None and phase in ("serving", "draining"):
            healthy = self._engine.healthy(probe)
            telemetry |= self._engine.telemetry(probe) if healthy else {}
        with self._changed:
            self._sample = ("healthy" if healthy else "degraded", telemetry)
            self._sampled = asked
            self._changed.notify_all()
