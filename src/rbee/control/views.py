"""From a record to what the API shows of it."""

import dataclasses

from rbee.control.schemas import CircuitView, ClaimView, ExitView, MemoryView, WorkerView
from rbee.core.restart import CircuitState
from rbee.hive.circuits import CircuitReport
from rbee.hive.journal import Transition
from rbee.hive.registry import Record


def worker_view(record: Record, in_flight: int, circuit: CircuitReport | None, now: float) -> WorkerView:
    """*now* is the hive's monotonic clock, seconds; *circuit* is None for a worker that is not the hive's own."""
    worker, spec, telemetry = record.worker, record.worker.spec, record.telemetry
    last = worker.last_exit
    return WorkerView(
        worker_id=spec.worker_id,
        state=worker.shown_state(in_flight),
        message=worker.message,
        model_ref=spec.model_ref,
        alias=spec.alias,
        backend=record.placement.backend,
        device=next(iter(record.placement.devices), 0),
        devices=list(record.placement.devices),
        engine=spec.engine,
        engine_args=list(spec.engine_args),
        pid=worker.pid,
        engine_pid=worker.engine_pid,
        url=worker.url,
        ctx_size=spec.ctx_size,
        slots=worker.slots or spec.slots,
        in_flight=in_flight,
        incarnation=worker.incarnation,
        restart=str(spec.restart),
        restart_count=worker.restart_count,
        idle_timeout=spec.idle_timeout,
        max_memory_bytes=spec.max_memory_bytes,
        started_at=record.started_at,
        state_age_seconds=round(now - worker.since, 3),
        last_heartbeat_age_seconds=round(record.vital.age(now), 3),
        health_status="healthy" if record.healthy else "degraded",
        memory=_memory_view(record),
        claim=_claim_view(record),
        telemetry=dataclasses.asdict(telemetry),
        last_exit=ExitView(reason=last.reason, exit_code=last.code, signal=last.signal_number, message=last.message)
        if last
        else None,
        circuit=circuit_view(circuit) if circuit else None,
        external=spec.external,
    )


def _memory_view(record: Record) -> MemoryView:
    if record.worker.pid is None:
        return MemoryView(rss_bytes=None, private_bytes=None, vram_bytes=None)
    seen, said = record.footprint, record.telemetry
    return MemoryView(
        rss_bytes=said.rss_bytes if seen is None else seen.rss_bytes,
        private_bytes=None if seen is None else seen.private_bytes,
        vram_bytes=said.vram_bytes if record.vram is None else sum(record.vram.values()),
    )


def _claim_view(record: Record) -> ClaimView | None:
    if record.claim is None:
        return None
    need = record.claim.need
    return ClaimView(
        ram_bytes=need.ram.total_bytes,
        ram_weights_bytes=need.ram.weights_bytes,
        vram_bytes=[parts.total_bytes for parts in need.vram],
        vram_weights_bytes=[parts.weights_bytes for parts in need.vram],
        source=str(need.source),
    )


def circuit_view(report: CircuitReport) -> CircuitView:
    last = report.last_exit
    return CircuitView(
        key=report.key,
        model_ref=report.model_ref,
        state=report.state.value,
        failures=report.failures,
        worker_id=report.last_worker_id,
        reason=(last.message or last.how()) if last else None,
        exit_reason=last.reason if last else None,
        exit_code=last.code if last else None,
        signal=last.signal_number if last else None,
        last_log_lines=list(report.last_log_lines),
        trying=report.trying,
        probe_at=report.probe_at,
    )


def closed(report: CircuitReport) -> CircuitReport:
    """What is left of a circuit once it is reset: it is forgotten, and only its key and its model are known."""
    return CircuitReport(
        key=report.key,
        model_ref=report.model_ref,
        state=CircuitState.CLOSED,
        failures=0,
        last_worker_id=None,
        last_exit=None,
        last_log_lines=(),
        trying=None,
        probe_at=None,
    )


def transition_view(entry: Transition) -> dict[str, object]:
    """One event of GET /v1/events."""
    return {
        "number": entry.number,
        "at": entry.at.isoformat(),
        "worker_id": entry.worker_id,
        "model_ref": entry.model_ref,
        "incarnation": entry.incarnation,
        "event": entry.event,
        "before": str(entry.before),
        "after": str(entry.after),
        "message": entry.message,
        "exit_reason": str(entry.exit.reason) if entry.exit else None,
    }
