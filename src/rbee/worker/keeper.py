"""The main thread of a worker: it owns the engine and the signals, and decides when the worker ends.

``announcing`` (no engine yet) -> ``loading`` -> ``serving`` -> ``draining`` -> ended. Whatever happens arrives as one
event in the mailbox; the conversations with hive and engine have threads of their own.
"""

import os
import signal
import socket
import time
from collections.abc import Mapping
from typing import Final

from rbee.core.addresses import base_url
from rbee.core.environment import device_variables, inherited
from rbee.worker import exit_file, log, ports, reason
from rbee.worker.callback import Announcement, HiveClient, Identity
from rbee.worker.engines.base import Engine, Probe
from rbee.worker.events import (
    Broken,
    EngineIdle,
    EngineReady,
    Event,
    Mailbox,
    Orphaned,
    Refused,
    Registered,
    Signalled,
    Superseded,
)
from rbee.worker.exit_file import Ending
from rbee.worker.heartbeat import Reporter
from rbee.worker.options import Options
from rbee.worker.output import Output, open_output
from rbee.worker.pacing import drain_at_most, kill_after
from rbee.worker.processes import (
    KEEPER_MARK,
    EngineProcess,
    be_killed_before_the_hive,
    become_subreaper,
    end_descendants,
    keeper_mark,
    reap,
)
from rbee.worker.watch import Watcher

FAREWELL_TIMEOUT: Final = 5.0
"""Seconds for the hive to take the word that this worker has failed; it also sees the exit itself."""

