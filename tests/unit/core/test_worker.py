"""The whole (state, event) table, and what each legal step asks of the shell."""

from dataclasses import replace
from typing import get_args

import pytest

from rbee.core import events as ev
from rbee.core.errors import IllegalTransition
from rbee.core.exits import Exit, ExitReason
from rbee.core.routing import Standing
from rbee.core.worker import _RULES, ALIVE, TRANSITIONS, Worker, WorkerSpec, WorkerState, advance

S = WorkerState
SPEC = WorkerSpec(worker_id="w-1", model_ref="synthetic:x")
EXTERNAL = replace(SPEC, external=True)
GIVE_UP = ev.GiveUp("No more tries.")
EXIT = Exit(ExitReason.CRASHED, code=1)
EVENTS = (
    ev.Spawned(7),
    ev.SpawnFailed("no memory", GIVE_UP),
    ev.Adopted("http://127.0.0.1:8081", 8, 4, serving=True),
    ev.AnnouncedLoading("http://127.0.0.1:8081", 7, 8, 4),
    ev.AnnouncedReady("http://127.0.0.1:8081", 7, 8, 4),
    ev.AnnouncedFailed("not a GGUF"),
    ev.EngineExited(),
    ev.Exited(EXIT, GIVE_UP),
    ev.SweepFailed("2 processes of w-1:1 do not end: pids 8, 9"),
    ev.WentStale(60.0),
    ev.Condemned(ExitReason.UNHEALTHY, "3 health checks failed"),
    ev.EndRequested(),
    ev.RestartRequested(),
    ev.DrainEnded(),
    ev.GraceEnded(),
    ev.BackoffEnded(),
    ev.CircuitOpened("Its circuit is open.", 60.0),
    ev.RestartRefused("RAM is short", 10.0),
)
CALLBACKS = {type(event) for event in EVENTS} & {ev.AnnouncedLoading, ev.AnnouncedReady, ev.AnnouncedFailed}


def worker(state: WorkerState, spec: WorkerSpec = SPEC, **changes: object) -> Worker:
    return replace(Worker(spec, state=state, pid=7, url="http://127.0.0.1:8081"), **changes)


def test_the_events_of_these_tests_are_all_that_there_are():
    assert {type(event) for event in EVENTS} == set(get_args(ev.Event)) == set(_RULES)


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("spec", [SPEC, EXTERNAL], ids=["own", "external"])
def test_every_pair_leads_where_the_table_says_or_is_refused(state, event, spec):
    before = worker(state, spec)
    targets = TRANSITIONS.get((state, type(event)))
    if targets is None or impossible(before, event):
        with pytest.raises(IllegalTransition) as caught:
            advance(before, event, 5.0)
        assert caught.value.details == {"state": str(state), "event": type(event).__name__}
        return
    after, _ = advance(before, event, 5.0)
    assert after.state in targets
    assert after.message
    assert after.since == (before.since if after.state is state else 5.0)


def impossible(before, event):
    """What the table allows and only the other kind of worker can live through."""
    if not before.spec.external:
        return before.state is S.FAILED and isinstance(event, ev.WentStale)
    never_in = before.state in (S.STARTING, S.STOPPING, S.BACKOFF)
    ours_alone = (ev.Spawned, ev.SpawnFailed, ev.Adopted, ev.Condemned, ev.EngineExited, ev.RestartRequested)
    ours_alone += (ev.SweepFailed,)
    ours_alone += (ev.BackoffEnded, ev.CircuitOpened, ev.RestartRefused)
    return never_in or isinstance(event, ours_alone)


@pytest.mark.parametrize(("state", "event"), TRANSITIONS, ids=lambda part: getattr(part, "__name__", str(part)))
def test_every_target_of_the_table_is_reached(state, event):
    """A target that nothing reaches would be a line of the diagram that is not so."""
    reached = set()
    for one in _variants(event):
        for before in _situations(state):
            try:
                reached.add(advance(before, one, 1.0)[0].state)
            except IllegalTransition:
                continue
    assert reached == TRANSITIONS[state, event]


