"""Hung, loading for too long, idle, over its memory: told from what was seen of a worker, and for how long.

All times are seconds on the hive's monotonic clock and come in as arguments. What could not be seen condemns nobody.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from rbee.core.launch import Footprint, Telemetry
from rbee.core.sizes import size_text

PROCESSOR_SHARE: Final = 1.0 / 120.0
"""Of one core: the 1 s in 120 s of processor time under which a busy worker counts as hung (DESIGN section 3)."""

LOAD_PROCESSOR_SHARE: Final = 0.05
"""Of one core. Its keeper asks a loading engine for its health at least 4 times a second; answering costs one that
never becomes ready 0.2 % (measured; 1.5 % in its first second), and a load that computes takes a core or more."""

PROCESSOR_NOISE: Final = 0.05
"""Seconds; processor time is counted in ticks of 0.01 s, so that less than five of them say nothing."""

BYTES_NOISE: Final = 2**20
"""Bytes of memory or of reading by which a process that only waits may differ."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What process *pid* and all below it used at *at*, or a little later."""

    pid: int
    at: float
    footprint: Footprint


@dataclass(frozen=True, slots=True)
class Motion:
    """All of a worker that moves while it works. ``counters``: None for one that is not known."""

    relayed_bytes: int = 0
    counters: tuple[int | None, ...] = ()
    reading: Reading | None = None


