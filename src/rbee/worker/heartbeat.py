"""The thread that talks to the hive: it announces what is new, beats, and judges whether the hive is gone."""

import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from rbee.worker import log
from rbee.worker.callback import Announcement, HiveClient, error_of, seconds_in, text_in
from rbee.worker.events import Broken, Event, Orphaned, Refused, Registered, Superseded
from rbee.worker.pacing import BeatPlan, announce_delay
from rbee.worker.wire import Answer

DEFAULT_INTERVAL: Final = 30.0
_TRY_AGAIN: Final = (408, 425, 429)
"""Statuses below 500 that speak of this moment, not of this worker."""

Telemetry = dict[str, int | float]


class Health(Protocol):
    def sample(self) -> tuple[str, Telemetry]:
        """healthy or degraded, and the telemetry that is known; bounded in time."""
        ...


class Reporter:
    """One thread for beats and callbacks, so that neither waits for the engine or for the main thread.

    *interval* None: the one that the hive names, 30 s until then.
    """

    def __init__(
        self,
        hive: HiveClient,
        health: Health,
        post: Callable[[Event], None],
        first: Announcement,
        interval: float | None,
        orphan_timeout: float,
    ) -> None:
        self._hive = hive
        self._health = health
        self._post = post
        self._fixed_interval = interval is not None
        self._plan = BeatPlan(time.monotonic(), interval or DEFAULT_INTERVAL, orphan_timeout)
        self._changed = threading.Condition()
        self._announcement = first
        self._unsent: Announcement | None = first
        self._registered = False
        self._engine_key = ""
        self._announce_at = 0.0
        self._announce_failures = 0
        self._unknown = False
        self._stopping = False

    def announce(self, announcement: Announcement) -> None:
        """Tell the hive, as soon as may be; of two quick ones it may only hear the later."""
        with self._changed:
            self._announcement = self._unsent = announcement
            self._announce_at = 0.0
            self._changed.notify_all()

    def wait_told(self, timeout: float) -> bool:
        """Wait until the hive has answered the last announcement, at most *timeout* seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._unsent is None or self._stopping, timeout)

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def start(self) -> None:
        threading.Thread(target=self._guarded, name="reporter", daemon=True).start()

    def _guarded(self) -> None:
        """A worker without this thread would live on unheard and unseen; it ends loudly instead."""
        try:
            self._run()
        except Exception as error:
            self._post(Broken(f"{type(error).__name__}: {error}"))
            raise

    def _run(self) -> None:
        while (announcement := self._wait_for_work()) is not False:
            if isinstance(announcement, Announcement):
                self._tell(announcement)
            else:
                self._beat()

    def _wait_for_work(self) -> Announcement | bool:
        """The announcement to send, True for a beat, False for the end."""
        with self._changed:
            while not self._stopping:
                now = time.monotonic()
                if self._unsent is not None and now >= self._announce_at:
                    return self._unsent
                beat_at = self._plan.due(now) if self._registered else None
                if beat_at is not None and now >= beat_at:
                    return True
                times = [beat_at, self._announce_at if self._unsent is not None else None]
                self._changed.wait(min(at for at in times if at is not None) - now)
            return False

    def _tell(self, announcement: Announcement) -> None:
        started = time.monotonic()
        try:
            answer = self._hive.announce(announcement)
        except OSError as error:
            self._not_told(started, f"cannot reach the hive at {self._hive.address}: {describe(error)}")
            return
        if answer.ok:
            self._told(announcement)
            self._accepted(announcement, answer)
            return
        code, message = error_of(answer)
        if code == "older_incarnation":
            self._told(announcement)
            self._post(Superseded())
        elif 400 <= answer.status < 500 and answer.status not in _TRY_AGAIN:
            self._told(announcement)
            log.error("The hive refused the callback", status=answer.status, code=code, reason=message)
            if not self._registered:
                self._post(Refused(message))
        else:
            self._not_told(started, f"status {answer.status}: {message}")

    def _told(self, announcement: Announcement) -> None:
        with self._changed:
            if self._unsent is announcement:
                self._unsent = None
            self._announce_failures = 0
            self._changed.notify_all()

    def _not_told(self, started: float, reason: str) -> None:
        with self._changed:
            self._announce_failures += 1
            delay = announce_delay(self._announce_failures)
            now = time.monotonic()
            if not self._registered and now < self._plan.orphan_at:
                delay = min(delay, self._plan.orphan_at - now)
            self._announce_at = now + delay
        log.warning("Failed to announce the worker (will retry)", retry_in=delay, reason=reason)
        if not self._registered and self._plan.orphaned(started):
            self._post(Orphaned(self._plan.orphan_timeout))

    def _accepted(self, announcement: Announcement, answer: Answer) -> None:
        interval = seconds_in(answer, "heartbeat_interval")
        if interval is not None and not self._fixed_interval:
            self._plan.interval = interval
        self._take_orphan_timeout(answer)
        key = text_in(answer, "engine_key")
        if not self._registered:
            self._registered = True
            self._engine_key = key
            self._post(Registered(key))
        elif key and key != self._engine_key:
            log.warning("The hive now names another engine key; the engine keeps the one that it was started with")
        if announcement.state == "ready" and not self._unknown:
            # What it takes is known now; the hive should not have to wait a whole interval to hear of it.
            self._plan.beat_at_once(time.monotonic())
        if self._unknown and self._plan.failures <= 1:  # one that goes on not knowing us is asked at the retries' pace
            self._plan.beat_at_once(time.monotonic())
        self._unknown = False

    def _take_orphan_timeout(self, answer: Answer) -> None:
        timeout = seconds_in(answer, "orphan_timeout")
        if timeout is not None:
            self._plan.orphan_timeout = timeout

    def _beat(self) -> None:
        started = time.monotonic()
        self._plan.attempt(started)
        status, telemetry = self._health.sample()
        try:
            answer = self._hive.beat(status, telemetry)
        except OSError as error:
            self._beat_failed(started, f"cannot reach the hive at {self._hive.address}: {describe(error)}")
            return
        if answer.ok:
            self._plan.succeeded(time.monotonic())
            self._take_orphan_timeout(answer)
            log.info("Heartbeat sent successfully", health_status=status)
            return
        code, message = error_of(answer)
        if code == "older_incarnation":
            self._plan.failed(time.monotonic())
            self._post(Superseded())
            return
        self._beat_failed(started, f"status {answer.status}: {message}")
        if answer.status == 404:
            self._unknown = True
            with self._changed:
                self._unsent = self._announcement

    def _beat_failed(self, started: float, reason: str) -> None:
        self._plan.failed(time.monotonic())
        log.warning("Failed to send heartbeat (will retry)", reason=reason)
        if self._plan.orphaned(started):
            self._post(Orphaned(self._plan.orphan_timeout))


def describe(error: OSError) -> str:
    """What went wrong, in words, with no number in brackets."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return error.strerror or str(error) or type(error).__name__