def _variants(event):
    decisions = (GIVE_UP, ev.RestartAfter(1.0, "attempt 1 of 5"))
    if event is ev.Exited:
        return [ev.Exited(EXIT, decision) for decision in decisions]
    if event is ev.SpawnFailed:
        return [ev.SpawnFailed("no memory", decision) for decision in decisions]
    if event is ev.EndRequested:
        return [ev.EndRequested(force=False), ev.EndRequested(force=True)]
    if event is ev.Adopted:
        return [ev.Adopted("http://127.0.0.1:8081", 8, 4, serving=serving) for serving in (True, False)]
    return [one for one in EVENTS if type(one) is event]


def _situations(state):
    """The workers that can be in *state*: only one that is being ended is marked for what comes after."""
    marks = (False, True) if state in (S.DRAINING, S.STOPPING) else (False,)
    for spec in (SPEC, EXTERNAL):
        for forget in marks:
            for again in marks:
                yield worker(state, spec, forget=forget, again=again and not forget)


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("callback", sorted(CALLBACKS, key=lambda c: c.__name__), ids=lambda c: c.__name__)
def test_a_callback_is_taken_only_from_a_process_that_can_be_alive(state, callback):
    taken = (state, callback) in TRANSITIONS
    assert not taken or state in ALIVE


def test_a_ready_worker_that_is_stale_is_killed_without_another_word():
    after, commands = advance(worker(S.READY), ev.WentStale(60.0), 60.0)
    assert (after.state, after.ending, commands) == (S.STOPPING, ExitReason.STALE, (ev.Kill(),))
    failed, commands = advance(after, ev.Exited(Exit(ExitReason.CRASHED, signal_number=9), GIVE_UP), 60.1)
    assert (failed.state, commands) == (S.FAILED, ())
    assert failed.last_exit == Exit(ExitReason.STALE, signal_number=9, message="no heartbeat in 60 s")
    assert failed.message == (
        "It ended (stale, killed by SIGKILL): no heartbeat in 60 s. No more tries. "
        "POST /v1/workers/w-1/restart starts it again."
    )


def test_a_deleted_worker_drains_ends_and_is_gone():
    draining, commands = advance(worker(S.READY), ev.EndRequested(), 1.0)
    assert (draining.state, draining.standing, commands) == (S.DRAINING, Standing.OUT, (ev.WaitForDrain(),))
    stopping, commands = advance(draining, ev.DrainEnded(), 2.0)
    assert (stopping.state, commands) == (S.STOPPING, (ev.Terminate(),))
    killed, commands = advance(stopping, ev.GraceEnded(), 12.0)
    assert (killed.state, commands) == (S.STOPPING, (ev.Kill(),))
    gone, _ = advance(killed, ev.Exited(Exit(ExitReason.CRASHED, signal_number=9), GIVE_UP), 12.1)
    assert gone.state is S.GONE
    assert gone.last_exit.reason is ExitReason.STOPPED


def test_a_second_delete_by_force_kills_what_drains():
    draining, _ = advance(worker(S.READY), ev.EndRequested(), 1.0)
    stopping, commands = advance(draining, ev.EndRequested(force=True), 2.0)
    assert (stopping.state, commands) == (S.STOPPING, (ev.Kill(),))


def test_a_worker_that_is_ended_while_its_process_is_forked_is_ended_once_there_is_one():
    stopping, _ = advance(worker(S.STARTING, pid=None), ev.EndRequested(), 1.0)
    after, commands = advance(stopping, ev.Spawned(9), 1.1)
    assert (after.pid, commands) == (9, (ev.Terminate(),))


def test_a_restart_by_hand_ends_it_and_starts_the_next_incarnation():
    draining, _ = advance(worker(S.READY), ev.RestartRequested(), 1.0)
    stopping, _ = advance(draining, ev.DrainEnded(), 2.0)
    again, commands = advance(stopping, ev.Exited(EXIT, GIVE_UP), 3.0)
    assert (again.state, again.incarnation, again.restart_count, commands) == (S.STARTING, 2, 1, (ev.Spawn(),))
    assert (again.pid, again.url, again.again) == (None, "", False)


def test_a_delete_wins_over_a_restart_that_was_asked_for_before():
    draining, _ = advance(worker(S.READY), ev.RestartRequested(), 1.0)
    ended, _ = advance(draining, ev.EndRequested(), 1.5)
    assert not ended.again
    with pytest.raises(IllegalTransition, match="being ended"):
        advance(ended, ev.RestartRequested(), 1.6)
    stopping, _ = advance(ended, ev.DrainEnded(), 2.0)
    assert advance(stopping, ev.Exited(EXIT, GIVE_UP), 3.0)[0].state is S.GONE