@dataclass(frozen=True, slots=True)
class Still:
    """Nothing has moved from ``motion`` since ``since``."""

    since: float
    motion: Motion


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker has to do. ``slots_busy``: what its last beat said, received at ``heard_at``."""

    in_flight: int = 0
    requests: int = 0
    slots_busy: int = 0
    heard_at: float = 0.0

    @property
    def is_busy(self) -> bool:
        return self.in_flight > 0 or self.slots_busy > 0


@dataclass(frozen=True, slots=True)
class Quiet:
    """Not used since ``since``; the gateway last used it at ``gateway_at``, for ``requests`` requests until then."""

    since: float
    gateway_at: float
    requests: int = 0
    in_flight: int = 0


def counters(telemetry: Telemetry) -> tuple[int | None, ...]:
    return telemetry.requests_total, telemetry.prompt_tokens_total, telemetry.generated_tokens_total


def stillness(before: Still | None, seen: Motion, now: float, moved: Callable[[Motion, Motion], bool]) -> Still:
    """The stillness *before* if it goes on, else one that begins now."""
    return Still(now, seen) if before is None or moved(before.motion, seen) else before


def processor_threshold(seconds: float) -> float:
    """Seconds of processor time that count as work in *seconds*: 1 s in 120 s, in proportion, at least 0.05 s.

    The proportion keeps a shorter ``hang_timeout`` as strict as the 120 s that the figure was given for.
    """
    return max(PROCESSOR_NOISE, PROCESSOR_SHARE * seconds)


def worked(before: Motion, seen: Motion, processor_seconds: float) -> bool:
    """Whether a byte was relayed, a counter moved, or *processor_seconds* of processor time were used.

    What was unknown before and is known now may have moved; a clock that went back belongs to other processes.
    """
    if seen.relayed_bytes != before.relayed_bytes or _counted(before.counters, seen.counters):
        return True
    if seen.reading is None:
        return False
    used = _processor_seconds(before.reading, seen.reading)
    return used is None or used >= processor_seconds


def load_moved(before: Motion, seen: Motion) -> bool:
    """Whether a load got on: memory, bytes read or processor time moved by more than noise."""
    old, new = before.reading, seen.reading
    if new is None:
        return False
    used = _processor_seconds(old, new)
    if old is None or used is None:
        return True
    grown = abs(new.footprint.rss_bytes - old.footprint.rss_bytes)
    read = abs(new.footprint.read_bytes - old.footprint.read_bytes)
    if grown >= BYTES_NOISE or read >= BYTES_NOISE:
        return True
    return used >= max(PROCESSOR_NOISE, LOAD_PROCESSOR_SHARE * (new.at - old.at))


def hung(still: Still, seen: Motion, work: Work, now: float, hang_timeout: float) -> str | None:
    """Why a worker that has work hangs, or None.

    Only readings from both ends of the time prove that no processor time was used: an external worker, of which
    there are none, is never judged. Nor is one that only an old beat calls busy.
    """
    told_busy = work.slots_busy if work.heard_at > still.since else 0
    requests = max(work.in_flight, told_busy)
    used = _used_over(still, seen, hang_timeout)
    if requests == 0 or used is None or used >= processor_threshold(hang_timeout):
        return None
    what = "1 request" if requests == 1 else f"{requests} requests"
    return f"hung: {what}, and for {_seconds(now - still.since)} no byte, no counter and {used:.1f} s of processor time"


def load_stands_still(still: Still, seen: Motion, now: float, load_timeout: float) -> str | None:
    """Why a load is given up for lack of progress, or None; nothing seen of it is no lack of progress."""
    used = _used_over(still, seen, load_timeout)
    if used is None:
        return None
    return (
        f"its load stood still for {_seconds(now - still.since)} (lifecycle.load_timeout): no memory taken, no byte "
        f"read and {used:.1f} s of processor time"
    )


def loads_too_long(began: float, now: float, load_limit: float) -> str | None:
    """Why a load is given up that takes longer than any may, or None."""
    if now - began < load_limit:
        return None
    return f"it was not ready after {_seconds(now - began)}, the most that lifecycle.load_limit allows"


def over_memory(footprint: Footprint, own_limit: int | None, limit: int, expected: int | None = None) -> str | None:
    """Why a worker has too much memory of its own, or None. ``own_limit``, ``limit``: bytes, the smaller one holds.

    ``expected``: what it was admitted with, for the words alone: more than that ends nobody.
    """
    smaller, setting = limit, "limits.max_worker_memory"
    if own_limit is not None and own_limit < limit:
        smaller, setting = own_limit, "its max_memory_bytes"
    if footprint.private_bytes <= smaller:
        return None
    held, allowed = size_text(footprint.private_bytes), size_text(smaller)
    if held == allowed:
        held, allowed = f"{footprint.private_bytes} bytes", f"{smaller} bytes"
    admitted = "" if expected is None else f" (it was admitted with {size_text(expected)})"
    return f"it holds {held} of memory{admitted}, more than the {allowed} that {setting} allows; raise that for more"


def quiet(before: Quiet | None, work: Work, now: float, ready_since: float) -> Quiet:
    """How long a ready worker has not been used: since it is ready, or since its last request was seen to be over.

    ``slots_busy`` is for requests past the gateway, so what a beat said while the gateway's own still ran is not news.
    """
    before = before or Quiet(ready_since, ready_since)
    # Requests that were there at the last look ended since, nobody saw when: at the latest now.
    if (work.in_flight, work.requests) != (0, before.requests) or before.in_flight > 0:
        return Quiet(now, now, work.requests, work.in_flight)
    if work.slots_busy > 0 and work.heard_at > before.gateway_at:
        return replace(before, since=now)
    return before


def _counted(before: tuple[int | None, ...], seen: tuple[int | None, ...]) -> bool:
    return any(new is not None and new != old for old, new in zip(before, seen, strict=True))


def _processor_seconds(old: Reading | None, new: Reading) -> float | None:
    """Processor time used between two readings; None where they are not of the same processes."""
    if old is None or old.pid != new.pid:
        return None
    used = new.footprint.cpu_seconds - old.footprint.cpu_seconds
    return used if used >= 0 else None


def _used_over(still: Still, seen: Motion, seconds: float) -> float | None:
    """Processor time used in a stillness of *seconds* or more; None if it is shorter, or was not seen to its end."""
    if seen.reading is None or seen.reading.at - still.since < seconds:
        return None
    return _processor_seconds(still.motion.reading, seen.reading)


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