_PORT_TRIES: Final = 5
_EVERY_HOST: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Keeper:
    def __init__(self, options: Options, engine: Engine, environ: Mapping[str, str], mailbox: Mailbox) -> None:
        self._options = options
        self._engine = engine
        self._environ = environ
        self._mailbox = mailbox
        self._reachable_host = _EVERY_HOST.get(options.host, options.host)
        self._phase = "announcing"
        self._port = 0
        self._port_losses = 0
        self._engine_key = ""
        self._process: EngineProcess | None = None
        self._output: Output | None = None
        self._drain_until: float | None = None
        self._kill_at: float | None = None
        self._hurry = False
        self._mark = keeper_mark()
        self._watcher = Watcher(engine, options.slots, mailbox.post)

    def run(self) -> Ending:
        """Live, end, and leave word of it. Returns when nothing of this worker runs any more."""
        options = self._options
        become_subreaper()
        be_killed_before_the_hive()
        self._mailbox.listen_to((*_STOP_SIGNALS, signal.SIGCHLD))
        try:
            if not self._choose_port(options.port):
                return self._leave_word(self._no_port())
        except socket.gaierror as error:
            text = f"the host {options.host} is not known here: {error.strerror}"
            log.error("No address", reason=text)
            return self._leave_word(Ending("load_failed", text, 1))
        hive = HiveClient(options.callback, options.token, _identity(options))
        first = Announcement("loading", self._url)
        self._reporter = Reporter(
            hive, self._watcher, self._mailbox.post, first, options.heartbeat_interval, options.orphan_timeout
        )
        self._watcher.start()
        self._reporter.start()
        ending = self._live()
        self._end_engine()
        self._leave_word(ending)
        if ending.reason in ("crashed", "load_failed") and self._phase != "announcing":
            self._reporter.announce(Announcement("failed", self._url, self._engine_pid, ending.message))
            self._reporter.wait_told(FAREWELL_TIMEOUT)
        self._reporter.stop()
        self._watcher.stop()
        return ending

    @property
    def _url(self) -> str:
        return base_url(self._reachable_host, self._port)

    @property
    def _engine_pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def _live(self) -> Ending:
        while True:
            event = self._mailbox.next(self._drain_time_left())
            ending = None if event is None else self._take(event)
            if ending is not None:
                return ending
            if self._drain_time_left() == 0.0:
                log.warning("Requests were still running when the time to drain was over")
                return Ending("stopped", "stopped with requests still running", 0)

    def _drain_time_left(self) -> float | None:
        return None if self._drain_until is None else max(0.0, self._drain_until - time.monotonic())

    def _take(self, event: Event) -> Ending | None:
        match event:
            case Signalled(number) if number in _STOP_SIGNALS:
                return self._stop_asked()
            case Signalled():
                return self._children_ended()
            case Registered(engine_key):
                self._engine_key = engine_key
                return self._start_engine()
            case EngineReady(pid):
                self._serve(pid)
            case EngineIdle() if self._phase == "draining":
                return Ending("stopped", "stopped", 0)
            case Refused(message):
                return Ending("load_failed", f"the hive refused this worker: {message}", 1)
            case Superseded():
                log.info("A newer incarnation of this worker exists")
                return Ending("superseded", "a newer incarnation of this worker exists", 0)
            case Broken(message):
                return Ending("crashed", f"an error in the keeper itself: {message}", 1)
            case Orphaned(seconds):
                log.error("No hive has answered a heartbeat for too long", seconds=seconds)
                return Ending("orphaned", f"no hive answered a heartbeat for {seconds:g} s", 1)
        return None

    def _stop_asked(self) -> Ending | None:
        if self._phase == "draining":
            self._hurry = True
            return Ending("stopped", "stopped at once, on a second signal", 0)
        now, end_timeout = time.monotonic(), self._options.end_timeout
        if end_timeout is not None:
            self._kill_at = now + kill_after(end_timeout)
        timeout = drain_at_most(self._options.drain_timeout, end_timeout)
        if self._phase != "serving" or timeout == 0:
            return Ending("stopped", f"stopped while {self._phase}", 0)
        log.info("Draining", timeout=timeout)
        self._phase = "draining"
        self._drain_until = now + timeout
        self._watcher.watch_drain()
        return None

    def _choose_port(self, first: int) -> bool:
        port = ports.first_free(self._options.host, first, self._options.port_last)
        if port is None:
            return False
        if port != self._options.port:
            log.warning("The port is taken; using another", port=self._options.port, using=port)
        self._port = port
        return True

    def _no_port(self) -> Ending:
        options = self._options
        text = f"no port from {options.port} to {options.port_last} is free on {options.host}"
        log.error("No free port", reason=text)
        return Ending("load_failed", text, 1)

    def _start_engine(self) -> Ending | None:
        launch = self._engine.launch(self._port, self._engine_key)
        environment = {
            **inherited(self._environ),
            **device_variables(self._options.backend, self._options.devices, self._environ),
            "RBEE_WORKER_INCARNATION": incarnation_mark(self._options),
            KEEPER_MARK: self._mark,
            # What Python could not write to a full disk it would try again at its end, and then exit with 120.
            "PYTHONUNBUFFERED": "1",
            # setproctitle (vLLM names its processes by it) would write over the marks.
            "SPT_NOENV": "1",
            **launch.environment,
        }
        self._phase = "loading"
        self._output = open_output()
        try:
            self._process = EngineProcess(launch.argv, environment, self._output.descriptor)
        except OSError as error:
            return Ending("load_failed", f"cannot start the engine: {error.strerror}", 1)
        self._output.started()
        log.info("Engine started", engine=self._options.engine, engine_pid=self._process.pid, url=self._url)
        self._reporter.announce(Announcement("loading", self._url, self._process.pid))
        self._watcher.watch_load(self._process.pid, Probe(self._reachable_host, self._port, self._engine_key))
        return None

    def _serve(self, pid: int) -> None:
        if self._phase == "loading" and pid == self._engine_pid:
            self._phase = "serving"
            log.info("Engine ready", url=self._url)
            self._reporter.announce(Announcement("ready", self._url, pid))

    def _children_ended(self) -> Ending | None:
        for pid, status in reap():
            if pid == self._engine_pid:
                return self._engine_ended(status)
        return None

    def _engine_ended(self, status: int) -> Ending | None:
        lines = [] if self._output is None else self._output.last_lines()
        self._process = None
        if self._phase == "draining":
            text = f"the engine {reason.describe_exit(status)} while it drained"
            return Ending("stopped", text, 0, engine_status=status)
        if self._phase == "loading" and self._engine.lost_port(lines) and self._port_losses < _PORT_TRIES:
            self._port_losses += 1
            end_descendants(self._mark)
            if not self._choose_port(self._port + 1):
                return self._no_port()
            return self._start_engine()
        if self._phase == "loading":
            text = reason.load_failure(status, lines)
            log.error("The model could not be loaded", reason=text)
            return Ending("load_failed", text, 1, engine_status=status)
        text = reason.crash(status, lines)
        log.error("The engine has ended by itself", reason=text)
        return Ending("crashed", text, 1, engine_status=status)

    def _end_engine(self) -> None:
        """End the engine by signal, and everything that it may have started."""
        if self._process is not None and not self._hurry:
            self._process.signal(signal.SIGTERM)
            self._wait_engine_end(self._kill_at or time.monotonic() + kill_after(self._options.end_timeout))
        if self._process is not None:
            self._process.signal(signal.SIGKILL)
        stubborn = end_descendants(self._mark)
        if stubborn:
            log.error("These processes would not end", pids=stubborn)

    def _wait_engine_end(self, deadline: float) -> None:
        """Until the engine is reaped, the time is over, or a signal says that there is no time."""
        while (left := deadline - time.monotonic()) > 0:
            if self._engine_pid in [pid for pid, _ in reap()]:
                self._process = None
                return
            event = self._mailbox.next(left)
            if isinstance(event, Signalled) and event.number in _STOP_SIGNALS:
                return

    def _leave_word(self, ending: Ending) -> Ending:
        if self._options.exit_file is not None:
            try:
                exit_file.write(self._options.exit_file, self._options.incarnation, ending)
            except OSError as error:
                log.error("Cannot write the exit file", path=self._options.exit_file, reason=error.strerror)
        log.info("Worker ended", reason=ending.reason, exit_code=ending.exit_code)
        return ending


def incarnation_mark(options: Options) -> str:
    """What every child carries in its environment, so that the hive finds all of them."""
    return f"{options.worker_id}:{'' if options.incarnation is None else options.incarnation}"


def _identity(options: Options) -> Identity:
    return Identity(
        worker_id=options.worker_id,
        incarnation=options.incarnation,
        model_ref=options.model_ref,
        backend=options.backend,
        device=options.device,
        alias=options.alias,
        slots_total=options.slots,
        pid=os.getpid(),
        spec=options.spec,
    )