def test_a_crash_that_may_be_tried_again_waits_and_says_when():
    after, commands = advance(worker(S.READY), ev.Exited(EXIT, ev.RestartAfter(7.6, "attempt 3 of 5 in 300 s")), 1.0)
    assert (after.state, after.standing, commands) == (S.BACKOFF, Standing.COMING, (ev.WaitForBackoff(7.6),))
    assert after.message == "Restarting in 7.6 s after exit code 1 (attempt 3 of 5 in 300 s)."
    refused, commands = advance(after, ev.RestartRefused("RAM is short", 10.0), 9.0)
    assert (refused.state, commands) == (S.BACKOFF, (ev.WaitForBackoff(10.0),))


def test_a_restart_says_what_was_wrong_where_a_signal_of_ours_does_not():
    stale, _ = advance(worker(S.READY), ev.WentStale(60.0), 1.0)
    killed = Exit(ExitReason.CRASHED, signal_number=9)
    after, _ = advance(stale, ev.Exited(killed, ev.RestartAfter(1.0, "attempt 1 of 5 in 300 s")), 1.1)
    assert after.message == ("Restarting in 1.0 s after it went stale (attempt 1 of 5 in 300 s): no heartbeat in 60 s.")


def test_an_open_circuit_leaves_it_failed_and_has_it_ask_again():
    decision = ev.OpenCircuit(60.0, "Its circuit is open (5 failures in 300 s); the next try is at 12:00:00 UTC.")
    failed, commands = advance(worker(S.READY), ev.Exited(EXIT, decision), 1.0)
    assert (failed.state, failed.standing, commands) == (S.FAILED, Standing.OUT, (ev.WaitForBackoff(60.0),))
    assert failed.message == f"It ended (crashed, exit code 1). {decision.reason}"
    blocked = ev.CircuitOpened("Its circuit is open; worker 'w-2' makes the one try.", 5.0)
    waiting, commands = advance(failed, blocked, 61.0)
    assert (waiting.state, commands) == (S.FAILED, (ev.WaitForBackoff(5.0),))
    assert waiting.message == f"It ended (crashed, exit code 1). {blocked.reason}"
    trying, commands = advance(waiting, ev.BackoffEnded(), 66.0)
    assert (trying.state, trying.incarnation, commands) == (S.STARTING, 2, (ev.Spawn(),))


def test_a_circuit_that_opens_makes_those_fail_that_wait_for_their_restart():
    waiting, _ = advance(worker(S.READY), ev.Exited(EXIT, ev.RestartAfter(9.0, "attempt 3 of 5 in 300 s")), 1.0)
    failed, commands = advance(waiting, ev.CircuitOpened("Its circuit is open.", 60.0), 2.0)
    assert (failed.state, failed.standing, commands) == (S.FAILED, Standing.OUT, (ev.WaitForBackoff(60.0),))
    assert failed.message == "It ended (crashed, exit code 1). Its circuit is open."


def test_a_process_that_could_not_be_started_never_ended():
    decision = ev.RestartAfter(2.0, "not counted as a failure")
    after, _ = advance(worker(S.STARTING, pid=None), ev.SpawnFailed("no space left on device", decision), 1.0)
    assert after.message == "Not started, tried again in 2.0 s: no space left on device."


def test_a_forced_end_during_the_fork_is_a_kill():
    stopping, _ = advance(worker(S.STARTING, pid=None), ev.EndRequested(force=True), 1.0)
    assert advance(stopping, ev.Spawned(9), 1.1)[1] == (ev.Kill(),)


def test_what_does_not_die_is_named_with_its_pid():
    stopping, _ = advance(worker(S.STARTING), ev.EndRequested(force=True), 1.0)
    after, commands = advance(stopping, ev.GraceEnded(2), 30.0)
    assert commands == (ev.Kill(),)
    assert after.message == "Killed 2 times, and process 7 is still there (the kernel holds it); killed again as asked."


def test_the_kernel_knows_better_than_a_guess_but_not_better_than_the_hive():
    oom = Exit(ExitReason.OOM, signal_number=9)
    guessed, _ = advance(worker(S.READY), ev.EngineExited(), 1.0)
    assert advance(guessed, ev.Exited(oom, GIVE_UP), 1.1)[0].last_exit.reason is ExitReason.OOM
    stale, _ = advance(worker(S.READY), ev.WentStale(60.0), 1.0)
    assert advance(stale, ev.Exited(oom, GIVE_UP), 1.1)[0].last_exit.reason is ExitReason.STALE


def test_a_worker_is_ready_since_it_became_ready_until_its_next_life():
    ready, _ = advance(worker(S.LOADING), ev.AnnouncedReady("http://127.0.0.1:8081", 7, 8, 4), 5.0)
    assert ready.ready_since == 5.0
    again, _ = advance(ready, ev.AnnouncedReady("http://127.0.0.1:8081", 7, 8, 4), 9.0)
    draining, _ = advance(again, ev.Condemned(ExitReason.UNHEALTHY, "no answer"), 10.0)
    assert draining.ready_since == 5.0
    stopping, _ = advance(draining, ev.DrainEnded(), 11.0)
    waiting, _ = advance(stopping, ev.Exited(EXIT, ev.RestartAfter(1.0, "attempt 1 of 5 in 300 s")), 12.0)
    assert waiting.ready_since is None


def test_a_worker_taken_over_is_ready_where_it_answers_and_else_expected_to_speak():
    ready, _ = advance(worker(S.STARTING), ev.Adopted("http://127.0.0.1:8090", 8, 4, serving=True), 1.0)
    assert (ready.state, ready.url, ready.engine_pid, ready.slots) == (S.READY, "http://127.0.0.1:8090", 8, 4)
    loading, _ = advance(worker(S.STARTING), ev.Adopted("", None, 0, serving=False), 1.0)
    assert (loading.state, loading.standing) == (S.LOADING, Standing.COMING)
    assert "next heartbeat" in loading.message


def test_what_it_has_announced_meanwhile_says_more_than_its_row():
    announced = worker(S.READY, url="http://127.0.0.1:8099")
    after, _ = advance(announced, ev.Adopted("", None, 0, serving=False), 1.0)
    assert (after.state, after.url) == (S.READY, "http://127.0.0.1:8099")


def test_a_load_that_failed_keeps_the_engines_own_words():
    failing, commands = advance(worker(S.LOADING), ev.AnnouncedFailed("invalid magic characters"), 1.0)
    assert (failing.state, commands) == (S.STOPPING, (ev.AwaitExit(),))
    failed, _ = advance(failing, ev.Exited(EXIT, GIVE_UP), 1.1)
    assert "invalid magic characters" in failed.message
    assert failed.last_exit.message == "invalid magic characters"


def test_an_external_worker_is_never_signalled_only_removed():
    for event in (ev.WentStale(60.0), ev.EndRequested(), ev.EndRequested(force=True), ev.DrainEnded()):
        for state in ALIVE:
            try:
                _, commands = advance(worker(state, EXTERNAL), event, 1.0)
            except IllegalTransition:
                continue
            assert not any(isinstance(c, ev.Terminate | ev.Kill | ev.Spawn) for c in commands)


def test_an_external_worker_whose_process_is_gone_stays_listed_until_its_deadline():
    out, _ = advance(worker(S.READY, EXTERNAL), ev.Exited(Exit(ExitReason.CRASHED), GIVE_UP), 1.0)
    assert (out.state, out.standing, out.is_watched) == (S.FAILED, Standing.OUT, True)
    assert "removed when its heartbeat is overdue" in out.message
    assert advance(out, ev.WentStale(60.0), 60.0)[0].state is S.GONE


def test_the_engine_pid_is_kept_when_a_later_callback_leaves_it_out():
    loading, _ = advance(worker(S.STARTING), ev.AnnouncedLoading("http://127.0.0.1:8081", 7, 8, 4), 1.0)
    ready, _ = advance(loading, ev.AnnouncedReady("http://127.0.0.1:8082", 7, None, 4), 2.0)
    assert (ready.engine_pid, ready.url, ready.slots) == (8, "http://127.0.0.1:8082", 4)
